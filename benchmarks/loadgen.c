/*
 * The load generator: one thread, one epoll, N WebSocket connections.
 *
 * It knows WebSockets and nothing of the protocols above them. What a client says and what it waits for is given as
 * a dialogue on the command line, so every server is measured by the same code:
 *
 *     --send TEXT --expect TEXT ...   in the order in which they happen; {i} is the connection's index, {n} a number
 *                                     used once, {token} its line of --tokens, {cap} what --capture found
 *     --publish TEXT                  what a publisher sends; {payload} is the payload
 *
 * Every payload carries its publisher, a sequence number and a pattern made from both:
 *
 *     ~RB pp ssssssssss pattern...    (3 + 2 hex + 10 hex + the rest; '~' occurs nowhere else)
 *
 * A delivery counts only if those bytes are exactly the ones this connection must see next from this publisher.
 * Anything else (twice, out of order unless --unordered, changed) ends the run with an error; what is missing after the drain, too.
 * A frame may hold several objects separated by newlines, and one read several frames.
 *
 * With --commanded the clients of a fan-out stay, and a number on standard input is what to do: so many in flight for --seconds
 * after --warmup, which is added to what has been measured, or, if it is 0, to report that and to begin anew. Generators of
 * several servers take turns like this: with a disturbance that is longer than a turn nobody fares better or worse.
 *
 * The result is one JSON object on standard output. Times are seconds unless the name says otherwise.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_ZLIB
#include <zlib.h>
#endif

#define READ_SIZE (1u << 20)
#define MAX_FRAME (16u << 20)
#define SEVERAL 16
#define MAX_STEPS 32
#define MAX_LIST 16
#define RING 4096u
#define SMALL 1024u /* bytes of a payload of which several make one segment */
#define ACK_NS 5000u /* for how many acknowledgements there is time: what one takes, and some more */
#define MAX_CACHED (64u << 10)
#define MARK "~RB"
#define HEAD 15u /* marker, publisher, sequence */
#define MAX_SAMPLES (4u << 20)

/* RFC 6455, section 1.3: the sample key and the answer a server must give to it. */
#define WS_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum mode { FANOUT, CONNECT, IDLE, STORM };
enum state { UNUSED, CONNECTING, UPGRADING, TALKING, FILLING, LIVE };

struct step {
    bool expect;
    const char *text;
};

struct dialogue {
    struct step steps[MAX_STEPS];
    int count;
};

struct conn {
    int fd;
    uint8_t state;
    bool deflate;     /* permessage-deflate was agreed on */
    bool takeover;    /* ... and the server keeps its window from message to message */
    bool wants_write; /* EPOLLOUT is on */
    bool acks_first;  /* what it reads next is acknowledged at once */
    bool acks_later;  /* what it reads is acknowledged when there is time */
    bool unacked;     /* it waits for that */
    int step;
    uint32_t filled;
    uint64_t *expected; /* the next sequence number, by publisher */
    uint32_t *seen;     /* --unordered: the last number + 1 seen of each place in the ring, by publisher */
    char *carry;        /* the beginning of a frame that has not ended yet */
    size_t carry_len, carry_cap;
    char *out; /* what the socket has not taken yet */
    size_t out_len, out_cap;
    char *capture;
    uint64_t opened_ns, asked_ns;
#ifdef HAVE_ZLIB
    z_stream *inflater;
#endif
};

/* ------------------------------------------------------------------ options */

static enum mode mode = FANOUT;
static int ports[MAX_LIST], port_count;
static const char *path = "/";
static const char *subprotocol;
static const char *headers[MAX_LIST];
static int header_count;
static struct dialogue first, again;
static const char *publish_text;
static const char *ping_text, *pong_text, *fail_text, *capture_after;
static const char *fill_send, *fill_expect;
static uint32_t fill_repeat;
static int fill_steps; /* how much of the dialogue the fillers speak: they connect, but stay out of the room */
static int connections = 500, fillers, concurrency = 64, publishers = 1, in_flight = 1, probes;
static uint32_t backlog = 100;
static size_t payload_size = 64;
static double warmup = 1.0, duration = 3.0, patience = 60.0;
static int pids[MAX_LIST], pid_count, core = -1;
static bool offer_deflate, unordered, commanded;
static char **tokens;
static size_t token_count;

/* ------------------------------------------------------------------ state */

static int poller;
static struct conn *conns;
static int total; /* connections and fillers */
static int next_open, opening, ready;
static char *buffer; /* the one read buffer; a carried beginning is put in front */
static size_t buffer_cap;
#ifdef HAVE_ZLIB
static char *inflated;
static size_t inflated_cap;
#endif

static char *payloads; /* RING payloads of payload_size bytes */
static struct slot {
    uint64_t id; /* publisher << 48 | sequence + 1; 0: unused */
    uint64_t sent_ns;
    int remaining;
} *slots; /* RING of them for each publisher */
static uint64_t *next_seq;
static int receivers;
static int due; /* publications to send when the current read has been handled */
static int turn_publisher;
static bool publishing;
static uint64_t received_bytes, reads, reordered, deliveries, completed, outstanding, others, pings, subprotocol_chosen, deflate_chosen;
static bool returning; /* a storm: the second dialogue is spoken */
static uint64_t now;
static bool spin = true;
static uint64_t idle_ns;
static uint64_t unique_number;

static uint64_t *samples;
static size_t sample_count;
static bool sampling;
static uint64_t *dialogue_ns; /* by connection: from its TCP connect to the end of its dialogue */
static uint64_t *last_step_ns; /* by connection: from its last question to the answer */

static struct cached {
    uint64_t from; /* expected + 1; 0: empty */
    uint32_t len, advance;
    bool deflate;
    char *bytes;
} *cache; /* frames that came together and were checked, by the sequence number they begin at */

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void print_json_string(const char *text, size_t len) {
    putchar('"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') printf("\\%c", c);
        else if (c < 0x20 || c >= 0x7f) printf("\\u%04x", c);
        else putchar(c);
    }
    putchar('"');
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (len < 0) len = 0;
    if ((size_t)len >= sizeof text) len = (int)sizeof text - 1;
    printf("{\"error\": ");
    print_json_string(text, (size_t)len);
    printf("}\n");
    fflush(stdout);
    _exit(1);
}

static void *must(void *memory) {
    if (memory == NULL) fail("out of memory");
    return memory;
}

static int index_of(const struct conn *c) { return (int)(c - conns); }

/* CPU time of the servers in seconds, with their threads. Their CPU clocks are read: /proc counts in steps of 10 ms, which is
 * much of a short run. */
static double server_cpu(void) {
    double sum = 0;
    for (int i = 0; i < pid_count; i++) {
        clockid_t clock;
        struct timespec used;
        if (clock_getcpuclockid(pids[i], &clock) != 0 || clock_gettime(clock, &used) != 0)
            fail("server process %d has gone", pids[i]);
        sum += (double)used.tv_sec + (double)used.tv_nsec / 1e9;
    }
    return sum;
}

static double own_cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec)
           + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* ------------------------------------------------------------------ writing */

static void watch(struct conn *c, bool write) {
    struct epoll_event e = {.events = EPOLLIN | (write ? (uint32_t)EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e) != 0) fail("epoll_ctl: %s", strerror(errno));
    c->wants_write = write;
}

static void flush_out(struct conn *c) {
    size_t done = 0;
    while (done < c->out_len) {
        ssize_t n = send(c->fd, c->out + done, c->out_len - done, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) break;
            if (errno == EINTR) continue;
            fail("connection %d: send: %s", index_of(c), strerror(errno));
        }
        done += (size_t)n;
    }
    memmove(c->out, c->out + done, c->out_len - done);
    c->out_len -= done;
    bool write = c->out_len > 0;
    if (write != c->wants_write) watch(c, write);
}

static char *reserve_out(struct conn *c, size_t more) {
    if (c->out_len + more > c->out_cap) {
        c->out_cap = (c->out_len + more) * 2;
        c->out = must(realloc(c->out, c->out_cap));
    }
    return c->out + c->out_len;
}

/* Appends a masked frame; flush_out sends it. */
static void append_frame(struct conn *c, int opcode, const char *data, size_t len) {
    static uint32_t seed = 0x9e3779b9u;
    char *p = reserve_out(c, len + 14);
    char *start = p;
    *p++ = (char)(0x80 | opcode);
    if (len < 126) {
        *p++ = (char)(0x80 | len);
    } else if (len < 65536) {
        *p++ = (char)(0x80 | 126);
        *p++ = (char)(len >> 8);
        *p++ = (char)len;
    } else {
        *p++ = (char)(0x80 | 127);
        for (int shift = 56; shift >= 0; shift -= 8) *p++ = (char)((uint64_t)len >> shift);
    }
    seed = seed * 1664525u + 1013904223u;
    char mask[4];
    memcpy(mask, &seed, 4);
    memcpy(p, mask, 4);
    p += 4;
    for (size_t i = 0; i < len; i++) p[i] = (char)(data[i] ^ mask[i & 3]);
    p += len;
    c->out_len += (size_t)(p - start);
}

/* Replaces {i}, {n}, {token} and {cap}. The result is valid until the next call. */
static const char *fill_in(struct conn *c, const char *text) {
    static char *result;
    static size_t cap;
    size_t len = 0;
    for (const char *p = text; *p != 0;) {
        char number[32];
        const char *value = NULL;
        size_t skip = 0;
        if (strncmp(p, "{i}", 3) == 0) {
            snprintf(number, sizeof number, "%d", index_of(c));
            value = number, skip = 3;
        } else if (strncmp(p, "{n}", 3) == 0) {
            snprintf(number, sizeof number, "%llu", (unsigned long long)unique_number++);
            value = number, skip = 3;
        } else if (strncmp(p, "{token}", 7) == 0) {
            if (token_count == 0) fail("{token} without --tokens");
            value = tokens[(size_t)index_of(c) % token_count], skip = 7;
        } else if (strncmp(p, "{cap}", 5) == 0) {
            if (c->capture == NULL) fail("connection %d: nothing was captured", index_of(c));
            value = c->capture, skip = 5;
        }
        size_t add = value != NULL ? strlen(value) : 1;
        if (len + add + 1 > cap) {
            cap = (len + add + 1) * 2;
            result = must(realloc(result, cap));
        }
        memcpy(result + len, value != NULL ? value : p, add);
        len += add;
        p += value != NULL ? skip : 1;
    }
    if (result == NULL) result = must(calloc(1, cap = 1));
    result[len] = 0;
    return result;
}

static void say(struct conn *c, const char *text) {
    const char *filled = fill_in(c, text);
    append_frame(c, 1, filled, strlen(filled));
    c->asked_ns = now;
    flush_out(c);
}

/* ------------------------------------------------------------------ publishing */

static const char *const words[64] = {
    "alpha",  "river",  "stone",  "light",  "paper",  "green",  "market", "signal", "window", "garden", "copper",
    "silver", "engine", "planet", "winter", "summer", "butter", "castle", "dragon", "finger", "guitar", "hammer",
    "island", "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pencil", "quartz", "rocket", "saddle",
    "tunnel", "urgent", "valley", "walnut", "yellow", "zipper", "anchor", "basket", "candle", "desert", "effort",
    "forest", "glider", "harbor", "insect", "jungle", "kitten", "lemon",  "magnet", "napkin", "oyster", "pocket",
    "rabbit", "socket", "temple", "uphill", "velvet", "wander", "yogurt", "zenith", "marble"};

/* Small payloads are random letters; from 1 KB on they are words, which compress about as text does. */
static void make_payload(char *p, unsigned publisher, uint64_t seq) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    char head[HEAD + 1];
    snprintf(head, sizeof head, MARK "%02x%010llx", publisher & 0xffu, (unsigned long long)(seq & 0xffffffffffu));
    memcpy(p, head, HEAD);
    uint64_t x = (seq + 1) * 0x9e3779b97f4a7c15u ^ ((uint64_t)publisher << 32) ^ 0xd1b54a32d192ed03u;
    size_t i = HEAD;
    while (i < payload_size) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        if (payload_size < 1024) {
            uint64_t bits = x;
            for (int k = 0; k < 10 && i < payload_size; k++, bits >>= 6) p[i++] = letters[bits & 63];
        } else {
            const char *word = words[x >> 58];
            while (*word != 0 && i < payload_size) p[i++] = *word++;
            if (i < payload_size) p[i++] = ' ';
        }
    }
}

static struct slot *slot_of(unsigned publisher, uint64_t seq) {
    return &slots[(size_t)publisher * RING + (size_t)(seq % RING)];
}

static char *payload_of(unsigned publisher, uint64_t seq) {
    return payloads + ((size_t)publisher * RING + (size_t)(seq % RING)) * payload_size;
}

static uint64_t slot_id(unsigned publisher, uint64_t seq) { return ((uint64_t)publisher << 48) + seq + 1; }

/* Sends what is due: one frame for each publication, one write for each publisher. */
static void publish_due(void) {
    static char *message;
    static size_t prefix, suffix;
    static const char *tail;
    if (message == NULL) {
        const char *hole = strstr(publish_text, "{payload}");
        if (hole == NULL) fail("--publish has no {payload}");
        prefix = (size_t)(hole - publish_text);
        tail = hole + strlen("{payload}");
        suffix = strlen(tail);
        message = must(malloc(prefix + payload_size + suffix));
        memcpy(message, publish_text, prefix);
        memcpy(message + prefix + payload_size, tail, suffix);
    }
    if (due == 0) return;
    now = clock_ns();
    for (; due > 0; due--) {
        unsigned publisher = (unsigned)turn_publisher;
        turn_publisher = (turn_publisher + 1) % publishers;
        uint64_t seq = next_seq[publisher]++;
        struct slot *s = slot_of(publisher, seq);
        make_payload(payload_of(publisher, seq), publisher, seq);
        s->id = slot_id(publisher, seq);
        s->sent_ns = now;
        s->remaining = receivers;
        outstanding++;
        memcpy(message + prefix, payload_of(publisher, seq), payload_size);
        append_frame(&conns[publisher], 1, message, prefix + payload_size + suffix);
    }
    for (int i = 0; i < publishers; i++)
        if (conns[i].out_len > 0 && !conns[i].wants_write) flush_out(&conns[i]);
}

static void complete(struct slot *s) {
    completed++;
    outstanding--;
    if (sampling && sample_count < MAX_SAMPLES) samples[sample_count++] = clock_ns() - s->sent_ns;
    if (publishing) due++;
}

/* ------------------------------------------------------------------ acknowledging */

static struct conn **unacked; /* a ring: those that are to acknowledge when there is time */
static int unacked_first, unacked_count;

static void quick_acks(const struct conn *c, int on) {
    if (setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on) != 0) fail("TCP_QUICKACK: %s", strerror(errno));
}

/* Linux acknowledges each read of a client that only listens, which costs as much as the rest of the read. That is what receivers
 * begin with, and what they do when nothing is measured. */
static void ack_at_once(void) {
    for (int i = 0; i < connections; i++) {
        struct conn *c = &conns[i];
        quick_acks(c, 1);
        c->acks_first = c->acks_later = c->unacked = false;
    }
    unacked_count = 0;
}

static void ack(const struct conn *c) {
    quick_acks(c, 1);
    quick_acks(c, 0);
}

/* Whether two reads of so many bytes are less than what the kernel takes for a full segment, the largest it has seen of late. Of
 * what is more, it acknowledges every other one as it arrives, which is on the sender's core. */
static bool may_delay(uint64_t size) {
    struct tcp_info info;
    socklen_t len = sizeof info;
    if (getsockopt(conns[0].fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0) fail("TCP_INFO: %s", strerror(errno));
    return 2 * size <= info.tcpi_rcv_mss;
}

/* Of a client that talks as well, every other read is acknowledged. That makes receivers like those, until one has had to
 * acknowledge because nothing came for 40 ms. Half of them begin with an acknowledgement: else all would send theirs in the same
 * round, and the generator would keep up in every other one only. */
static void ack_every_other(void) {
    for (int i = 0; i < connections; i++) {
        quick_acks(&conns[i], 0);
        conns[i].acks_first = i % 2 == 1;
    }
}

/* Some receivers acknowledge when there is nothing to read, which is while the server thinks: as many as there is time for. If the
 * generator is idle even so, it is not what the server waits for. */
static void ack_in_pauses(int some) {
    if (some > connections) some = connections;
    for (int i = 0; i < connections; i++) {
        conns[i].acks_later = (int64_t)(i + 1) * some / connections > (int64_t)i * some / connections;
        quick_acks(&conns[i], !conns[i].acks_later);
    }
}

static void ack_later(struct conn *c) {
    if (c->unacked) return;
    c->unacked = true;
    unacked[(unacked_first + unacked_count++) % connections] = c;
}

/* Acknowledges what has waited longest; returns whether anything did. */
static bool ack_next(void) {
    if (unacked_count == 0) return false;
    struct conn *c = unacked[unacked_first];
    unacked_first = (unacked_first + 1) % connections;
    unacked_count--;
    c->unacked = false;
    ack(c);
    return true;
}

/* ------------------------------------------------------------------ reading */

/* --unordered: `seq` has arrived, in order; what comes after it may have arrived before. */
static void pass_seen(struct conn *c, unsigned publisher, uint64_t seq) {
    uint32_t *seen = c->seen + (size_t)publisher * RING;
    seen[seq % RING] = (uint32_t)seq + 1;
    while (seen[c->expected[publisher] % RING] == (uint32_t)c->expected[publisher] + 1) c->expected[publisher]++;
}

/* Where a '~' was found. Returns how many bytes belong to it; ends the run if it is not the next payload. */
static inline size_t take(struct conn *c, const char *p, size_t left) {
    unsigned publisher = 0;
    if (publishers > 1 && left >= HEAD) {
        unsigned high = (unsigned char)p[3], low = (unsigned char)p[4];
        high = high <= '9' ? high - '0' : high - 'a' + 10;
        low = low <= '9' ? low - '0' : low - 'a' + 10;
        publisher = (high << 4 | low) & 0xff;
        if (publisher >= (unsigned)publishers) publisher = 0;
    }
    uint64_t seq = c->expected[publisher];
    struct slot *s = slot_of(publisher, seq);
    if (left >= payload_size && s->id == slot_id(publisher, seq)
        && memcmp(p, payload_of(publisher, seq), payload_size) == 0) {
        c->expected[publisher] = seq + 1;
        if (c->seen != NULL) pass_seen(c, publisher, seq);
        deliveries++;
        if (--s->remaining == 0) complete(s);
        return payload_size;
    }
    if (left >= sizeof MARK - 1 && memcmp(p, MARK, sizeof MARK - 1) != 0) return 1;
    if (c->seen != NULL && left >= payload_size) {
        char digits[11] = {0};
        memcpy(digits, p + 5, 10);
        uint64_t early = strtoull(digits, NULL, 16);
        s = slot_of(publisher, early);
        uint32_t *last = &c->seen[(size_t)publisher * RING + (size_t)(early % RING)];
        if (s->id == slot_id(publisher, early) && *last != (uint32_t)early + 1
            && memcmp(p, payload_of(publisher, early), payload_size) == 0) {
            *last = (uint32_t)early + 1;
            reordered++;
            deliveries++;
            if (--s->remaining == 0) complete(s);
            return payload_size;
        }
    }
    fail("connection %d: expected number %llu of publisher %u, got %.*s", index_of(c), (unsigned long long)seq,
         publisher, (int)(left < 80 ? left : 80), p);
}

static void count_in(struct conn *c);

static const struct dialogue *dialogue_of(void) { return returning ? &again : &first; }

static void talk(struct conn *c) {
    const struct dialogue *d = dialogue_of();
    int count = index_of(c) >= connections ? fill_steps : d->count;
    while (c->step < count && !d->steps[c->step].expect) say(c, d->steps[c->step++].text);
    if (c->step < count) return;
    last_step_ns[index_of(c)] = now - c->asked_ns;
    if (index_of(c) >= connections && fill_repeat > 0) {
        c->state = FILLING;
        say(c, fill_send);
        return;
    }
    count_in(c);
}

static void count_in(struct conn *c) {
    c->state = LIVE;
    dialogue_ns[index_of(c)] = now - c->opened_ns;
    opening--;
    ready++;
}

/* Keeps the JSON value that follows `capture_after`, whatever its type: up to a , ] or } outside of it. */
static void capture(struct conn *c, const char *p, size_t len) {
    if (capture_after == NULL) return;
    size_t key = strlen(capture_after);
    const char *found = memmem(p, len, capture_after, key);
    if (found == NULL) return;
    const char *start = found + key, *end = p + len, *q = start;
    int depth = 0;
    bool quoted = false;
    for (; q < end; q++) {
        if (quoted) {
            if (*q == '\\') q++;
            else if (*q == '"') quoted = false;
        } else if (*q == '"') quoted = true;
        else if (*q == '{' || *q == '[') depth++;
        else if ((*q == '}' || *q == ']' || *q == ',') && depth == 0) break;
        else if (*q == '}' || *q == ']') depth--;
    }
    if (q > end) q = end;
    free(c->capture);
    c->capture = must(strndup(start, (size_t)(q - start)));
}

/* An object without a payload: a question of the server's, an answer this client waits for, or an error. */
static void hear(struct conn *c, const char *p, size_t len) {
    if (ping_text != NULL && len == strlen(ping_text) && memcmp(p, ping_text, len) == 0) {
        pings++;
        append_frame(c, 1, pong_text, strlen(pong_text));
        flush_out(c);
        return;
    }
    if (fail_text != NULL && memmem(p, len, fail_text, strlen(fail_text)) != NULL)
        fail("connection %d: the server said %.*s", index_of(c), (int)(len < 300 ? len : 300), p);
    others++;
    if (c->state == FILLING) {
        if (memmem(p, len, fill_expect, strlen(fill_expect)) == NULL) return;
        if (++c->filled == fill_repeat) count_in(c);
        else say(c, fill_send);
    }
}

static bool answers(struct conn *c, const char *p, size_t len) {
    if (c->state != TALKING) return false;
    const char *wanted = dialogue_of()->steps[c->step].text;
    if (memmem(p, len, wanted, strlen(wanted)) == NULL) return false;
    capture(c, p, len);
    c->step++;
    talk(c);
    return true;
}

/* One message: objects separated by newlines. */
static void objects(struct conn *c, const char *p, size_t len) {
    const char *end = p + len;
    while (p < end) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        if (stop == NULL) stop = end;
        if (c->state != LIVE && answers(c, p, (size_t)(stop - p))) {
            p = stop + 1;
            continue;
        }
        const char *hit = memchr(p, '~', (size_t)(stop - p));
        if (hit == NULL) {
            hear(c, p, (size_t)(stop - p));
        } else {
            do {
                hit += take(c, hit, (size_t)(stop - hit));
                hit = memchr(hit, '~', (size_t)(stop - hit));
            } while (hit != NULL);
        }
        p = stop + 1;
    }
}

#ifdef HAVE_ZLIB
static void compressed(struct conn *c, const char *p, size_t len) {
    if (c->inflater == NULL) {
        c->inflater = must(calloc(1, sizeof *c->inflater));
        if (inflateInit2(c->inflater, -15) != Z_OK) fail("inflateInit2");
    }
    z_stream *z = c->inflater;
    size_t used = 0;
    static const unsigned char tail[4] = {0, 0, 0xff, 0xff}; /* RFC 7692, section 7.2.2 */
    for (int part = 0; part < 2; part++) {
        z->next_in = part == 0 ? (Bytef *)(uintptr_t)p : (Bytef *)(uintptr_t)tail;
        z->avail_in = part == 0 ? (uInt)len : sizeof tail;
        do {
            if (used + 65536 > inflated_cap) {
                if (inflated_cap >= MAX_FRAME) fail("connection %d: inflated message too large", index_of(c));
                inflated_cap = inflated_cap == 0 ? 1u << 18 : inflated_cap * 2;
                inflated = must(realloc(inflated, inflated_cap));
            }
            z->next_out = (Bytef *)inflated + used;
            z->avail_out = (uInt)(inflated_cap - used);
            int r = inflate(z, Z_SYNC_FLUSH);
            used = inflated_cap - z->avail_out;
            if (r == Z_STREAM_END) break;
            if (r != Z_OK && r != Z_BUF_ERROR) fail("connection %d: inflate: %d", index_of(c), r);
        } while (z->avail_in > 0 || z->avail_out == 0);
    }
    if (!c->takeover) inflateReset(z);
    objects(c, inflated, used);
}
#endif

/* Handles the whole frames in p; returns how many bytes they were. */
static size_t frames(struct conn *c, const char *start, size_t len) {
    const char *p = start, *end = start + len;
    while (end - p >= 2) {
        const unsigned char *h = (const unsigned char *)p;
        size_t size = h[1] & 0x7f, head = 2;
        if (size == 126) {
            head = 4;
            if ((size_t)(end - p) < head) break;
            size = (size_t)h[2] << 8 | h[3];
        } else if (size == 127) {
            head = 10;
            if ((size_t)(end - p) < head) break;
            size = 0;
            for (int i = 2; i < 10; i++) size = size << 8 | h[i];
        }
        if (size > MAX_FRAME) fail("connection %d: frame of %zu bytes", index_of(c), size);
        if ((size_t)(end - p) < head + size) break;
        const char *data = p + head;
        p = data + size;
        if (h[1] & 0x80) fail("connection %d: the server masked a frame", index_of(c));
        int opcode = h[0] & 0x0f;
        if (opcode == 0x9) {
            pings++;
            append_frame(c, 0xA, data, size);
            flush_out(c);
        } else if (opcode == 0x8) {
            unsigned code = size >= 2 ? (unsigned)(unsigned char)data[0] << 8 | (unsigned char)data[1] : 1005;
            fail("connection %d: closed by the server with %u %.*s", index_of(c), code,
                 size > 2 ? (int)size - 2 : 0, data + 2);
        } else if (opcode == 0x1 || opcode == 0x2) {
            if (!(h[0] & 0x80)) fail("connection %d: a fragmented message", index_of(c));
            if (h[0] & 0x40) {
                if (!c->deflate) fail("connection %d: a compressed frame, but nothing was agreed on", index_of(c));
#ifdef HAVE_ZLIB
                compressed(c, data, size);
#endif
            } else {
                objects(c, data, size);
            }
        } else if (opcode != 0xA) {
            fail("connection %d: opcode %d", index_of(c), opcode);
        }
    }
    return (size_t)(p - start);
}

/* What another connection had at the same place was right, so the same bytes are. Returns how many those are, at the beginning of p. */
static size_t known_frames(struct conn *c, const char *p, size_t len) {
    uint64_t from = c->expected[0];
    const struct cached *known = &cache[from % RING];
    if (known->from != from + 1 || known->len > len || known->deflate != c->deflate) return 0;
    if (memcmp(known->bytes, p, known->len) != 0) return 0;
    c->expected[0] = from + known->advance;
    deliveries += known->advance;
    for (uint32_t i = 0; i < known->advance; i++) {
        struct slot *s = slot_of(0, from + i);
        if (--s->remaining == 0) complete(s);
    }
    return known->len;
}

static void remember_frames(const struct conn *c, const char *p, size_t len, uint64_t from) {
    if (len > MAX_CACHED) return;
    struct cached *place = &cache[from % RING];
    place->bytes = must(realloc(place->bytes, len));
    memcpy(place->bytes, p, len);
    place->len = (uint32_t)len;
    place->deflate = c->deflate;
    place->from = from + 1;
    place->advance = (uint32_t)(c->expected[0] - from);
}

/* `frames`, where all connections are sent the same: what comes first to one of them is looked into, and compared for the others,
 * who may get it in other portions. */
static size_t shared_frames(struct conn *c, const char *p, size_t len) {
    size_t used = 0, known;
    while (used < len && (known = known_frames(c, p + used, len - used)) > 0) used += known;
    if (used == len) return len;
    uint64_t from = c->expected[0], heard = others + pings;
    size_t more = frames(c, p + used, len - used);
    if (heard == others + pings && c->expected[0] > from) remember_frames(c, p + used, more, from);
    return used + more;
}

/* The answer to the upgrade. Returns its length, 0 if it has not ended yet. */
static size_t upgraded(struct conn *c, char *p, size_t len) {
    char *end = memmem(p, len, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    char saved = *end;
    *end = 0;
    if (strncmp(p, "HTTP/1.1 101", 12) != 0) fail("connection %d: %.200s", index_of(c), p);
    if (strstr(p, WS_ACCEPT) == NULL) fail("connection %d: wrong Sec-WebSocket-Accept", index_of(c));
    if (strcasestr(p, "\r\nsec-websocket-protocol:") != NULL) subprotocol_chosen++;
    if (strcasestr(p, "permessage-deflate") != NULL) {
        c->deflate = true;
        c->takeover = strcasestr(p, "server_no_context_takeover") == NULL;
        deflate_chosen++;
    }
    *end = saved;
    c->state = TALKING;
    talk(c);
    return (size_t)(end + 4 - p);
}

static void on_readable(struct conn *c) {
    size_t carried = c->carry_len;
    if (carried + READ_SIZE > buffer_cap) {
        buffer_cap = carried + READ_SIZE;
        buffer = must(realloc(buffer, buffer_cap));
    }
    ssize_t n = recv(c->fd, buffer + carried, buffer_cap - carried, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0)
        fail("connection %d: %s in state %d", index_of(c), n == 0 ? "closed by the server" : strerror(errno), c->state);
    received_bytes += (uint64_t)n;
    reads++;
    if (c->acks_first) {
        c->acks_first = false;
        ack(c);
    }
    if (c->acks_later) ack_later(c);
    if (carried > 0) memcpy(buffer, c->carry, carried);
    size_t len = carried + (size_t)n, used = 0;
    if (c->state == UPGRADING) used = upgraded(c, buffer, len);
    if (c->state > UPGRADING) {
        bool shared = c->state == LIVE && publishers == 1 && !unordered && !(c->deflate && c->takeover);
        used += (shared ? shared_frames : frames)(c, buffer + used, len - used);
    }
    c->carry_len = len - used;
    if (c->carry_len > 0) {
        if (c->carry_len > c->carry_cap) {
            c->carry_cap = c->carry_len * 2;
            c->carry = must(realloc(c->carry, c->carry_cap));
        }
        memcpy(c->carry, buffer + used, c->carry_len);
    }
}

/* ------------------------------------------------------------------ connecting */

static void upgrade(struct conn *c) {
    char *p = reserve_out(c, 16384);
    int port = ports[index_of(c) % port_count];
    size_t n = (size_t)snprintf(p, 8192,
                                "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " WS_KEY "\r\n",
                                path, port);
    if (subprotocol != NULL)
        n += (size_t)snprintf(p + n, 1024, "Sec-WebSocket-Protocol: %s\r\n", subprotocol);
    if (offer_deflate)
        n += (size_t)snprintf(p + n, 256,
                              "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
                              "client_no_context_takeover\r\n");
    for (int i = 0; i < header_count; i++) {
        const char *line = fill_in(c, headers[i]);
        if (n + strlen(line) + 8 > 16384) fail("headers too long");
        n += (size_t)sprintf(p + n, "%s\r\n", line);
    }
    memcpy(p + n, "\r\n", 2);
    c->out_len += n + 2;
    c->state = UPGRADING;
    flush_out(c);
}

static void open_one(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket: %s (%d open)", strerror(errno), ready);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* Closing with RST leaves no port in TIME_WAIT: a storm of thousands can be repeated at once. */
    struct linger hard = {.l_onoff = 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)ports[index_of(c) % port_count])};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->opened_ns = c->asked_ns = now;
    c->step = 0;
    c->state = CONNECTING;
    c->wants_write = true;
    opening++;
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e) != 0) fail("epoll_ctl: %s", strerror(errno));
}

static void close_one(struct conn *c) {
    close(c->fd);
    c->fd = -1;
    c->state = UNUSED;
    c->carry_len = c->out_len = 0;
    c->deflate = false;
#ifdef HAVE_ZLIB
    if (c->inflater != NULL) inflateReset(c->inflater);
#endif
    ready--;
}

/* Few sockets were ready: asking again at once would find one or two, and contend with the server for the poller's
 * lock. Some microseconds later it finds several, against broadcasts that take milliseconds. */
static bool sparse;
static uint64_t pause_ns = 10000;

/* One turn of the loop; timeout in ms. A spinning generator asks without waiting: it has a core of its own, and to
 * wake a sleeping one would cost the server an interrupt for each write. What it spent on empty answers is idle. */
static void turn(int timeout) {
    static struct epoll_event events[512];
    uint64_t asked = spin ? clock_ns() : 0;
    if (spin && sparse) {
        uint64_t until = asked + pause_ns, at = asked;
        while (at < until && ack_next()) at = clock_ns();
        if (at < until) idle_ns += until - at;
        while (at < until) at = clock_ns();
        asked = at;
    }
    int n = epoll_wait(poller, events, 512, spin ? 0 : timeout);
    if (n < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
    now = clock_ns();
    sparse = n < 8;
    /* Longer than that it was not asking, but taken off its core. */
    if (spin && n == 0 && now - asked < 20000) idle_ns += now - asked;
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->state == CONNECTING) {
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error != 0) fail("connect: %s", strerror(error));
            upgrade(c);
            continue;
        }
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            on_readable(c);
            if (due > 0) publish_due();
        }
        if (events[i].events & EPOLLOUT && c->out_len > 0) flush_out(c);
    }
}

/* Opens connections up to (not including) `end`, never more than `limit` unfinished at a time. */
static void open_all(int end, int limit) {
    uint64_t deadline = clock_ns() + (uint64_t)(patience * 1e9);
    int target = ready + (end - next_open);
    while (ready < target) {
        now = clock_ns();
        while (next_open < end && opening < limit) open_one(&conns[next_open++]);
        turn(100);
        if (now > deadline)
            fail("%d of %d connections got through their dialogue in %.0f s", ready, target, patience);
    }
}

/* ------------------------------------------------------------------ reporting */

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void print_quantiles(const char *name, uint64_t *values, size_t count) {
    qsort(values, count, sizeof *values, by_value);
    double p50 = 0, p99 = 0, most = 0;
    if (count > 0) {
        p50 = (double)values[(count - 1) / 2] / 1e3;
        p99 = (double)values[count * 99 / 100] / 1e3;
        most = (double)values[count - 1] / 1e3;
    }
    printf(", \"%s_p50_us\": %.1f, \"%s_p99_us\": %.1f, \"%s_max_us\": %.1f", name, p50, name, p99, name, most);
}

struct span {
    uint64_t start, idle;
    double server, own;
};

static struct span mark(void) {
    struct span s = {.server = server_cpu(), .own = own_cpu(), .idle = idle_ns};
    s.start = clock_ns();
    return s;
}

static double wall_between(const struct span *s, const struct span *e) { return (double)(e->start - s->start) / 1e9; }

static void print_span(const struct span *s, const struct span *e) {
    double wall = wall_between(s, e), server = e->server, own = e->own - (double)(e->idle - s->idle) / 1e9;
    if (own < s->own) own = s->own;
    printf("\"seconds\": %.6f, \"server_cpu_seconds\": %.3f, \"server_cpu\": %.4f, \"generator_cpu\": %.4f, "
           "\"generator_share\": %.4f",
           wall, server - s->server, (server - s->server) / wall, (own - s->own) / wall, (e->own - s->own) / wall);
}

static void print_common(void) {
    printf(", \"connections\": %d, \"subprotocol_chosen\": %llu, \"deflate_chosen\": %llu, \"pings\": %llu}\n",
           connections, (unsigned long long)subprotocol_chosen, (unsigned long long)deflate_chosen,
           (unsigned long long)pings);
    fflush(stdout);
}

/* ------------------------------------------------------------------ modes */

static void run_until(uint64_t end) {
    while ((now = clock_ns()) < end) {
        uint64_t left = (end - now) / 1000000u;
        turn(left > 50 ? 50 : (int)left + 1);
    }
}

__attribute__((noreturn)) static void fail_missing(void) {
    uint64_t missing = 0;
    for (size_t i = 0; i < (size_t)publishers * RING; i++)
        if (slots[i].id != 0 && slots[i].remaining > 0) missing += (uint64_t)slots[i].remaining;
    fail("%llu deliveries of %llu broadcasts never arrived", (unsigned long long)missing, (unsigned long long)outstanding);
}

/* Until `end`, and on until as many broadcasts have arrived as are in flight, and with one's arrival: a server that takes longer
 * for a broadcast than a short run lasts is measured over whole ones. */
static void run_whole(uint64_t end) {
    uint64_t least = completed + (uint64_t)in_flight, before, deadline = end + (uint64_t)(patience * 1e9);
    do {
        before = completed;
        turn(50);
        if (now > deadline) fail_missing();
    } while (now < end || completed < least || completed == before);
}

/* Nothing more is published; what is in flight must arrive. */
static void drain(void) {
    publishing = false;
    due = 0;
    uint64_t deadline = clock_ns() + (uint64_t)(patience * 1e9);
    while (outstanding > 0) {
        turn(50);
        if (now > deadline) fail_missing();
    }
}

/* What was measured since the last report, in one slice or in several. */
static struct tally {
    struct span spent;
    uint64_t deliveries, broadcasts, bytes, reordered;
} tally;

static void slice(void) {
    publishing = true;
    due = in_flight;
    publish_due();
    run_whole(clock_ns() + (uint64_t)(warmup * 5e8));
    uint64_t had = received_bytes, had_reads = reads, had_idle = idle_ns, had_completed = completed;
    run_whole(clock_ns() + (uint64_t)(warmup * 2.5e8));
    if (may_delay((received_bytes - had) / (reads - had_reads))) ack_every_other();
    else ack_in_pauses((int)((idle_ns - had_idle) * (uint64_t)in_flight / (completed - had_completed) / ACK_NS));
    run_whole(clock_ns() + (uint64_t)(warmup * 2.5e8));
    sampling = true;
    uint64_t was_delivered = deliveries, was_completed = completed, was_received = received_bytes;
    struct span s = mark();
    run_whole(s.start + (uint64_t)(duration * 1e9));
    struct span e = mark();
    sampling = false;
    tally.spent.start += e.start - s.start;
    tally.spent.idle += e.idle - s.idle;
    tally.spent.server += e.server - s.server;
    tally.spent.own += e.own - s.own;
    tally.deliveries += deliveries - was_delivered;
    tally.broadcasts += completed - was_completed;
    tally.bytes += received_bytes - was_received;
    drain();
    ack_at_once();
}

static void report_slices(double setup_seconds) {
    static const struct span nothing;
    double wall = wall_between(&nothing, &tally.spent), delivered = (double)tally.deliveries;
    printf("{\"deliveries_per_s\": %.1f, \"broadcasts_per_s\": %.1f, \"deliveries\": %llu, \"in_flight\": %d, "
           "\"publishers\": %d, \"payload\": %zu, \"verified\": %llu, \"setup_seconds\": %.3f, ",
           delivered / wall, (double)tally.broadcasts / wall, (unsigned long long)tally.deliveries, in_flight, publishers,
           payload_size, (unsigned long long)deliveries, setup_seconds);
    print_span(&nothing, &tally.spent);
    printf(", \"reordered\": %llu", (unsigned long long)(reordered - tally.reordered));
    printf(", \"wire_bytes_per_delivery\": %.1f", (double)tally.bytes / delivered);
    printf(", \"server_us_per_delivery\": %.5f, \"server_us_per_broadcast\": %.4f", tally.spent.server * 1e6 / delivered,
           tally.spent.server * 1e6 / (double)tally.broadcasts);
    print_quantiles("latency", samples, sample_count);
    print_common();
    tally = (struct tally){.reordered = reordered};
    sample_count = 0;
}

/* Waits for a number on standard input, and looks after the connections meanwhile; -1: it has ended. */
static int next_command(void) {
    struct pollfd waiting[] = {{.fd = 0, .events = POLLIN}, {.fd = poller, .events = POLLIN}};
    for (;;) {
        if (poll(waiting, 2, -1) < 0 && errno != EINTR) fail("poll: %s", strerror(errno));
        if (waiting[1].revents != 0) turn(0);
        if (waiting[0].revents != 0) {
            char line[32];
            return fgets(line, sizeof line, stdin) == NULL ? -1 : atoi(line);
        }
    }
}

/* Several broadcasts at once, before anything is measured, where they are small: of a server that puts messages together the
 * kernel has seen a segment then beside which those of fewer are small (`may_delay`). */
static void open_with_several(void) {
    if (payload_size >= SMALL) return;
    due = SEVERAL;
    publish_due();
    drain();
}

static void fanout(void) {
    struct span setup = mark();
    open_all(total, concurrency);
    double setup_seconds = (double)(clock_ns() - setup.start) / 1e9;
    receivers = connections;
    open_with_several();
    if (!commanded) {
        slice();
        run_until(clock_ns() + 100000000u); /* nothing may come after it */
        report_slices(setup_seconds);
        return;
    }
    printf("{\"event\": \"ready\"}\n");
    fflush(stdout);
    for (int command; (command = next_command()) >= 0;) {
        if (command > 0) {
            if ((unsigned)command > RING / 2) fail("bad counts");
            in_flight = command;
            slice();
            printf("{\"measured\": %.6f}\n", (double)tally.spent.start / 1e9);
            fflush(stdout);
        } else {
            if (tally.broadcasts == 0) fail("nothing was measured");
            run_until(clock_ns() + 20000000u);
            report_slices(setup_seconds);
        }
    }
}

static void connect_mode(void) {
    int last = probes > 0 ? total - probes : total;
    double cpu_first = 0, cpu_last = 0;
    struct span s = mark();
    if (probes > 0) {
        open_all(probes, 1);
        cpu_first = server_cpu() - s.server;
    }
    open_all(last, concurrency);
    if (probes > 0) {
        double before = server_cpu();
        open_all(total, 1);
        cpu_last = server_cpu() - before;
    }
    struct span e = mark();
    printf("{\"connects_per_s\": %.1f, \"server_us_per_connect\": %.2f, ", (double)total / wall_between(&s, &e),
           (e.server - s.server) * 1e6 / total);
    print_span(&s, &e);
    if (probes > 0) {
        printf(", \"first_cpu_us_per_join\": %.1f, \"last_cpu_us_per_join\": %.1f", cpu_first * 1e6 / probes,
               cpu_last * 1e6 / probes);
        print_quantiles("first_join", last_step_ns, (size_t)probes);
        print_quantiles("last_join", last_step_ns + last, (size_t)probes);
    }
    print_quantiles("dialogue", dialogue_ns, (size_t)total);
    print_common();
}

/* Stays connected and answers pings until standard input ends; the runner looks at the server meanwhile. */
static void idle(void) {
    open_all(total, concurrency);
    printf("{\"event\": \"ready\"}\n");
    fflush(stdout);
    struct pollfd in = {.fd = 0, .events = POLLIN};
    struct span s = mark();
    for (;;) {
        turn(50);
        if (poll(&in, 1, 0) > 0) {
            char c;
            if (read(0, &c, 1) <= 0) break;
        }
    }
    struct span e = mark();
    printf("{");
    print_span(&s, &e);
    print_common();
}

static void storm(void) {
    open_all(connections, concurrency);
    for (int i = 1; i < connections; i++) close_one(&conns[i]);
    run_until(clock_ns() + 500000000u); /* the server sees them go */
    receivers = 1;
    publishing = true;
    for (uint32_t sent = 0; sent < backlog;) {
        uint32_t burst = backlog - sent < 10 ? backlog - sent : 10;
        publishing = false;
        due = (int)burst;
        publish_due();
        sent += burst;
        uint64_t deadline = clock_ns() + (uint64_t)(patience * 1e9);
        while (outstanding > 0) {
            turn(50);
            if (now > deadline) fail("the backlog was not published in %.0f s", patience);
        }
    }
    int clients = connections - 1; /* the first has stayed: a room nobody is in may be forgotten */
    for (uint32_t i = 0; i < backlog; i++) slot_of(0, i)->remaining = clients;
    for (int i = 1; i < connections; i++) conns[i].expected[0] = 0;
    outstanding = backlog;
    returning = true;
    next_open = 1;
    deliveries = 0;
    subprotocol_chosen = 0;
    struct span s = mark();
    open_all(connections, concurrency);
    uint64_t reconnected = clock_ns(), deadline = reconnected + (uint64_t)(patience * 1e9);
    while (outstanding > 0) {
        turn(50);
        if (now > deadline)
            fail("%llu of %llu messages were recovered in %.0f s", (unsigned long long)deliveries,
                 (unsigned long long)backlog * (unsigned long long)clients, patience);
    }
    struct span e = mark();
    double wall = wall_between(&s, &e);
    run_until(clock_ns() + 100000000u);
    printf("{\"recoveries_per_s\": %.1f, \"recovered_per_s\": %.1f, \"backlog\": %u, \"reconnected_seconds\": %.6f, "
           "\"server_us_per_recovery\": %.2f, ",
           clients / wall, (double)backlog * clients / wall, backlog, (double)(reconnected - s.start) / 1e9,
           (e.server - s.server) * 1e6 / clients);
    print_span(&s, &e);
    print_quantiles("dialogue", dialogue_ns + 1, (size_t)clients);
    print_common();
}

/* ------------------------------------------------------------------ main */

static void read_tokens(const char *name) {
    FILE *f = fopen(name, "r");
    if (f == NULL) fail("cannot open %s", name);
    char *line = NULL;
    size_t cap = 0, room = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, f)) > 0) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (token_count == room) {
            room = room == 0 ? 1024 : room * 2;
            tokens = must(realloc(tokens, room * sizeof *tokens));
        }
        tokens[token_count++] = must(strdup(line));
    }
    free(line);
    fclose(f);
}

static void add_step(struct dialogue *d, bool expect, const char *text) {
    if (d->count == MAX_STEPS) fail("more than %d steps", MAX_STEPS);
    d->steps[d->count++] = (struct step){.expect = expect, .text = text};
}

enum option_id {
    OPT_MODE = 1000, OPT_PORT, OPT_PATH, OPT_CONNECTIONS, OPT_CONCURRENCY, OPT_SUBPROTOCOL, OPT_HEADER, OPT_SEND, OPT_EXPECT,
    OPT_AGAIN_SEND, OPT_AGAIN_EXPECT, OPT_CAPTURE, OPT_PUBLISH, OPT_PING, OPT_PONG, OPT_FAIL, OPT_TOKENS, OPT_PUBLISHERS, OPT_IN_FLIGHT,
    OPT_SIZE, OPT_WARMUP, OPT_SECONDS, OPT_TIMEOUT, OPT_PID, OPT_CORE, OPT_DEFLATE, OPT_BACKLOG, OPT_FILLERS, OPT_FILL_SEND,
    OPT_FILL_EXPECT, OPT_FILL_REPEAT, OPT_FILL_STEPS,
    OPT_PROBES, OPT_PAUSE, OPT_UNORDERED, OPT_COMMANDED
};

static const struct option options[] = {
    {"mode", 1, 0, OPT_MODE}, {"port", 1, 0, OPT_PORT}, {"path", 1, 0, OPT_PATH}, {"connections", 1, 0, OPT_CONNECTIONS},
    {"concurrency", 1, 0, OPT_CONCURRENCY}, {"subprotocol", 1, 0, OPT_SUBPROTOCOL}, {"header", 1, 0, OPT_HEADER},
    {"send", 1, 0, OPT_SEND}, {"expect", 1, 0, OPT_EXPECT}, {"again-send", 1, 0, OPT_AGAIN_SEND},
    {"again-expect", 1, 0, OPT_AGAIN_EXPECT}, {"capture", 1, 0, OPT_CAPTURE}, {"publish", 1, 0, OPT_PUBLISH},
    {"ping", 1, 0, OPT_PING}, {"pong", 1, 0, OPT_PONG}, {"fail", 1, 0, OPT_FAIL}, {"tokens", 1, 0, OPT_TOKENS},
    {"publishers", 1, 0, OPT_PUBLISHERS}, {"in-flight", 1, 0, OPT_IN_FLIGHT}, {"size", 1, 0, OPT_SIZE},
    {"warmup", 1, 0, OPT_WARMUP}, {"seconds", 1, 0, OPT_SECONDS}, {"timeout", 1, 0, OPT_TIMEOUT}, {"pid", 1, 0, OPT_PID},
    {"core", 1, 0, OPT_CORE}, {"deflate", 0, 0, OPT_DEFLATE}, {"backlog", 1, 0, OPT_BACKLOG}, {"fillers", 1, 0, OPT_FILLERS},
    {"fill-send", 1, 0, OPT_FILL_SEND}, {"fill-expect", 1, 0, OPT_FILL_EXPECT}, {"fill-repeat", 1, 0, OPT_FILL_REPEAT},
    {"fill-steps", 1, 0, OPT_FILL_STEPS}, {"probes", 1, 0, OPT_PROBES}, {"pause-us", 1, 0, OPT_PAUSE}, {"unordered", 0, 0, OPT_UNORDERED},
    {"commanded", 0, 0, OPT_COMMANDED}, {0, 0, 0, 0}};

static void parse(int argc, char **argv) {
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch ((enum option_id)option) {
        case OPT_MODE:
            if (strcmp(optarg, "fanout") == 0) mode = FANOUT;
            else if (strcmp(optarg, "connect") == 0) mode = CONNECT;
            else if (strcmp(optarg, "idle") == 0) mode = IDLE;
            else if (strcmp(optarg, "storm") == 0) mode = STORM;
            else fail("no mode %s", optarg);
            break;
        case OPT_PORT:
            if (port_count == MAX_LIST) fail("too many ports");
            ports[port_count++] = atoi(optarg);
            break;
        case OPT_PATH: path = optarg; break;
        case OPT_CONNECTIONS: connections = atoi(optarg); break;
        case OPT_CONCURRENCY: concurrency = atoi(optarg); break;
        case OPT_SUBPROTOCOL: subprotocol = optarg; break;
        case OPT_HEADER:
            if (header_count == MAX_LIST) fail("too many headers");
            headers[header_count++] = optarg;
            break;
        case OPT_SEND: add_step(&first, false, optarg); break;
        case OPT_EXPECT: add_step(&first, true, optarg); break;
        case OPT_AGAIN_SEND: add_step(&again, false, optarg); break;
        case OPT_AGAIN_EXPECT: add_step(&again, true, optarg); break;
        case OPT_CAPTURE: capture_after = optarg; break;
        case OPT_PUBLISH: publish_text = optarg; break;
        case OPT_PING: ping_text = optarg; break;
        case OPT_PONG: pong_text = optarg; break;
        case OPT_FAIL: fail_text = optarg; break;
        case OPT_TOKENS: read_tokens(optarg); break;
        case OPT_PUBLISHERS: publishers = atoi(optarg); break;
        case OPT_IN_FLIGHT: in_flight = atoi(optarg); break;
        case OPT_SIZE: payload_size = (size_t)atol(optarg); break;
        case OPT_WARMUP: warmup = atof(optarg); break;
        case OPT_SECONDS: duration = atof(optarg); break;
        case OPT_TIMEOUT: patience = atof(optarg); break;
        case OPT_PID:
            if (pid_count == MAX_LIST) fail("too many pids");
            pids[pid_count++] = atoi(optarg);
            break;
        case OPT_CORE: core = atoi(optarg); break;
        case OPT_DEFLATE: offer_deflate = true; break;
        case OPT_BACKLOG: backlog = (uint32_t)atoi(optarg); break;
        case OPT_FILLERS: fillers = atoi(optarg); break;
        case OPT_FILL_SEND: fill_send = optarg; break;
        case OPT_FILL_EXPECT: fill_expect = optarg; break;
        case OPT_FILL_REPEAT: fill_repeat = (uint32_t)atoi(optarg); break;
        case OPT_FILL_STEPS: fill_steps = atoi(optarg); break;
        case OPT_PROBES: probes = atoi(optarg); break;
        case OPT_UNORDERED: unordered = true; break;
        case OPT_COMMANDED: commanded = true; break;
        case OPT_PAUSE: pause_ns = (uint64_t)(atof(optarg) * 1e3); break;
        default: fail("bad option; see the top of loadgen.c");
        }
    }
    if (port_count == 0) fail("--port is missing");
    if (connections < 1 || publishers < 1 || publishers > connections || publishers > 255) fail("bad counts");
    if (concurrency < 1 || in_flight < 1 || (unsigned)in_flight > RING / 2 || backlog > RING) fail("bad counts");
    if (probes < 0 || 2 * probes > connections || fillers < 0 || fill_steps < 0 || fill_steps > first.count)
        fail("bad counts");
    if (payload_size < HEAD + 1 || payload_size > MAX_FRAME / 2) fail("bad --size");
    if ((mode == FANOUT || mode == STORM) && publish_text == NULL) fail("--publish is missing");
    if ((ping_text == NULL) != (pong_text == NULL)) fail("--ping and --pong go together");
    if (fill_repeat > 0 && (fill_send == NULL || fill_expect == NULL)) fail("--fill-send and --fill-expect");
    if (mode == STORM && again.count == 0) again = first;
#ifndef HAVE_ZLIB
    if (offer_deflate) fail("compiled without zlib");
#endif
}

int main(int argc, char **argv) {
    parse(argc, argv);
    if (core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(core, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0) fail("cannot pin to core %d: %s", core, strerror(errno));
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    total = connections + fillers;
    if ((rlim_t)total + 32 > files.rlim_cur) fail("%d connections, but only %lu files", total, (unsigned long)files.rlim_cur);

    poller = epoll_create1(EPOLL_CLOEXEC);
    conns = must(calloc((size_t)total, sizeof *conns));
    uint64_t *numbers = must(calloc((size_t)total * (size_t)publishers, sizeof *numbers));
    for (int i = 0; i < total; i++) conns[i].expected = numbers + (size_t)i * (size_t)publishers;
    if (unordered)
        for (int i = 0; i < total; i++) conns[i].seen = must(calloc((size_t)publishers * RING, sizeof *conns[i].seen));
    slots = must(calloc((size_t)publishers * RING, sizeof *slots));
    payloads = must(malloc((size_t)publishers * RING * payload_size));
    next_seq = must(calloc((size_t)publishers, sizeof *next_seq));
    samples = must(malloc(MAX_SAMPLES * sizeof *samples));
    dialogue_ns = must(calloc((size_t)total, sizeof *dialogue_ns));
    last_step_ns = must(calloc((size_t)total, sizeof *last_step_ns));
    cache = must(calloc(RING, sizeof *cache));
    unacked = must(calloc((size_t)connections, sizeof *unacked));
    receivers = connections;
    spin = mode != IDLE;
    now = clock_ns();
    switch (mode) {
    case FANOUT: fanout(); break;
    case CONNECT: connect_mode(); break;
    case IDLE: idle(); break;
    case STORM: storm(); break;
    }
    fflush(stdout);
    _exit(0);
}
