/* An echo server to measure the load generator against: one thread, epoll, little else. Prints its port. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS = 256, CHUNK = 65536, BACKLOG = 4096 };

int main(void) {
    static char buffer[CHUNK];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0), on = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (listener < 0 || epoll < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, BACKLOG) ||
        getsockname(listener, (struct sockaddr *)&address, &length) ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) {
        perror("echo");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int client = events[i].data.fd;
            if (client == listener) {
                client = accept4(listener, NULL, NULL, 0); /* its sends may block: no client here is slow to read */
                if (client < 0) continue;
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                event.data.fd = client;
                if (epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event)) close(client);
                continue;
            }
            ssize_t size = recv(client, buffer, CHUNK, 0), sent = 0, part = 0;
            for (; sent < size; sent += part)
                if ((part = send(client, buffer + sent, size - sent, MSG_NOSIGNAL)) <= 0) break;
            if (size <= 0 || part < 0) close(client);
        }
    }
}
