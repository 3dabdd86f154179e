// A server for benches: one thread, epoll, keep-alive, the same small reply to every request.
//     stub REPLY_BODY_BYTES    listens on a free port of 127.0.0.1, prints it, and serves until it is killed.
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 1 << 16, HEAD = 4096 };

// What has come of a connection's request; `need` is its length, known once its head is whole. Nobody pipelines.
struct request {
    long came, need;
    char head[HEAD];
};

static struct request *requests[CONNECTIONS];

static void drop(int fd) {
    free(requests[fd]);
    requests[fd] = NULL;
    close(fd);
}

static void take(struct request *request, const char *data, long n) {
    if (!request->need && request->came + n < HEAD) {
        memcpy(request->head + request->came, data, n);
        request->head[request->came + n] = 0;
        char *end = strstr(request->head, "\r\n\r\n");
        char *length = strcasestr(request->head, "\r\ncontent-length:");
        if (end) request->need = end + 4 - request->head + (length && length < end ? atol(length + 17) : 0);
    }
    request->came += n;
}

int main(int argc, char **argv) {
    int body = argc > 1 ? atoi(argv[1]) : 0, on = 1;
    char *reply = malloc(body + 256);
    int reply_bytes = sprintf(reply,
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
        "content-type: application/json\r\n\r\n{\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":"
        "{\"role\":\"assistant\",\"content\":\"", body);
    int head = strstr(reply, "\r\n\r\n") + 4 - reply;
    const char *tail = "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}}";
    int filler = body - (reply_bytes - head) - strlen(tail);
    if (filler < 0) return fprintf(stderr, "the reply is too short\n"), 1;
    memset(reply + reply_bytes, 'x', filler);
    strcpy(reply + reply_bytes + filler, tail);
    reply_bytes = head + body;

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    bind(listening, (struct sockaddr *)&address, size);
    listen(listening, 4096);
    getsockname(listening, (struct sockaddr *)&address, &size);
    epoll_ctl(poll, EPOLL_CTL_ADD, listening, &(struct epoll_event){.events = EPOLLIN, .data.fd = listening});
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    static char data[1 << 18];
    struct epoll_event ready[1024];
    for (;;) {
        int count = epoll_wait(poll, ready, 1024, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listening) {
                int accepted = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
                if (accepted < 0 || accepted >= CONNECTIONS) return perror("accept"), 1;
                setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                requests[accepted] = calloc(1, sizeof(struct request));
                epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &(struct epoll_event){.events = EPOLLIN, .data.fd = accepted});
                continue;
            }
            long n = recv(fd, data, sizeof data, 0);
            if (n <= 0) {
                drop(fd);
                continue;
            }
            take(requests[fd], data, n);
            if (requests[fd]->need && requests[fd]->came >= requests[fd]->need) {
                requests[fd]->came = requests[fd]->need = 0;
                if (send(fd, reply, reply_bytes, MSG_NOSIGNAL) != reply_bytes) drop(fd);
            }
        }
    }
}
