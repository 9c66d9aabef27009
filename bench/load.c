/*
 * The load generator of the measurements: one epoll loop over a fixed number of connections.
 *
 *   load -m MODE -c CONNECTIONS [-t SECONDS] [-n OPERATIONS] [-r RATE] [-s NAMES] [-p PATH] [-b BYTES] PORT
 *
 * MODE keepalive  an HTTP/1.1 exchange after the other on each connection; the Host rotates over NAMES (a,b,c) from
 *                 one request to the next, and a response whose body does not begin with that name is misrouted
 *      close      the same, but every request is on a connection of its own ("Connection: close")
 *      pingpong   sends BYTES, waits for the same bytes to come back
 *      bulk       reads as fast as it can
 *      hold       one keepalive exchange on each connection, then holds them open
 *
 * -r makes it an open loop: requests start at a fixed rate whether or not earlier ones were answered, and latency counts
 * from the moment a request was due, so that a stall is charged to every request it delayed.
 *
 * After one exchange on every connection (bulk: the first bytes) it prints "ready" and waits for a line on standard
 * input, so that the caller can read its counters; then it runs until SECONDS are over or OPERATIONS are done and prints
 * one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "latency.h"

enum { HEAD_MAX = 2048, READ_SIZE = 256 << 10, MAX_NAMES = 16, MAX_ERRORS = 1000, CONNECT_BURST = 256 };
enum mode { KEEPALIVE, CLOSE, PINGPONG, BULK, HOLD };
enum state { CONNECTING, IDLE, HEAD, BODY };

struct connection {
    int fd;
    enum state state;
    int name;          /* index of the service the request under way is for */
    int greeted;       /* the exchange before "ready" was made */
    int close_after;
    uint64_t start;    /* ns, when the request under way was sent or due */
    size_t held;       /* bytes of an unfinished head in `head` */
    size_t left;       /* of the response's body, or of the echo */
    size_t body_seen;
    char *head;
};

static enum mode mode;
static int connection_count = 64, rate, name_count;
static double seconds = 30;
static uint64_t operations = UINT64_MAX;
static size_t body_bytes;
static char *names[MAX_NAMES];
static const char *path = "/";
static struct sockaddr_in target = {.sin_family = AF_INET};

static struct connection *connections, **idle;
static int idle_count, greeted_count, opened_count, next_name, poller, timer = -1;
static int measuring;
static char *requests[MAX_NAMES], *buffer;
static size_t request_sizes[MAX_NAMES];
static uint64_t started, period, issued, due;   /* of the open loop: ns, ns, requests, requests */
static uint64_t bytes, errors, misrouted, reconnects;
static struct histogram latency;
static char first_error[128];

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void open_connection(struct connection *c)
{
    int one = 1;
    /* Bulk is level-triggered and reads once per event, so that its connections take turns. */
    struct epoll_event event = {.events = mode == BULK ? EPOLLIN : EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = mode == BULK ? BODY : CONNECTING;
    c->held = 0;
    c->close_after = 0;
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS)
        fail("connect");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail("epoll_ctl");
}

static void begin(struct connection *c, uint64_t start);

static void reopen(struct connection *c)
{
    close(c->fd);
    open_connection(c);
}

static void on_error(struct connection *c, const char *what)
{
    if (!errors++)
        snprintf(first_error, sizeof first_error, "%s", what);
    if (errors > MAX_ERRORS) {
        fprintf(stderr, "load: more than %d errors; the first: %s\n", MAX_ERRORS, first_error);
        exit(1);
    }
    reopen(c);
}

static void greeted(struct connection *c)
{
    if (c->greeted)
        return;
    c->greeted = 1;
    greeted_count++;
    if (opened_count < connection_count)
        open_connection(&connections[opened_count++]);
}

/* What a free connection does next: the next request of a closed loop, or the oldest one that is due. */
static void next_request(struct connection *c)
{
    if (!c->greeted)
        begin(c, now());
    else if (!measuring || mode == HOLD)
        c->state = IDLE;
    else if (!rate)
        begin(c, now());
    else if (issued < due)
        begin(c, started + ++issued * period);
    else {
        c->state = IDLE;
        idle[idle_count++] = c;
    }
}

static void send_all(struct connection *c, const char *data, size_t size)
{
    ssize_t n = send(c->fd, data, size, MSG_NOSIGNAL);

    /* Requests are smaller than an empty socket's buffer, so a short write is the peer's fault. */
    if (n != (ssize_t)size)
        on_error(c, n < 0 ? strerror(errno) : "short write");
}

static void begin(struct connection *c, uint64_t start)
{
    c->start = start;
    if (mode == PINGPONG) {
        c->state = BODY;
        c->left = body_bytes;
        send_all(c, requests[0], body_bytes);
        return;
    }
    c->state = HEAD;
    c->name = next_name;
    next_name = (next_name + 1) % name_count;
    send_all(c, requests[c->name], request_sizes[c->name]);
}

static void finish(struct connection *c)
{
    if (measuring && c->greeted)
        record(&latency, now() - c->start);
    greeted(c);
    if (mode == CLOSE || c->close_after) {
        reconnects++;
        c->state = IDLE;
        reopen(c);
    } else {
        next_request(c);
    }
}

/* Takes the head apart. Returns its size, 0 when more is needed, -1 when it is not what was asked for. */
static int take_head(struct connection *c, const char *data, size_t size)
{
    const char *end = memmem(data, size, "\r\n\r\n", 4), *line = data;
    int length = -1;

    if (!end)
        return size >= HEAD_MAX ? -1 : 0;
    end += 4;
    if (size < 13 || memcmp(data, "HTTP/1.1 200 ", 13))
        return -1;
    while ((line = memchr(line, '\n', end - line)) && ++line < end - 2) {
        if (!strncasecmp(line, "content-length:", 15))
            length = atoi(line + 15);
        else if (!strncasecmp(line, "connection: close", 17))
            c->close_after = 1;
    }
    if (length < 0)
        return -1;
    c->left = length;
    c->body_seen = 0;
    return (int)(end - data);
}

static void check_body(struct connection *c, const char *data, size_t size)
{
    const char *name = names[c->name];

    if (c->body_seen < strlen(name) && path[1] == 0) {
        size_t part = strlen(name) - c->body_seen;

        if (part > size)
            part = size;
        if (memcmp(data, name + c->body_seen, part))
            misrouted++;
    }
    c->body_seen += size;
}

/* Reads until the socket is empty (the poller is edge-triggered) or the connection has been replaced. */
static void on_readable(struct connection *c)
{
    for (;;) {
        int fd = c->fd;
        char *data = buffer;
        ssize_t n;
        size_t size;

        if (c->held)
            memcpy(buffer, c->head, c->held);
        n = recv(fd, buffer + c->held, READ_SIZE - c->held, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            if (c->state == IDLE && !n)
                reconnects++, reopen(c);
            else
                on_error(c, n < 0 ? strerror(errno) : "closed before the end of the response");
            return;
        }
        size = c->held + n;
        c->held = 0;
        if (measuring)
            bytes += n;
        if (mode == BULK) {
            greeted(c);
            return;
        }
        if (c->state == HEAD) {
            int head = take_head(c, data, size);

            if (head < 0) {
                snprintf(first_error, sizeof first_error, "%.*s", (int)(size < 60 ? size : 60), data);
                on_error(c, first_error);
                return;
            }
            if (!head) {
                if (!c->head)
                    c->head = malloc(HEAD_MAX);
                memcpy(c->head, data, size);
                c->held = size;
                continue;
            }
            c->state = BODY;
            data += head;
            size -= head;
            if (!size && c->left)
                continue;
        }
        if (c->state != BODY || size > c->left) {
            on_error(c, "bytes that belong to no response");
            return;
        }
        if (mode == PINGPONG) {
            if (memcmp(data, requests[0] + body_bytes - c->left, size))
                misrouted++;
        } else {
            check_body(c, data, size);
        }
        c->left -= size;
        if (c->left)
            continue;
        finish(c);
        /* A short read has emptied the socket: saves the caller's machine a system call per exchange. */
        if (c->fd != fd || (size_t)n < READ_SIZE)
            return;
    }
}

static void on_event(struct connection *c, uint32_t events)
{
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;

        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            on_error(c, strerror(error));
            return;
        }
        next_request(c);
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        on_readable(c);
}

static void on_timer(void)
{
    uint64_t ticks;

    if (read(timer, &ticks, sizeof ticks) == sizeof ticks)
        due += ticks;
    while (idle_count && issued < due)
        begin(idle[--idle_count], started + ++issued * period);
}

static void turn(int timeout_ms)
{
    struct epoll_event events[256];
    int n = epoll_wait(poller, events, 256, timeout_ms);

    for (int i = 0; i < n; i++) {
        if (events[i].data.ptr)
            on_event(events[i].data.ptr, events[i].events);
        else
            on_timer();
    }
}

static void start_timer(void)
{
    struct itimerspec every = {{0, (long)period}, {0, (long)period}};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};

    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (timer < 0 || timerfd_settime(timer, 0, &every, NULL) < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event) < 0)
        fail("timer");
}

static void make_requests(void)
{
    size_t room = body_bytes + 1024;

    if (mode == PINGPONG) {
        requests[0] = malloc(body_bytes);
        for (size_t i = 0; i < body_bytes; i++)
            requests[0][i] = 'a' + i % 26;
        return;
    }
    for (int i = 0; i < name_count; i++) {
        size_t n;

        requests[i] = malloc(room);
        n = snprintf(requests[i], room, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\nAccept: */*\r\n",
                     body_bytes ? "POST" : "GET", path, names[i]);
        if (mode == CLOSE)
            n += snprintf(requests[i] + n, room - n, "Connection: close\r\n");
        if (body_bytes)
            n += snprintf(requests[i] + n, room - n, "Content-Length: %zu\r\n", body_bytes);
        n += snprintf(requests[i] + n, room - n, "\r\n");
        memset(requests[i] + n, 'b', body_bytes);
        request_sizes[i] = n + body_bytes;
    }
}

static void parse_arguments(int argc, char **argv)
{
    static const char *const modes[] = {"keepalive", "close", "pingpong", "bulk", "hold"};
    int option, found = -1;

    while ((option = getopt(argc, argv, "m:c:t:n:r:s:p:b:")) != -1) {
        switch (option) {
        case 'm':
            for (int i = 0; i < 5; i++)
                if (!strcmp(optarg, modes[i]))
                    found = i;
            break;
        case 'c': connection_count = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'n': operations = strtoull(optarg, NULL, 10); break;
        case 'r': rate = atoi(optarg); break;
        case 's':
            for (char *name = strtok(optarg, ","); name && name_count < MAX_NAMES; name = strtok(NULL, ","))
                names[name_count++] = name;
            break;
        case 'p': path = optarg; break;
        case 'b': body_bytes = strtoul(optarg, NULL, 10); break;
        default: exit(2);
        }
    }
    if (found < 0 || optind != argc - 1 || connection_count < 1 || (found == PINGPONG && !body_bytes)) {
        fprintf(stderr, "usage: load -m keepalive|close|pingpong|bulk|hold -c CONNECTIONS [-t SECONDS] "
                        "[-n OPERATIONS] [-r RATE] [-s NAMES] [-p PATH] [-b BYTES] PORT\n");
        exit(2);
    }
    if (!name_count)
        names[name_count++] = "svc-a";
    mode = found;
    target.sin_port = htons(atoi(argv[optind]));
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

/* A connection that has waited a second for its answer is an error, although nothing was received on it. */
static void count_stalled(void)
{
    for (int i = 0; i < connection_count; i++)
        if (mode != BULK && connections[i].state != IDLE && connections[i].start + 1000000000ull < now() && !errors++)
            snprintf(first_error, sizeof first_error, "no answer for a second");
}

static void report(double elapsed)
{
    printf("{\"cpu_ns\": %llu, \"seconds\": %.6f, \"operations\": %llu, \"bytes\": %llu, \"errors\": %llu, "
           "\"misrouted\": %llu, \"reconnects\": %llu, \"mean_us\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, "
           "\"max_us\": %.1f, \"first_error\": \"",
           (unsigned long long)own_cpu_ns(), elapsed, (unsigned long long)latency.count, (unsigned long long)bytes,
           (unsigned long long)errors, (unsigned long long)misrouted, (unsigned long long)reconnects, mean_us(&latency),
           quantile_us(&latency, 0.5), quantile_us(&latency, 0.9), quantile_us(&latency, 0.99), latency.max_ns / 1e3);
    for (const char *p = first_error; *p; p++)
        putchar(*p >= ' ' && *p != '"' && *p != '\\' ? *p : ' ');
    puts("\"}");
}

int main(int argc, char **argv)
{
    struct rlimit files;
    uint64_t end, gave_up;
    char line[8];

    parse_arguments(argc, argv);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    make_requests();
    buffer = malloc(READ_SIZE + HEAD_MAX);
    connections = calloc(connection_count, sizeof *connections);
    idle = calloc(connection_count, sizeof *idle);
    poller = epoll_create1(EPOLL_CLOEXEC);

    while (opened_count < connection_count && opened_count < CONNECT_BURST)
        open_connection(&connections[opened_count++]);
    gave_up = now() + 30000000000ull;
    while (greeted_count < connection_count && now() < gave_up)
        turn(100);
    if (greeted_count < connection_count) {
        fprintf(stderr, "load: only %d of %d connections got an answer in 30 s%s%s\n", greeted_count, connection_count,
                errors ? "; the first error: " : "", first_error);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin) || mode == HOLD)
        return 0;

    measuring = 1;
    started = now();
    end = started + (uint64_t)(seconds * 1e9);
    if (rate) {
        period = 1000000000ull / rate;
        start_timer();
    }
    for (int i = 0; i < connection_count; i++)
        if (connections[i].state == IDLE)
            next_request(&connections[i]);
    while (now() < end && latency.count < operations)
        turn(10);
    count_stalled();
    report((now() - started) / 1e9);
    return 0;
}
