/* The load generator: one thread, epoll, closed loop, loopback only. Prints one JSON object.
 *
 *   load PORT connect  CONCURRENCY SECONDS SIZE        connect, send, receive the echo, close; again
 *   load PORT pingpong CONCURRENCY SECONDS SIZE LINES  LINES lines of SIZE bytes in all, and their echo; again
 *   load PORT hold     CONCURRENCY                     connect, one byte each, then wait for the end of standard input
 *   load PORT mixed    HEAVY SECONDS                   one client sends "light", and after its echo rests a millisecond;
 *                                                      HEAVY clients send "heavy", which the server takes time to echo.
 *                                                      The times are the light client's, the jobs the heavy ones'
 *   load PORT chat     CLIENTS SECONDS SIZE SPEAKERS   the server sends each line to all clients; a speaker (26 at most)
 *                                                      says the next one when it has its own back, which is timed.
 *                                                      "delivered" are the lines that all clients have received
 *
 * Clients come from 127.0.0.2 to 127.0.0.251, since one address has some 28,000 ports, and a closed connection keeps its
 * port for a minute. A run that an error disturbs says so in "errors".
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
#include <time.h>
#include <unistd.h>

enum { ADDRESSES = 250, EVENTS = 256, SINK = 65536 };
static const double GRACE = 5; /* seconds after the end for a run that has got stuck */
static const int64_t REST = 1000000, NEVER = INT64_MAX; /* ns */
static const char LIGHT[] = "light\n", HEAVY[] = "heavy\n"; /* as long as each other */
/* In a mixed load, this program stands for clients on other machines, whom the server's computing cannot keep from
 * reading their replies. Here it can: so the program goes ahead of the server, and what it measures is the server's
 * doing alone. That takes little from the jobs, since it hardly computes. Most users may not raise a priority; for them
 * the times of every server include this program's own waits for a processor. "nice" tells which it was. */
static const int NICENESS = -5;

struct client {
    int socket;
    int connected;
    const char *message;
    size_t sent, received;
    int64_t started; /* ns */
};

static int port, epoll, opened;
static size_t size = 1;
static char *message, *sink;
static uint32_t *times; /* ns */
static size_t taken, room, errors;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void take(int64_t nanoseconds) {
    if (taken == room) {
        room = room ? room * 2 : 1 << 20;
        times = realloc(times, room * sizeof *times);
        if (!times) fail("memory");
    }
    times[taken++] = nanoseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)nanoseconds;
}

static void open_client(struct client *c) {
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    int on = 1;
    c->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->socket < 0) fail("socket");
    setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    from.sin_addr.s_addr = htonl(0x7f000002 + opened++ % ADDRESSES);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(port);
    if (bind(c->socket, (struct sockaddr *)&from, sizeof from)) fail("bind");
    c->connected = 0;
    if (!c->message) c->message = message;
    c->sent = c->received = 0;
    c->started = now();
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if (connect(c->socket, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) fail("connect");
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->socket, &event)) fail("epoll_ctl");
}

/* Sends what is left of the message, and asks to be told when there is room for more. */
static int send_more(struct client *c) {
    while (c->sent < size) {
        ssize_t n = send(c->socket, c->message + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) break;
            return -1;
        }
        c->sent += n;
    }
    struct epoll_event event = {.events = EPOLLIN | (c->sent < size ? EPOLLOUT : 0), .data.ptr = c};
    return epoll_ctl(epoll, EPOLL_CTL_MOD, c->socket, &event);
}

/* Returns 0, or -1 on an error. */
static int begin_round(struct client *c) {
    c->sent = c->received = 0;
    c->started = now();
    return send_more(c);
}

/* Returns 1 when a round is complete, 0 when more is to come, -1 on an error. */
static int step(struct client *c, uint32_t events) {
    if (!c->connected) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(c->socket, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) return -1;
        c->connected = 1;
    }
    if (events & EPOLLOUT && send_more(c)) return -1;
    while (events & EPOLLIN && c->received < size) {
        ssize_t n = recv(c->socket, sink, size, 0);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return -1;
        c->received += n;
    }
    return c->received == size;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) { return taken ? times[(size_t)(share * (taken - 1))] / 1e3 : 0; }

static void repeat(int count, double seconds, int connects, int holds) {
    struct client *clients = calloc(count, sizeof *clients);
    int64_t end = now() + (int64_t)(seconds * 1e9);
    int done = 0;
    /* Clients that only hold come one after the other in small groups, so that the backlog does not overflow. */
    int next = holds && count > 64 ? 64 : count;
    for (int i = 0; i < next; i++) open_client(clients + i);
    while (holds ? done < count : now() < end) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 100);
        if (n < 0 && errno != EINTR) fail("epoll_wait");
        if (now() > end + GRACE * 1e9) { errors++; break; }
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            int result = step(c, events[i].events);
            if (!result) continue;
            int64_t at = now();
            if (result < 0) errors++;
            else take(at - c->started);
            if (holds) {
                done++;
                epoll_ctl(epoll, EPOLL_CTL_DEL, c->socket, NULL);
                if (next < count) open_client(clients + next++);
            } else if (result < 0 || connects) {
                close(c->socket);
                open_client(c);
            } else {
                c->sent = c->received = 0;
                c->started = at;
                if (send_more(c)) errors++;
            }
        }
    }
}

/* Returns how many heavy jobs are done in time. What is measured begins when every client is being served, which a round
 * with "light" tells, and ends when the light client has the answer that it then waits for, however late. */
static size_t mix(int heavy, double seconds) {
    struct client *clients = calloc(heavy + 1, sizeof *clients), *light = clients;
    int served = 0;
    size_t jobs = 0;
    int64_t end = NEVER, due = NEVER; /* the light client's next round; NEVER while it waits for an answer */
    int64_t stuck = now() + (int64_t)(GRACE * 1e9);
    for (int i = 0; i <= heavy; i++) {
        clients[i].message = LIGHT;
        open_client(clients + i);
    }
    while (now() < end || due == NEVER) {
        struct epoll_event events[EVENTS];
        int64_t left = due - now();
        int n = epoll_wait(epoll, events, EVENTS, due == NEVER ? 100 : left < 0 ? 0 : (int)((left + 999999) / 1000000));
        if (n < 0 && errno != EINTR) fail("epoll_wait");
        if (now() > stuck) return errors++, jobs;
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            /* Who has had the answer expects nothing but its own next round: this would be the end of the stream. */
            int result = c->received == size ? -1 : step(c, events[i].events);
            if (!result) continue;
            if (result < 0) return errors++, jobs;
            int64_t at = now();
            if (end == NEVER) {
                if (++served <= heavy) continue;
                end = at + (int64_t)(seconds * 1e9);
                stuck = end + (int64_t)(GRACE * 1e9);
                due = at;
                for (int other = 1; other <= heavy; other++) {
                    clients[other].message = HEAVY;
                    if (begin_round(clients + other)) return errors++, jobs;
                }
            } else if (c == light) {
                take(at - c->started);
                due = at + REST;
            } else {
                jobs += at < end;
                if (begin_round(c)) return errors++, jobs;
            }
        }
        if (now() >= due && now() < end) {
            due = NEVER;
            if (begin_round(light)) return errors++, jobs;
        }
    }
    return jobs;
}

/* Returns how many lines are delivered in time. That begins when every client has received something. */
static size_t talk(int count, int speakers, double seconds) {
    struct client *clients = calloc(count, sizeof *clients);
    int unreached = count;
    size_t delivered = 0; /* bytes */
    int64_t end = NEVER, stuck = now() + (int64_t)(2 * GRACE * 1e9), at;
    char *lines = malloc(speakers * size);
    for (int i = 0; i < count; i++) {
        if (i < speakers) {
            clients[i].message = memset(lines + i * size, 'a' + i, size);
            lines[(i + 1) * size - 1] = '\n';
        }
        open_client(clients + i);
        if (i >= speakers) clients[i].sent = size; /* nothing to say */
    }
    while ((at = now()) < end) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 100);
        if (n < 0 && errno != EINTR) fail("epoll_wait");
        if (at > stuck) return errors++, delivered / size;
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            int speaks = c - clients < speakers, hears_itself = 0;
            if (events[i].events & EPOLLOUT && send_more(c)) return errors++, delivered / size;
            if (!(events[i].events & ~EPOLLOUT)) continue;
            ssize_t got = recv(c->socket, sink, SINK, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) return errors++, delivered / size;
            if (!c->received && !--unreached) {
                delivered = taken = 0;
                end = now() + (int64_t)(seconds * 1e9);
                stuck = end + (int64_t)(GRACE * 1e9);
            }
            /* All lines are equally long, and consist of their speaker's letter. */
            for (size_t next = (size - c->received % size) % size; speaks && next < (size_t)got; next += size)
                hears_itself |= sink[next] == c->message[0];
            c->received += got;
            delivered += got;
            if (hears_itself) {
                take(now() - c->started);
                c->sent = 0;
                c->started = now();
                if (send_more(c)) return errors++, delivered / size;
            }
        }
    }
    return delivered / size;
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: see the top of load.c\n"), 2;
    port = atoi(argv[1]);
    int connects = !strcmp(argv[2], "connect"), holds = !strcmp(argv[2], "hold"), mixes = !strcmp(argv[2], "mixed");
    int talks = !strcmp(argv[2], "chat");
    if (argc < (holds ? 4 : mixes ? 5 : talks ? 7 : 6)) return fprintf(stderr, "usage: see the top of load.c\n"), 2;
    int count = atoi(argv[3]);
    double seconds = holds ? 60 : atof(argv[4]);
    if (mixes) size = strlen(LIGHT);
    else if (!holds) size = strtoul(argv[5], NULL, 10);
    size_t lines = argc > 6 && !connects && !talks ? strtoul(argv[6], NULL, 10) : 1;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    message = malloc(size);
    sink = malloc(size > SINK ? size : SINK);
    memset(message, 'x', size);
    for (size_t line = 1; line <= lines; line++) message[size * line / lines - 1] = '\n';
    epoll = epoll_create1(0);
    int64_t began = now();
    size_t jobs = 0, delivered = 0;
    if (talks) {
        delivered = talk(count, atoi(argv[6]), seconds);
    } else if (mixes) {
        setpriority(PRIO_PROCESS, 0, NICENESS); /* refused to most users, who then go without */
        jobs = mix(count, seconds);
    } else {
        repeat(count, seconds, connects, holds);
    }
    double took = (now() - began) / 1e9, measured = mixes || talks ? seconds : took;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    size_t rounds = taken;
    qsort(times, taken, sizeof *times, by_value);
    printf("{\"rounds\": %zu, \"seconds\": %.6f, \"errors\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
           "\"load_cpu\": %.3f",
           rounds, measured, errors, percentile(.5), percentile(.99), percentile(1), cpu / took);
    if (mixes) printf(", \"jobs\": %zu, \"nice\": %d", jobs, getpriority(PRIO_PROCESS, 0));
    if (talks) printf(", \"delivered\": %zu", delivered);
    puts("}");
    fflush(stdout);
    if (holds) {
        char byte;
        while (read(0, &byte, 1) > 0) continue;
    }
    return 0;
}
