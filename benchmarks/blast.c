/*
 * A server as fast as C and one core allow, to show what the load generator can take. It speaks only to the load
 * generator: it answers every upgrade with the answer to RFC 6455's sample key, which is what the generator sends,
 * takes each text frame as a payload, and gives each connection everything that arrived in one turn of its loop in
 * one send(), in an envelope as long as the native protocol's.
 *
 *     blast [core]        prints "port N" and serves until it is killed
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 20000
#define BATCH (4u << 20)

struct peer {
    int fd;
    bool open; /* upgraded */
    size_t len;
    char in[65536];
    char *late; /* what the socket has not taken */
    size_t late_len;
};

static struct peer *peers[MOST];
static int count;
static char *batch;
static size_t batch_len;
static unsigned long offset;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void drop(int index) {
    struct peer *p = peers[index];
    close(p->fd);
    free(p->late);
    free(p);
    peers[index] = peers[--count];
}

static void push(struct peer *p, const char *data, size_t len) {
    if (p->late_len == 0) {
        ssize_t n = send(p->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) n = 0;
        data += n;
        len -= (size_t)n;
    }
    if (len == 0) return;
    p->late = realloc(p->late, p->late_len + len);
    if (p->late == NULL) die("realloc");
    memcpy(p->late + p->late_len, data, len);
    p->late_len += len;
}

static void retry(struct peer *p) {
    if (p->late_len == 0) return;
    ssize_t n = send(p->fd, p->late, p->late_len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0) return;
    memmove(p->late, p->late + n, p->late_len - (size_t)n);
    p->late_len -= (size_t)n;
}

static void envelope(const char *payload, size_t len) {
    char text[70000];
    if (len > sizeof text - 256) return;
    int head = sprintf(text, "{\"type\":\"broadcast\",\"room\":\"hot\",\"offset\":%lu,\"data\":\"", ++offset);
    memcpy(text + head, payload, len);
    memcpy(text + (size_t)head + len, "\"}", 2);
    size_t size = (size_t)head + len + 2;
    if (batch_len + size + 4 > BATCH) die("batch");
    unsigned char *b = (unsigned char *)batch + batch_len;
    *b++ = 0x81;
    if (size < 126) {
        *b++ = (unsigned char)size;
    } else {
        *b++ = 126;
        *b++ = (unsigned char)(size >> 8);
        *b++ = (unsigned char)size;
    }
    memcpy(b, text, size);
    batch_len = (size_t)((char *)b - batch) + size;
}

/* Whole frames in p->in; what is left stays. */
static void take(struct peer *p) {
    char *at = p->in, *end = p->in + p->len;
    if (!p->open) {
        char *stop = memmem(at, p->len, "\r\n\r\n", 4);
        if (stop == NULL) return;
        static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                     "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        push(p, answer, sizeof answer - 1);
        p->open = true;
        at = stop + 4;
    }
    while (end - at >= 6) {
        unsigned char *h = (unsigned char *)at;
        size_t size = h[1] & 0x7f, head = 2;
        if (size == 126) size = (size_t)h[2] << 8 | h[3], head = 4;
        if ((size_t)(end - at) < head + 4 + size) break;
        unsigned char *mask = h + head, *data = mask + 4;
        for (size_t i = 0; i < size; i++) data[i] ^= mask[i & 3];
        if ((h[0] & 0x0f) == 1) envelope((char *)data, size);
        at = (char *)data + size;
    }
    p->len = (size_t)(end - at);
    memmove(p->in, at, p->len);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(atoi(argv[1]), &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0) die("sched_setaffinity");
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    batch = malloc(BATCH);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poller = epoll_create1(0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4096) != 0) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    bool late = false;
    for (;;) {
        int n = epoll_wait(poller, events, 512, late ? 0 : -1);
        batch_len = 0;
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (p == NULL) {
                int fd;
                while (count < MOST && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    p = calloc(1, sizeof *p);
                    if (p == NULL) die("calloc");
                    p->fd = fd;
                    peers[count++] = p;
                    e.events = EPOLLIN;
                    e.data.ptr = p;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            ssize_t got = recv(p->fd, p->in + p->len, sizeof p->in - p->len, 0);
            if (got > 0) {
                p->len += (size_t)got;
                take(p);
            } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
                for (int k = 0; k < count; k++)
                    if (peers[k] == p) {
                        drop(k);
                        break;
                    }
            }
        }
        late = false;
        for (int i = 0; i < count; i++) {
            retry(peers[i]);
            if (batch_len > 0 && peers[i]->open) push(peers[i], batch, batch_len);
            late = late || peers[i]->late_len > 0;
        }
    }
}
