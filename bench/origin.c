/*
 * The backend of the measurements: one epoll loop, as cheap as it can be so that the forwarder in front of it is the
 * limit.
 *
 *   origin KIND:PORT[:NAME] ...
 *
 * http:PORT:NAME  answers every HTTP/1.1 request with 200 and a small body that begins with NAME (the caller checks by
 *                 it that the request reached the right service); a path that begins with /1m gets 1 MiB
 * echo:PORT       sends back what it receives
 * source:PORT     sends without end, whatever it receives
 * bolt:PORT       answers every Bolt v1 request at once; the answers to what was read together are written together
 *
 * Prints "ready" when every port listens. Runs until it is killed.
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
#include <sys/uio.h>
#include <unistd.h>

#include "bytes.h"

enum { SMALL_BODY = 128, LARGE_BODY = 1 << 20, HEAD_MAX = 4096, MAX_FDS = 65536, MAX_PORTS = 16 };
enum { BOLT_REQUEST = 22, BOLT_RESPONSE = 20, BOLT_ANSWER = 120 };  /* bytes: fixed headers, a whole response */
enum kind { FREE, LISTENER, HTTP, ECHO, SOURCE, BOLT };

struct port {
    enum kind serves;
    char small[512], large_head[256];
    size_t small_size, large_head_size;
};

struct connection {
    enum kind kind;
    struct port *port;
    uint32_t events;
    size_t held;           /* bytes of an unfinished head or frame in `head` */
    size_t body_left;      /* of the request */
    size_t sent, to_send;  /* of the response under way, head included; Bolt: of `answers` */
    int large, close_after;
    char *head;
    char *answers;         /* that the socket had no room for */
};

static struct connection *connections;
static char *filler, *scratch, *bolt_out;
static char bolt_answer[BOLT_ANSWER];
static int poller;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    int op = connections[fd].events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

    if (connections[fd].events == events)
        return;
    if (epoll_ctl(poller, op, fd, &event) < 0)
        fail("epoll_ctl");
    connections[fd].events = events;
}

static void drop(int fd)
{
    free(connections[fd].head);
    free(connections[fd].answers);
    memset(&connections[fd], 0, sizeof connections[fd]);
    close(fd);
}

/* Sends what is left of the response. 1 = all sent, 0 = the socket is full, -1 = the connection is gone. */
static int respond(int fd)
{
    struct connection *c = &connections[fd];
    struct port *port = c->port;

    while (c->sent < c->to_send) {
        struct iovec part[2];
        int parts = 0;
        ssize_t n;

        if (!c->large) {
            part[parts++] = (struct iovec){port->small + c->sent, c->to_send - c->sent};
        } else {
            size_t in_head = c->sent < port->large_head_size ? port->large_head_size - c->sent : 0;

            if (in_head)
                part[parts++] = (struct iovec){port->large_head + c->sent, in_head};
            part[parts++] = (struct iovec){filler, c->to_send - c->sent - in_head};
        }
        n = writev(fd, part, parts);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        c->sent += n;
    }
    return 1;
}

static size_t content_length(const char *head, const char *end)
{
    for (const char *line = head; line < end; line = memchr(line, '\n', end - line) + 1)
        if (!strncasecmp(line, "content-length:", 15))
            return strtoul(line + 15, NULL, 10);
    return 0;
}

static int asks_to_close(const char *head, const char *end)
{
    for (const char *line = head; line < end; line = memchr(line, '\n', end - line) + 1)
        if (!strncasecmp(line, "connection:", 11))
            return memmem(line, end - line, "close", 5) != NULL;
    return 0;
}

/* Serves every complete request of the span and keeps an unfinished head. -1 = the connection is gone. */
static int serve(int fd, char *data, size_t size)
{
    struct connection *c = &connections[fd];

    while (size) {
        char *end;

        if (c->body_left) {
            size_t body = size < c->body_left ? size : c->body_left;

            c->body_left -= body;
            data += body;
            size -= body;
        } else {
            end = memmem(data, size, "\r\n\r\n", 4);
            if (!end) {
                if (size >= HEAD_MAX)
                    return -1;
                if (!c->head)
                    c->head = malloc(HEAD_MAX);
                memmove(c->head, data, size);
                c->held = size;
                return 0;
            }
            end += 4;
            c->close_after = asks_to_close(data, end - 2);
            c->body_left = content_length(data, end - 2);
            c->large = memmem(data, end - data, " /1m", 4) != NULL;
            c->sent = 0;
            c->to_send = c->large ? c->port->large_head_size + LARGE_BODY : c->port->small_size;
            size -= end - data;
            data = end;
        }
        if (c->body_left || !c->to_send)
            continue;
        switch (respond(fd)) {
        case -1:
            return -1;
        case 0:
            if (size)  /* a pipelined request behind a large response: the load generator sends none */
                return -1;
            watch(fd, EPOLLOUT);
            return 0;
        }
        c->to_send = 0;
        if (c->close_after)
            return -1;
    }
    return 0;
}

static void on_http(int fd, uint32_t events)
{
    struct connection *c = &connections[fd];
    ssize_t n;

    if (events & EPOLLOUT) {
        int done = respond(fd);

        if (done < 0 || (done && c->close_after)) {
            drop(fd);
            return;
        }
        if (!done)
            return;
        c->to_send = 0;
        watch(fd, EPOLLIN);
        return;
    }
    memcpy(scratch, c->head ? c->head : "", c->held);
    n = recv(fd, scratch + c->held, LARGE_BODY, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n > 0) {
        size_t size = c->held + n;

        c->held = 0;
        if (serve(fd, scratch, size) == 0)
            return;
    }
    drop(fd);
}

static void on_echo(int fd)
{
    ssize_t n = recv(fd, scratch, 65536, 0);

    if (n < 0 && errno == EAGAIN)
        return;
    /* A ping-pong message always fits into the socket's buffer; a caller that sends more without reading is dropped. */
    if (n <= 0 || send(fd, scratch, n, MSG_NOSIGNAL) != n)
        drop(fd);
}

static void on_source(int fd, uint32_t events)
{
    if (events & (EPOLLERR | EPOLLHUP) || (send(fd, filler, 256 << 10, MSG_NOSIGNAL) < 0 && errno != EAGAIN))
        drop(fd);
}

/* Bolt v1: a response of class SofaResponse with some content, but for its id. */
static void make_bolt_answer(void)
{
    static const char name[] = "com.alipay.sofa.rpc.core.response.SofaResponse";
    uint16_t name_size = htons(sizeof name - 1);
    uint32_t content_size = htonl(BOLT_ANSWER - BOLT_RESPONSE - (sizeof name - 1));

    memset(bolt_answer, '.', BOLT_ANSWER);
    memcpy(bolt_answer, "\1\0\0\2\1....\1\0\0", 12);
    memcpy(bolt_answer + 12, &name_size, 2);
    memset(bolt_answer + 14, 0, 2);
    memcpy(bolt_answer + 16, &content_size, 4);
    memcpy(bolt_answer + BOLT_RESPONSE, name, sizeof name - 1);
}

/* Answers one whole request into `to`; returns the answer's size. */
static size_t answer_bolt(const char *request, char *to)
{
    if (request[1] != 1)  /* one-way */
        return 0;
    memcpy(to, bolt_answer, BOLT_ANSWER);
    memcpy(to + 5, request + 5, 4);
    if (be16(request + 2))
        return BOLT_ANSWER;
    memset(to + 2, 0, 2);  /* a heartbeat */
    memset(to + 12, 0, 8);
    return BOLT_RESPONSE;
}

/* Sends the answers and keeps what the socket has no room for. -1 = the connection is gone. */
static int send_answers(int fd, const char *answers, size_t size)
{
    struct connection *c = &connections[fd];
    ssize_t n = send(fd, answers, size, MSG_NOSIGNAL);

    if (n < 0 && errno != EAGAIN)
        return -1;
    if (n < 0)
        n = 0;
    if ((size_t)n < size) {
        c->answers = malloc(size - n);
        memcpy(c->answers, answers + n, size - n);
        c->sent = 0;
        c->to_send = size - n;
        watch(fd, EPOLLOUT);  /* who does not read is not read from */
    }
    return 0;
}

static void on_bolt(int fd, uint32_t events)
{
    struct connection *c = &connections[fd];
    size_t at = 0, out = 0, size, frame;
    ssize_t n;

    if (events & EPOLLOUT) {
        n = send(fd, c->answers + c->sent, c->to_send - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            drop(fd);
        else if (n > 0 && (c->sent += n) == c->to_send) {
            free(c->answers);
            c->answers = NULL;
            watch(fd, EPOLLIN);
        }
        return;
    }
    memcpy(scratch, c->head ? c->head : "", c->held);
    n = recv(fd, scratch + c->held, LARGE_BODY, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        drop(fd);
        return;
    }
    size = c->held + n;
    for (; size - at >= BOLT_REQUEST; at += frame) {
        const char *p = scratch + at;

        frame = BOLT_REQUEST + be16(p + 14) + be16(p + 16) + be32(p + 18);
        if (p[0] != 1 || frame > HEAD_MAX) {
            drop(fd);
            return;
        }
        if (frame > size - at)
            break;
        out += answer_bolt(p, bolt_out + out);
    }
    c->held = size - at;
    if (c->held && !c->head)
        c->head = malloc(HEAD_MAX);
    memcpy(c->head ? c->head : scratch, scratch + at, c->held);
    if (out && send_answers(fd, bolt_out, out) < 0)
        drop(fd);
}

static void on_listener(int fd)
{
    int one = 1, accepted;

    while ((accepted = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (accepted >= MAX_FDS) {
            close(accepted);
            continue;
        }
        setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[accepted].port = connections[fd].port;
        connections[accepted].kind = connections[fd].port->serves;
        watch(accepted, connections[accepted].kind == SOURCE ? EPOLLOUT : EPOLLIN);
    }
}

static void listen_on(struct port *port, const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char kind[16], name[64] = "";
    int one = 1, number, fd;
    size_t head;

    if (sscanf(text, "%15[a-z]:%d:%63s", kind, &number, name) < 2) {
        fprintf(stderr, "origin: %s: expected KIND:PORT[:NAME]\n", text);
        exit(2);
    }
    port->serves = !strcmp(kind, "http") ? HTTP : !strcmp(kind, "echo") ? ECHO : !strcmp(kind, "bolt") ? BOLT : SOURCE;
    head = snprintf(port->small, sizeof port->small,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", SMALL_BODY);
    memset(port->small + head, '.', SMALL_BODY);
    memcpy(port->small + head, name, strlen(name));
    port->small_size = head + SMALL_BODY;
    port->large_head_size = snprintf(port->large_head, sizeof port->large_head,
                                     "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
                                     "Content-Length: %d\r\n\r\n", LARGE_BODY);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    address.sin_port = htons(number);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0)
        fail(text);
    connections[fd].kind = LISTENER;
    connections[fd].port = port;
    watch(fd, EPOLLIN);
}

int main(int argc, char **argv)
{
    static struct port ports[MAX_PORTS];
    struct rlimit files;
    struct epoll_event events[256];

    if (argc < 2 || argc > MAX_PORTS) {
        fprintf(stderr, "usage: origin KIND:PORT[:NAME] ...\n");
        return 2;
    }
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    connections = calloc(MAX_FDS, sizeof *connections);
    filler = malloc(LARGE_BODY);
    memset(filler, 'x', LARGE_BODY);
    scratch = malloc(HEAD_MAX + LARGE_BODY);
    bolt_out = malloc((size_t)(HEAD_MAX + LARGE_BODY) / BOLT_REQUEST * BOLT_ANSWER);
    make_bolt_answer();
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 1; i < argc; i++)
        listen_on(&ports[i - 1], argv[i]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poller, events, 256, -1);

        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;

            switch (connections[fd].kind) {
            case LISTENER: on_listener(fd); break;
            case HTTP: on_http(fd, events[i].events); break;
            case ECHO: on_echo(fd); break;
            case SOURCE: on_source(fd, events[i].events); break;
            case BOLT: on_bolt(fd, events[i].events); break;
            case FREE: break;
            }
        }
    }
}
