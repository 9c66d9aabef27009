/*
 * The Bolt load generator of the measurements: callers that share connections, each with one call under way.
 *
 *   bolt_load -s SERVICES [-c CONNECTIONS] [-k CALLERS] [-t SECONDS] [-n CALLS] [-r RATE] PORT
 *
 * Each connection has CALLERS callers. A caller makes its next call when its answer came (with -r: when one is due too,
 * at a fixed rate, and latency counts from the moment that it was due). Calls are Bolt v1 requests of about 300 bytes,
 * for SERVICES (a,b,c) in turn. Calls of one connection that become ready in one turn of the loop are written together.
 *
 * After one call on every connection it prints "ready" and waits for a line on standard input, so that the caller can
 * read its counters; then it runs until SECONDS are over or CALLS are done and prints one JSON object.
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
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "bytes.h"
#include "latency.h"

enum { READ_SIZE = 256 << 10, FRAME_MAX = 64 << 10, MAX_SERVICES = 16, MAX_STATUS = 32 };
enum { RESPONSE = 20, CONTENT = 24 };  /* bytes: a response's fixed header, a request's content */

struct caller {
    struct connection *connection;
    uint32_t id;       /* of the call under way: the caller's number, plus a multiple of the number of callers */
    uint64_t start;    /* ns, when that was sent or due; 0 = none is under way */
};

struct connection {
    int fd, greeted, blocked, dirty;
    size_t held, out_size, out_sent;
    char *in, *out;    /* an unfinished frame and what is read behind it; calls that are not sent yet */
};

static int connection_count = 1, caller_count = 64, total_callers, rate, service_count;
static double seconds = 30;
static uint64_t calls = UINT64_MAX;
static char *services[MAX_SERVICES], *requests[MAX_SERVICES];
static size_t request_sizes[MAX_SERVICES], request_max;
static struct sockaddr_in target = {.sin_family = AF_INET};

static struct connection *connections, **dirty;
static struct caller *callers, **idle;
static int dirty_count, idle_count, greeted_count, next_service, poller, timer = -1, measuring;
static uint64_t started, period, issued, due;  /* of a fixed rate: ns, ns, calls, calls */
static uint64_t bytes, errors, statuses[MAX_STATUS];
static struct histogram latency;
static char first_error[128];

static void fail(const char *what)
{
    fprintf(stderr, "bolt_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* What happens to a connection that is shared by many callers ends the run. */
static void give_up(const char *what)
{
    fprintf(stderr, "bolt_load: %s\n", what);
    exit(1);
}

static char *put16(char *to, uint16_t x)
{
    x = htons(x);
    return mempcpy(to, &x, 2);
}

static char *put32(char *to, uint32_t x)
{
    x = htonl(x);
    return mempcpy(to, &x, 4);
}

static char *put_string(char *to, const char *text)
{
    return mempcpy(put32(to, strlen(text)), text, strlen(text));
}

static void make_request(int i)
{
    static const char name[] = "com.alipay.sofa.rpc.core.request.SofaRequest";
    const char *pairs[][2] = {
        {"service", services[i]},
        {"sofa_head_target_service", services[i]},
        {"sofa_head_method_name", "sayHello"},
        {"sofa_head_target_app", ""},
        {"rpc_trace_context.sofaTraceId", "0a00020f1700000000000100112345"},
    };
    char *p = requests[i] = malloc(FRAME_MAX), *header;

    p = mempcpy(p, "\1\1\0\1\1....\1", 10);
    p = put32(p, 3000);  /* timeout, ms */
    p = put16(p, sizeof name - 1);
    header = mempcpy(p + 6, name, sizeof name - 1);
    for (size_t pair = 0; pair < sizeof pairs / sizeof *pairs; pair++)
        header = put_string(put_string(header, pairs[pair][0]), pairs[pair][1]);
    p = put16(p, header - p - 6 - (sizeof name - 1));
    put32(p, CONTENT);
    memset(header, 'c', CONTENT);
    request_sizes[i] = header + CONTENT - requests[i];
    if (request_sizes[i] > request_max)
        request_max = request_sizes[i];
}

static void watch(struct connection *c, int operation)
{
    struct epoll_event event = {.events = c->blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};

    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        fail("epoll_ctl");
}

static void open_connection(struct connection *c)
{
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&target, sizeof target) < 0)
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->in = malloc(FRAME_MAX + READ_SIZE);
    c->out = malloc(caller_count * request_max);
    watch(c, EPOLL_CTL_ADD);
}

/* Appends the caller's next call to what its connection has to send. */
static void begin(struct caller *caller, uint64_t start)
{
    struct connection *c = caller->connection;
    char *request = c->out + c->out_size;

    memcpy(request, requests[next_service], request_sizes[next_service]);
    put32(request + 5, caller->id += total_callers);
    c->out_size += request_sizes[next_service];
    caller->start = start;
    next_service = (next_service + 1) % service_count;
    if (!c->dirty)
        dirty[dirty_count++] = c;
    c->dirty = 1;
}

static void next_call(struct caller *caller, uint64_t time)
{
    if (measuring && !rate)
        begin(caller, time);
    else if (measuring && issued < due)
        begin(caller, started + ++issued * period);
    else
        idle[idle_count++] = caller;
}

static void flush(struct connection *c)
{
    ssize_t n = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    int blocked;

    if (n < 0 && errno != EAGAIN)
        give_up(strerror(errno));
    c->out_sent += n > 0 ? n : 0;
    blocked = c->out_sent < c->out_size;
    /* What is unsent moves up, so that the buffer holds a call of every caller. */
    memmove(c->out, c->out + c->out_sent, c->out_size - c->out_sent);
    c->out_size -= c->out_sent;
    c->out_sent = 0;
    c->dirty = 0;
    if (blocked != c->blocked) {
        c->blocked = blocked;
        watch(c, EPOLL_CTL_MOD);
    }
}

static void flush_dirty(void)
{
    while (dirty_count) {
        struct connection *c = dirty[--dirty_count];

        if (c->blocked)
            c->dirty = 0;  /* the poller tells when there is room */
        else
            flush(c);
    }
}

static void on_response(struct connection *c, const char *frame, uint64_t time)
{
    uint32_t id = be32(frame + 5);
    uint16_t status = be16(frame + 10);
    struct caller *caller = &callers[id % total_callers];

    if (caller->connection != c || caller->id != id || !caller->start)
        give_up("an answer to no call");
    if (status && !errors++)
        snprintf(first_error, sizeof first_error, "status %d", status);
    statuses[status < MAX_STATUS ? status : MAX_STATUS - 1]++;
    if (measuring)
        record(&latency, time - caller->start);
    caller->start = 0;
    if (!c->greeted) {
        c->greeted = 1;
        greeted_count++;
    }
    next_call(caller, time);
}

static void on_readable(struct connection *c)
{
    ssize_t n = recv(c->fd, c->in + c->held, READ_SIZE, MSG_DONTWAIT);
    size_t at = 0, size, frame;
    uint64_t time = now();

    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        give_up(n ? strerror(errno) : "the connection was closed");
    if (measuring)
        bytes += n;
    size = c->held + n;
    for (; size - at >= RESPONSE; at += frame) {
        const char *p = c->in + at;

        frame = RESPONSE + be16(p + 12) + be16(p + 14) + be32(p + 16);
        if (memcmp(p, "\1\0\0\2", 4) || frame > FRAME_MAX)
            give_up("bytes that are no response");
        if (frame > size - at)
            break;
        on_response(c, p, time);
    }
    memmove(c->in, c->in + at, size - at);
    c->held = size - at;
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
        struct connection *c = events[i].data.ptr;

        if (!c) {
            on_timer();
            continue;
        }
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            on_readable(c);
        if (events[i].events & EPOLLOUT)
            flush(c);
    }
    flush_dirty();
}

static void start_timer(void)
{
    struct itimerspec every = {{0, (long)period}, {0, (long)period}};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};

    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (timer < 0 || timerfd_settime(timer, 0, &every, NULL) < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event) < 0)
        fail("timer");
}

static void parse_arguments(int argc, char **argv)
{
    int option;

    while ((option = getopt(argc, argv, "c:k:t:n:r:s:")) != -1) {
        switch (option) {
        case 'c': connection_count = atoi(optarg); break;
        case 'k': caller_count = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'n': calls = strtoull(optarg, NULL, 10); break;
        case 'r': rate = atoi(optarg); break;
        case 's':
            for (char *name = strtok(optarg, ","); name && service_count < MAX_SERVICES; name = strtok(NULL, ","))
                services[service_count++] = name;
            break;
        default: exit(2);
        }
    }
    if (optind != argc - 1 || connection_count < 1 || caller_count < 1 || !service_count) {
        fprintf(stderr, "usage: bolt_load -s SERVICES [-c CONNECTIONS] [-k CALLERS] [-t SECONDS] [-n CALLS] [-r RATE] "
                        "PORT\n");
        exit(2);
    }
    total_callers = connection_count * caller_count;
    target.sin_port = htons(atoi(argv[optind]));
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

/* A call that has waited a second for its answer is an error, although nothing was received for it. */
static void count_stalled(void)
{
    for (int i = 0; i < total_callers; i++)
        if (callers[i].start && callers[i].start + 1000000000ull < now() && !errors++)
            snprintf(first_error, sizeof first_error, "no answer for a second");
}

static void report(double elapsed)
{
    const char *comma = "";

    printf("{\"cpu_ns\": %llu, \"seconds\": %.6f, \"operations\": %llu, \"bytes\": %llu, \"errors\": %llu, "
           "\"first_error\": \"%s\", \"mean_us\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
           "\"statuses\": {",
           (unsigned long long)own_cpu_ns(), elapsed, (unsigned long long)latency.count, (unsigned long long)bytes,
           (unsigned long long)errors, first_error, mean_us(&latency), quantile_us(&latency, 0.5),
           quantile_us(&latency, 0.99), latency.max_ns / 1e3);
    for (int i = 0; i < MAX_STATUS; i++)
        if (statuses[i]) {
            printf("%s\"%d\": %llu", comma, i, (unsigned long long)statuses[i]);
            comma = ", ";
        }
    puts("}}");
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
    for (int i = 0; i < service_count; i++)
        make_request(i);
    connections = calloc(connection_count, sizeof *connections);
    dirty = calloc(connection_count, sizeof *dirty);
    callers = calloc(total_callers, sizeof *callers);
    idle = calloc(total_callers, sizeof *idle);
    poller = epoll_create1(EPOLL_CLOEXEC);

    for (int i = 0; i < total_callers; i++) {
        callers[i].connection = &connections[i % connection_count];
        callers[i].id = i;
        if (i < connection_count) {
            open_connection(&connections[i]);
            begin(&callers[i], now());
        } else {
            idle[idle_count++] = &callers[i];
        }
    }
    gave_up = now() + 30000000000ull;
    flush_dirty();
    while (greeted_count < connection_count && now() < gave_up)
        turn(100);
    if (greeted_count < connection_count || errors) {
        fprintf(stderr, "bolt_load: %d of %d connections got an answer in 30 s; %s\n", greeted_count, connection_count,
                first_error);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        return 0;

    measuring = 1;
    started = now();
    end = started + (uint64_t)(seconds * 1e9);
    if (rate) {
        period = 1000000000ull / rate;
        start_timer();
    } else {
        while (idle_count)
            begin(idle[--idle_count], started);
    }
    flush_dirty();
    while (now() < end && latency.count < calls)
        turn(10);
    count_stalled();
    report((now() - started) / 1e9);
    return 0;
}
