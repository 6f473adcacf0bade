// One step in one world, in the process that is asked to take it.
#include "fuzz.h"
#include <sys/mman.h>
#include <sys/time.h>

static char *buffer, *readOnly, *unmapped, *half;
enum { SLACK = 64, HALF_BYTES = 65536 };
static const unsigned char untouched = 0xE7;

void prepare_memory(void) {
    buffer = mmap(NULL, BUFFER_BYTES + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    readOnly = mmap(NULL, BUFFER_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unmapped = mmap(NULL, BUFFER_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    half = mmap(NULL, HALF_BYTES + BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(half + HALF_BYTES, BUFFER_BYTES, PROT_NONE);
}

// MARK: The bytes. What an end sends at a position of its stream is determined by the two alone.

static unsigned char byte_at(int end, uint64_t position) {
    uint64_t z = (position >> 3) * 0x9E3779B97F4A7C15ull + (uint64_t)end * 0x632BE59BD9B4E019ull;
    z ^= z >> 29;
    return (unsigned char)(z >> (position & 7) * 8);
}
static void fill(void *to, int end, uint64_t position, size_t count) {
    unsigned char *bytes = to;
    for (size_t i = 0; i < count; i++) bytes[i] = byte_at(end, position + i);
}
static bool matches(const void *from, int end, uint64_t position, size_t count) {
    const unsigned char *bytes = from;
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != byte_at(end, position + i)) return false;
    return true;
}
/// Where the bytes really come from, for the report.
static void explain(const unsigned char *bytes, int end, uint64_t position, size_t count) {
    size_t at = 0;
    while (at < count && bytes[at] == byte_at(end, position + at)) at++;
    size_t rest = count - at < 64 ? count - at : 64;
    int64_t distance = 0;
    bool isFound = false;
    for (int64_t d = -300000; d < 300000 && !isFound; d++)
        if ((int64_t)(position + at) + d >= 0 && matches(bytes + at, end, position + at + (uint64_t)d, rest)) distance = d, isFound = true;
    snprintf(shared->detail, sizeof shared->detail, "byte %zu of %zu, position %llu, is wrong; %s %lld", at, count,
             (unsigned long long)(position + at), isFound && rest > 3 ? "there are the bytes of a position that differs by" : "found nowhere",
             (long long)distance);
}
static bool is_untouched(const void *from, size_t count) {
    const unsigned char *bytes = from;
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != untouched) return false;
    return true;
}

/// Memory of the step's kind for `size` bytes. Half of them (at most) are accessible in HALF.
static char *memory_for(const struct step *step, size_t size) {
    switch (step->memory) {
    case NOTHING: return NULL;
    case UNMAPPED: return unmapped;
    case READ_ONLY: return step->operation <= SENDFILE ? unmapped : readOnly;
    case HALF: return half + HALF_BYTES - (size / 2 < HALF_BYTES ? size / 2 : HALF_BYTES);
    default: return buffer;
    }
}
static size_t accessible(const struct step *step, size_t size) {
    if (step->memory == GOOD) return size;
    if (step->memory == HALF) return size / 2 < HALF_BYTES ? size / 2 : HALF_BYTES;
    return 0;
}

// MARK: Signals

static volatile sig_atomic_t pipes, ticks, restarting;
static void count_pipe(int signal) { (void)signal, pipes++; }
static void set_tick(bool restarts);
static void count_tick(int signal) {
    (void)signal;
    if (++ticks == 2 && restarting) set_tick(false);
}
static void set_tick(bool restarts) {
    struct sigaction action = {.sa_handler = count_tick, .sa_flags = restarts ? SA_RESTART : 0};
    sigaction(SIGALRM, &action, NULL);
}
void install_handlers(void) {
    struct sigaction action = {.sa_handler = count_pipe, .sa_flags = options.noExactRestarts ? SA_RESTART : 0};
    sigaction(SIGPIPE, &action, NULL);
    set_tick(false);
}

/// Interrupts what blocks: without SA_RESTART at once, with it only at the third signal.
static void start_ticking(bool restarts) {
    ticks = 0;
    restarting = restarts;
    set_tick(restarts);
    struct itimerval every = {{0, 8000}, {0, 8000}};
    setitimer(ITIMER_REAL, &every, NULL);
}
static void stop_ticking(void) {
    struct itimerval never = {0};
    setitimer(ITIMER_REAL, &never, NULL);
}

// MARK: What the kernel says of the TCP socket

static bool tcp_info(int fd, struct tcp_info *info, socklen_t *length) {
    *length = sizeof *info;
    memset(info, 0, sizeof *info);
    return calls[NATIVE].getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, length) == 0;
}
/// The kernel's structure, of which glibc's header knows the beginning only.
struct counters {
    struct tcp_info known;
    uint64_t pacing, maximumPacing, acknowledged, received;
    uint32_t segmentsOut, segmentsIn, notSent, minimumRoundTrip, dataIn, dataOut;
    uint64_t delivery, busy, receiveLimited, sendLimited;
    uint32_t delivered, deliveredEarly;
    uint64_t sent, retransmitted;
};
uint64_t kernel_written(int fd) {
    struct counters counters = {0};
    socklen_t length = sizeof counters;
    calls[NATIVE].getsockopt(fd, IPPROTO_TCP, TCP_INFO, &counters, &length);
    return counters.sent - counters.retransmitted + counters.notSent;
}

/// Why the kernel has room to send, or has not.
void describe_room(int fd, char *text, size_t size) {
    uint32_t memory[9] = {0};  // SK_MEMINFO_VARS
    socklen_t length = sizeof memory;
    calls[NATIVE].getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &length);
    struct counters counters = {0};
    length = sizeof counters;
    calls[NATIVE].getsockopt(fd, IPPROTO_TCP, TCP_INFO, &counters, &length);
    snprintf(text, size, "%u bytes queued in %u of %u, %u unacknowledged, %u not sent, cwnd %u", memory[5], memory[2], memory[3],
             counters.known.tcpi_unacked, counters.notSent, counters.known.tcpi_snd_cwnd);
}

// MARK: Sending

static int descriptor_of(const struct step *step, int world, int actor) {
    int *list = shared->ends[world][step->end].descriptor[actor], count = 0, found[MAXIMUM_ALIASES];
    for (int i = 0; i < MAXIMUM_ALIASES; i++)
        if (list[i] >= 0) found[count++] = list[i];
    return count ? found[step->alias % count] : -1;
}

/// Splits `size` bytes at `start` into `count` pieces, some of them empty.
static void split(struct iovec *pieces, int count, char *start, size_t size, uint32_t seed) {
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        size_t left = size - at, length = i == count - 1 ? left : left ? (seed >> 8) % (left + 1) / (1 + seed % 3) : 0;
        pieces[i] = (struct iovec){start ? start + at : NULL, length};
        at += length;
    }
}

/// The last of `count` bytes that were sent with MSG_OOB is urgent. The former one is an ordinary byte again, unless all before
/// it has been read.
static void set_mark(struct end *reader, uint64_t start, uint64_t count) {
    if (count == 0) return;
    reader->received = begin_of_receive(reader, reader->received, 1);
    reader->isMarkFirst = reader->mark == NO_MARK && count == 1;
    reader->mark = start + count - 1;
}

static void send_step(const struct step *step, int world, int fd, struct outcome *out) {
    struct end *end = &shared->ends[world][step->end], *peer = &shared->ends[world][1 - step->end];
    const struct calls *call = &calls[world];
    size_t size = step->size, count = 1;
    if (step->operation == SENDMMSG) {
        count = step->pieces;
        if (size * count > 1 << 20) size = (1 << 20) / count;
    }
    if (step->operation == SPLICE_IN && size > HALF_BYTES) size = HALF_BYTES;
    char *from = memory_for(step, size * count);
    fill(step->memory == HALF ? from : buffer, step->end, end->sent, step->memory == HALF ? accessible(step, size * count) : size * count);
    out->isAmountFree = under_way(world, step->end) + size * count > end->limit
        || end->limit < 1000  // what has arrived still counts until it is acknowledged
        || (step->memory == HALF && size > 1);
    struct iovec pieces[64];
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = step->pieces};
    struct sockaddr_in6 address = {.sin6_family = AF_INET};
    uint64_t before = kernel_written(fd);
    int64_t moved;
    pipes = 0;
    start_ticking(step->restarts);
    errno = 0;
    switch (step->operation) {
    case SEND: out->value = call->send(fd, from, size, step->flags); break;
    case WRITE: out->value = call->write(fd, from, size); break;
    case SENDTO:
        out->value = call->sendto(fd, from, size, step->flags, step->b & 1 ? (struct sockaddr *)&address : NULL, (unsigned)step->a % 40);
        break;
    case WRITEV:
        split(pieces, step->pieces, from, size, (uint32_t)step->b);
        out->value = call->writev(fd, pieces, step->pieces);
        break;
    case SENDMSG:
        split(pieces, step->pieces, from, size, (uint32_t)step->b);
        out->value = call->sendmsg(fd, &message, step->flags);
        break;
    default: break;
    }
    if (step->operation == SENDMMSG) {
        struct mmsghdr list[64] = {0};
        for (size_t i = 0; i < count; i++) {
            pieces[i] = (struct iovec){from ? from + i * size : NULL, size};
            list[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
        }
        out->value = call->sendmmsg(fd, list, (unsigned)count, step->flags);
        moved = 0;
        for (int i = 0; i < out->value; i++) {
            if (step->flags & MSG_OOB) set_mark(peer, end->sent + (uint64_t)moved, list[i].msg_len);
            moved += list[i].msg_len;
            if (!out->isAmountFree && i < EXTRAS) out->extra[out->extras++] = (int32_t)list[i].msg_len;
        }
    } else if (step->operation == SENDFILE) {
        // A new file each time: TCP sends the file's own pages, so what is written there later would still change them.
        int file = memfd_create("fuzz", MFD_CLOEXEC);
        off_t base = step->b & 0xff, offset = base;
        if (pwrite(file, buffer, size, base) != (ssize_t)size || ftruncate(file, base + (off_t)size)) abort();
        if (!(step->a & 1)) lseek(file, base, SEEK_SET);
        out->value = call->sendfile(fd, file, step->a & 1 ? &offset : NULL, size + (step->b & 0x100 ? 1000 : 0));
        moved = out->value;
        int failure = errno;
        off_t after = step->a & 1 ? offset : lseek(file, 0, SEEK_CUR);
        if (after - base != (out->value > 0 ? out->value : 0)) out->wrongBytes = true;
        calls[NATIVE].close(file);
        errno = failure;
    } else if (step->operation == SPLICE_IN) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) < 0) abort();
        for (size_t at = 0; at < size;) {
            ssize_t written = calls[NATIVE].write(ends[1], buffer + at, size - at);
            if (written > 0) at += (size_t)written;
        }
        errno = 0;
        moved = out->value = call->splice(ends[0], NULL, fd, NULL, size, 0);
        // As programs do (see oracle.c).
        if (moved < 0 && errno == EINVAL && world == SWITCHED) moved = out->value = call->write(fd, buffer, size);
        int failure = errno;
        calls[NATIVE].close(ends[0]);
        calls[NATIVE].close(ends[1]);
        errno = failure;
    } else {
        moved = out->value;
    }
    out->error = out->value < 0 ? errno : 0;
    int interruptions = ticks;
    stop_ticking();
    out->waited = step->restarts && out->error == EINTR && interruptions >= (options.noExactRestarts ? 2 : 3);
    out->signals = pipes;
    bool isPart = out->value >= 0 && (uint64_t)moved < size * count && step->memory == GOOD;
    if (out->error == EAGAIN || isPart) end->full = true;
    int held = 0;
    if (out->error) out->unacknowledged = calls[NATIVE].ioctl(fd, TIOCOUTQ, &held) == 0 && held > 0;
    if (moved > 0) {
        if (step->flags & MSG_OOB && step->operation != SENDMMSG) set_mark(peer, end->sent, (uint64_t)moved);
        end->sent += (uint64_t)moved;
        out->moved = (uint64_t)moved;
        out->carried = true;
        out->onCompanion = kernel_written(fd) == before;
        if (under_way(world, step->end) > end->limit) end->crowded = peer->flooded = true;
    }
}

// MARK: Receiving

static void receive_step(const struct step *step, int world, int fd, struct outcome *out) {
    struct end *end = &shared->ends[world][step->end];
    const struct calls *call = &calls[world];
    int sender = 1 - step->end;
    size_t size = step->size, count = 1;
    int flags = step->flags;
    if (step->operation == RECVMMSG) {
        count = step->pieces;
        if (size * count > 1 << 20) size = (1 << 20) / count;
        // Without it an interrupted call leaves the kernel's own ERESTARTSYS in the socket (a defect of recvmmsg).
        flags |= step->a & 1 ? MSG_DONTWAIT : MSG_WAITFORONE;
    }
    size_t total = size * count;
    uint64_t queued = under_way(world, sender);
    if (queued == 0) end->lags = false;
    out->isAmountFree = queued > end->limit || end->lags || (step->operation == SPLICE_OUT && total > 1);
    if (step->memory == HALF && total > 1) out->isAmountFree = true;
    char *to = memory_for(step, total);
    // Where the bytes stand that this call is to get, and where the next one will find itself.
    uint64_t from = flags & MSG_OOB ? end->mark : begin_of_receive(end, end->received, size), after = end->received;
    memset(buffer, untouched, total + SLACK);
    if (step->memory == HALF) memset(to, untouched, accessible(step, size));
    struct iovec pieces[64];
    char control[256];
    struct sockaddr_storage address;
    memset(&address, untouched, sizeof address);
    struct msghdr message = {
        .msg_name = step->a & 2 ? &address : NULL, .msg_namelen = step->a & 2 ? (unsigned)step->b % 129 : 0, .msg_iov = pieces,
        .msg_iovlen = step->pieces, .msg_control = step->a & 4 ? control : NULL, .msg_controllen = step->a & 4 ? sizeof control : 0,
        .msg_flags = 0x55,
    };
    int64_t moved = 0;
    pipes = 0;
    start_ticking(step->restarts);
    errno = 0;
    switch (step->operation) {
    case RECV: moved = out->value = call->recv(fd, to, size, flags); break;
    case READ: moved = out->value = call->read(fd, to, size); flags = 0; break;
    case RECVFROM: {
        socklen_t length = (unsigned)step->b % 129;
        moved = out->value = call->recvfrom(fd, to, size, flags, step->a & 2 ? (void *)&address : NULL, &length);
        out->extra[out->extras++] = (int32_t)length;
        break;
    }
    case READV:
        split(pieces, step->pieces, to, size, (uint32_t)step->b);
        moved = out->value = call->readv(fd, pieces, step->pieces);
        flags = 0;
        break;
    case RECVMSG:
        split(pieces, step->pieces, to, size, (uint32_t)step->b);
        moved = out->value = call->recvmsg(fd, &message, flags);
        if (moved >= 0) {
            out->extra[out->extras++] = (int32_t)message.msg_namelen;
            // From when on packets have a time the kernel decides later.
            out->extra[out->extras++] = shared->stamped ? 0 : (int32_t)message.msg_controllen;
            out->extra[out->extras++] = message.msg_flags & ~(shared->stamped ? MSG_CTRUNC : 0);
        }
        break;
    case SPLICE_OUT: {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) < 0) abort();
        moved = out->value = call->splice(fd, NULL, ends[1], NULL, size, 0);
        bool isRefused = moved < 0 && errno == EINVAL && world == SWITCHED;
        if (isRefused) moved = out->value = call->read(fd, buffer, size);
        int failure = errno;
        flags = 0;
        for (ssize_t at = 0; at < moved && !isRefused;) {
            ssize_t read = calls[NATIVE].read(ends[0], buffer + at, (size_t)(moved - at));
            if (read > 0) at += read;
        }
        calls[NATIVE].close(ends[0]);
        calls[NATIVE].close(ends[1]);
        errno = failure;
        break;
    }
    case RECVMMSG: {
        struct mmsghdr list[64] = {0};
        for (size_t i = 0; i < count; i++) {
            pieces[i] = (struct iovec){to ? to + i * size : NULL, size};
            list[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1, .msg_flags = 0x55};
        }
        out->value = call->recvmmsg(fd, list, (unsigned)count, flags, NULL);
        for (int i = 0; i < out->value; i++) {
            // Any of them may be short: bytes arrive, and carriers change, between two. Each one that only looks sees the same.
            if (!(flags & (MSG_PEEK | MSG_OOB))) from = begin_of_receive(end, after, size), after = from + list[i].msg_len;
            if (!(flags & MSG_TRUNC) && !matches(to + (size_t)i * size, sender, from, list[i].msg_len)) out->wrongBytes = true;
            moved += list[i].msg_len;
            if (!out->isAmountFree && out->extras + 1 < EXTRAS) {
                out->extra[out->extras++] = (int32_t)list[i].msg_len;
                out->extra[out->extras++] = list[i].msg_hdr.msg_flags & ~(shared->stamped ? MSG_CTRUNC : 0);
            }
        }
        break;
    }
    default: break;
    }
    out->error = out->value < 0 ? errno : 0;
    int interruptions = ticks;
    stop_ticking();
    out->waited = step->restarts && out->error == EINTR && interruptions >= (options.noExactRestarts ? 2 : 3);
    out->signals = pipes;
    bool keeps = flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE);
    if (step->operation != RECVMMSG) after = from + (uint64_t)(moved > 0 ? moved : 0);
    // The one that found nothing; but an error that waited recvmmsg takes before it looks.
    else if (out->value < (int64_t)count && out->error != ECONNRESET && out->error != EPIPE) after = begin_of_receive(end, after, size);
    if (!keeps) end->received = after;
    if (moved > 0) {
        bool discards = flags & MSG_TRUNC;
        out->moved = (uint64_t)moved;
        out->carried = !keeps;
        if ((uint64_t)moved > accessible(step, total) && !discards) out->wrongBytes = true;
        else if (discards) out->wrongBytes |= !is_untouched(buffer, total);
        else if (step->operation != RECVMMSG) out->wrongBytes |= !matches(to, sender, from, (size_t)moved);
        if (!discards && step->memory == GOOD && step->operation != RECVMMSG)
            out->wrongBytes |= !is_untouched(buffer + moved, total + SLACK - (size_t)moved);
        if (out->wrongBytes && !discards && to && (uint64_t)moved <= accessible(step, total))
            explain((unsigned char *)to, sender, from, (size_t)moved);
    } else if (step->memory == GOOD) {
        out->wrongBytes |= !is_untouched(buffer, total + SLACK);
    }
    if (!is_untouched(&address, sizeof address)) out->wrongBytes = true;
}

/// Reads all that is under way to `end`. False: it did not come.
bool drain(int world, int endIndex, int actor) {
    struct end *end = &shared->ends[world][endIndex];
    struct step any = {.end = (uint8_t)endIndex};
    int fd = descriptor_of(&any, world, actor);
    uint64_t patience = end->limit < 1000 ? 20000000 : 5000000, deadline = now_us() + patience;
    while (under_way(world, 1 - endIndex) > 0) {
        shared->lastSign = now_us();
        ssize_t count = calls[world].recv(fd, buffer, BUFFER_BYTES, MSG_DONTWAIT);
        end->received = begin_of_receive(end, end->received, 1);
        if (count > 0) {
            if (!matches(buffer, 1 - endIndex, end->received, (size_t)count)) return false;
            end->received += (uint64_t)count;
            deadline = now_us() + patience;
        } else if (count == 0 && end->readShut) {
            // The end, and yet what is on its way comes.
            if (now_us() > deadline) return false;
            usleep(500);
        } else if (count == 0 || errno != EAGAIN) {
            return false;
        } else {
            if (now_us() > deadline) return false;
            struct pollfd entry = {fd, POLLIN, 0};
            calls[world].poll(&entry, 1, 100);
        }
    }
    return true;
}

// MARK: Readiness

static int epollSet[WORLDS][ENDS] = {{-1, -1}, {-1, -1}};
// By number, the step (from 1) that registered the end under it; 0: it is not registered. As in the kernel, closing a number
// does not end its registration.
static int32_t registrations[WORLDS][ENDS][NUMBERS];

static void poll_step(const struct step *step, int world, int fd, struct outcome *out) {
    struct pollfd list[2] = {{fd, (short)(step->a & 0x27ff), 0}, {fd, (short)(step->b & 0x27ff), 0}};
    errno = 0;
    if (step->b & 0x10000) {
        struct timespec time = {0, step->waits ? 5000000 : 0};
        out->value = calls[world].ppoll(list, 1 + (step->b >> 17 & 1), &time, NULL);
    } else {
        out->value = calls[world].poll(list, 1 + (step->b >> 17 & 1), step->waits ? 5 : 0);
    }
    out->error = out->value < 0 ? errno : 0;
    out->extra[out->extras++] = list[0].revents;
    out->extra[out->extras++] = list[1].revents;
}

static void select_step(const struct step *step, int world, int fd, struct outcome *out) {
    fd_set sets[3];
    for (int i = 0; i < 3; i++) {
        FD_ZERO(&sets[i]);
        if (step->a >> i & 1) FD_SET(fd, &sets[i]);
    }
    struct timeval time = {0, step->waits ? 5000 : 0};
    errno = 0;
    out->value = calls[world].select(fd + 1, &sets[0], step->a & 0x10 ? NULL : &sets[1], step->a & 0x20 ? NULL : &sets[2], &time);
    out->error = out->value < 0 ? errno : 0;
    for (int i = 0; i < 3; i++) out->extra[out->extras++] = FD_ISSET(fd, &sets[i]) != 0;
}

static uint32_t epoll_mask(uint32_t a) {
    uint32_t mask = 0;
    if (a & 3) mask |= EPOLLIN;
    if (a & 12) mask |= EPOLLOUT;
    if (a & 16) mask |= EPOLLRDHUP;
    if (a & 32) mask |= EPOLLPRI;
    if (a & EDGE_BIT) mask |= EPOLLET;
    if ((a & 0x380) == 0x380) mask |= EPOLLONESHOT;
    if ((a & 0x7c00) == 0x7c00) mask |= EPOLLEXCLUSIVE;
    if ((a & 0x38000) == 0x38000) mask |= EPOLLRDNORM | EPOLLWRNORM;
    return mask;
}

static void epoll_step(const struct step *step, int world, int fd, struct outcome *out) {
    int *set = &epollSet[world][step->end];
    if (*set < 0) *set = calls[world].epoll_create1(EPOLL_CLOEXEC);
    if (step->operation == EPOLL_CTL) {
        struct epoll_event event = {epoll_mask((uint32_t)step->a), {.u32 = (uint32_t)shared->step}};
        int operation = step->b & 1 ? EPOLL_CTL_ADD : step->b & 2 ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
        errno = 0;
        out->value = calls[world].epoll_ctl(*set, operation, fd, &event);
        out->error = out->value < 0 ? errno : 0;
        if (fd >= NUMBERS) return;
        int32_t *registration = &registrations[world][step->end][fd];
        out->registration = *registration;
        if (out->value == 0 && operation != EPOLL_CTL_MOD) *registration = operation == EPOLL_CTL_ADD ? shared->step + 1 : 0;
        return;
    }
    struct epoll_event events[16];
    errno = 0;
    out->value = calls[world].epoll_wait(*set, events, 16, step->waits ? 5 : 0);
    out->error = out->value < 0 ? errno : 0;
    // Which of two comes first is nobody's business.
    for (int i = 0; i < out->value; i++) {
        int32_t entry = (int32_t)(events[i].data.u32 << 24 | events[i].events);
        int at = out->extras++;
        for (; at > 0 && out->extra[at - 1] > entry; at--) out->extra[at] = out->extra[at - 1];
        out->extra[at] = entry;
    }
}

void take_view(int world, int end, int actor, struct view *view) {
    struct step any = {.end = (uint8_t)end};
    int fd = descriptor_of(&any, world, actor);
    *view = (struct view){.open = fd >= 0};
    if (fd < 0) return;
    struct pollfd entry = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND, 0};
    if (shared->phase[0] == 'l') {
        calls[world].poll(&entry, 1, 0);
        view->events = entry.revents;
    }
    if (calls[world].ioctl(fd, FIONREAD, &view->queued) < 0) view->queued = -errno;
    struct tcp_info info;
    socklen_t length;
    if (calls[NATIVE].ioctl(fd, TIOCOUTQ, &view->held) < 0) view->held = 0;
    view->state = -1;
    if (!tcp_info(fd, &info, &length)) return;
    view->state = info.tcpi_state;
    view->unacknowledged = (int32_t)info.tcpi_unacked;
    view->retries = info.tcpi_retransmits + info.tcpi_probes;
}

// MARK: The rest

static void add_alias(int world, int end, int actor, int fd) {
    int *list = shared->ends[world][end].descriptor[actor];
    for (int i = 0; i < MAXIMUM_ALIASES; i++)
        if (list[i] < 0) {
            list[i] = fd;
            return;
        }
    calls[world].close(fd);
}

static void duplicate_step(const struct step *step, int world, int actor, int fd, struct outcome *out) {
    int *list = shared->ends[world][step->end].descriptor[actor], other = -1;
    for (int i = 0; i < MAXIMUM_ALIASES; i++)
        if (list[i] >= 0 && list[i] != fd) other = list[i];
    errno = 0;
    int new;
    if (step->a & 1) new = calls[world].dup(fd);
    else if (step->a & 2) new = calls[world].fcntl(fd, step->a & 4 ? F_DUPFD : F_DUPFD_CLOEXEC, 64);
    else new = calls[world].dup2(fd, other >= 0 ? other : fd);
    out->value = new < 0 ? -1 : 0;
    out->error = new < 0 ? errno : 0;
    if (new >= 0 && new != fd && new != other) add_alias(world, step->end, actor, new);
}

static void close_step(const struct step *step, int world, int actor, int fd, struct outcome *out) {
    int *list = shared->ends[world][step->end].descriptor[actor];
    if (step->operation == LINGER_CLOSE) {
        struct linger linger = {1, step->a & 1};
        calls[world].setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    start_ticking(step->restarts);
    errno = 0;
    out->value = calls[world].close(fd);
    out->error = out->value < 0 ? errno : 0;
    stop_ticking();
    for (int i = 0; i < MAXIMUM_ALIASES; i++)
        if (list[i] == fd) list[i] = -1;
}

// With smaller buffers and segments TCP itself stands still for seconds (its window is closed, and probed ever more rarely).
static const struct { int level, name, low, high; } settable[] = {
    {SOL_SOCKET, SO_KEEPALIVE, 0, 1}, {SOL_SOCKET, SO_REUSEADDR, 0, 1}, {SOL_SOCKET, SO_PRIORITY, 0, 6},
    {SOL_SOCKET, SO_RCVTIMEO, 0, 20000}, {SOL_SOCKET, SO_SNDTIMEO, 0, 20000}, {SOL_SOCKET, SO_RCVBUF, 20000, 200000},
    {SOL_SOCKET, SO_SNDBUF, 20000, 200000}, {SOL_SOCKET, SO_RCVLOWAT, 0, 3}, {SOL_SOCKET, SO_BROADCAST, 0, 1},
    {SOL_SOCKET, SO_TIMESTAMP, 0, 1}, {SOL_SOCKET, SO_PEEK_OFF, -1, -1}, {SOL_SOCKET, SO_BUSY_POLL, 0, 0},
    {SOL_SOCKET, SO_ERROR, 0, 0}, {SOL_SOCKET, 9999, 0, 1}, {IPPROTO_TCP, TCP_NODELAY, 0, 1}, {IPPROTO_TCP, TCP_QUICKACK, 0, 1},
    {IPPROTO_TCP, TCP_KEEPIDLE, 0, 100}, {IPPROTO_TCP, TCP_KEEPINTVL, 1, 100}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 1000, 100000},
    {IPPROTO_TCP, TCP_MAXSEG, 400, 1400}, {IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, 1}, {IPPROTO_TCP, TCP_SYNCNT, 1, 5},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, 60000, 100000}, {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 100000, 200000},
    {IPPROTO_TCP, TCP_FASTOPEN, 0, 1}, {IPPROTO_TCP, 9999, 0, 1}, {IPPROTO_IP, IP_TOS, 0, 16}, {IPPROTO_IP, IP_TTL, 1, 64},
    {77, 77, 0, 1},
    {SOL_SOCKET, SO_OOBINLINE, 0, 1},  // with urgent data only
};
static const struct { int level, name; } gettable[] = {
    {SOL_SOCKET, SO_TYPE}, {SOL_SOCKET, SO_PROTOCOL}, {SOL_SOCKET, SO_DOMAIN}, {SOL_SOCKET, SO_ERROR}, {SOL_SOCKET, SO_KEEPALIVE},
    {SOL_SOCKET, SO_LINGER}, {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, SO_OOBINLINE}, {SOL_SOCKET, SO_RCVLOWAT},
    {SOL_SOCKET, SO_SNDLOWAT}, {SOL_SOCKET, SO_ACCEPTCONN}, {SOL_SOCKET, SO_PRIORITY}, {SOL_SOCKET, SO_RCVTIMEO},
    {SOL_SOCKET, SO_PEEK_OFF}, {SOL_SOCKET, 9999}, {IPPROTO_TCP, TCP_NODELAY}, {IPPROTO_TCP, TCP_CORK},
    {IPPROTO_TCP, TCP_KEEPIDLE}, {IPPROTO_TCP, TCP_KEEPINTVL}, {IPPROTO_TCP, TCP_USER_TIMEOUT}, {IPPROTO_TCP, 9999},
    {IPPROTO_IP, IP_TOS}, {IPPROTO_IP, IP_TTL}, {77, 77},
};

static void option_step(const struct step *step, int world, int fd, struct outcome *out) {
    uint32_t a = (uint32_t)step->a, b = (uint32_t)step->b;
    union { int number; struct timeval time; struct linger linger; char bytes[64]; } value = {0};
    errno = 0;
    if (step->operation == SETSOCKOPT) {
        size_t which = a % (sizeof settable / sizeof *settable - !shared->plan.isUrgent);
        int level = settable[which].level, name = settable[which].name;
        int number = settable[which].low + (int)(b % (uint32_t)(settable[which].high - settable[which].low + 1));
        socklen_t length = sizeof(int);
        bool isTime = level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO);
        if (isTime) {
            value.time = (struct timeval){0, number};
            length = sizeof value.time;
        } else {
            value.number = number;
        }
        if (isTime) shared->timed = true;
        if (level == SOL_SOCKET && name == SO_TIMESTAMP) shared->stamped = true;
        if (b >> 28 == 3) length = b >> 20 & 7;
        out->value = calls[world].setsockopt(fd, level, name, b >> 28 == 5 ? NULL : &value, length);
        // From now on TCP may take and hold less than a ring.
        bool isBuffer = (level == SOL_SOCKET && (name == SO_RCVBUF || name == SO_SNDBUF))
            || (level == IPPROTO_TCP && (name == TCP_WINDOW_CLAMP || name == TCP_NOTSENT_LOWAT || name == TCP_MAXSEG));
        bool needsTCP = level == SOL_SOCKET && (name == SO_RCVLOWAT || name == SO_PEEK_OFF || name == SO_OOBINLINE);
        if (name == SO_OOBINLINE && level == SOL_SOCKET && out->value == 0) shared->ends[world][step->end].isInline = number;
        if (needsTCP) shared->toggled = true;
        if ((level == SOL_SOCKET && (name == SO_RCVLOWAT || name == SO_SNDBUF)) || (level == IPPROTO_TCP && name == TCP_NOTSENT_LOWAT))
            shared->ends[world][step->end].retold = true;
        if (isBuffer) shared->ends[world][CONNECTOR].limit = shared->ends[world][ACCEPTOR].limit = 256;
    } else {
        size_t which = a % (sizeof gettable / sizeof *gettable);
        socklen_t length = b >> 28 == 3 ? b >> 20 & 7 : sizeof value;
        memset(&value, untouched, sizeof value);
        out->value = calls[world].getsockopt(fd, gettable[which].level, gettable[which].name, &value, &length);
        // A signal's ERESTARTSYS aside, what it writes is the same; how much, too.
        out->extra[out->extras++] = (int32_t)length;
        memcpy(&out->extra[out->extras], &value, 16);
        out->extras += 4;
    }
    out->error = out->value < 0 ? errno : 0;
}

static void control_step(const struct step *step, int world, int fd, struct outcome *out) {
    int number = (int)untouched;
    errno = 0;
    switch ((uint32_t)step->a % 6) {
    case 0: out->value = calls[world].ioctl(fd, SIOCATMARK, &number); break;
    case 1: out->value = calls[world].ioctl(fd, 0x541B /* FIONREAD */, NULL); break;
    case 2: out->value = calls[world].ioctl(fd, 0x12345678, &number); break;
    case 3: out->value = calls[world].fcntl(fd, F_GETFL); number = 0; break;
    case 4: out->value = calls[world].fcntl(fd, F_SETOWN, 0); break;
    default: out->value = calls[world].fcntl(fd, 12345, 0); break;
    }
    out->error = out->value < 0 ? errno : 0;
    out->extra[out->extras++] = number;
}

static void misuse_step(const struct step *step, int world, int fd, struct outcome *out) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct iovec piece = {buffer, 0};
    errno = 0;
    switch ((uint32_t)step->a % 13) {
    case 0: out->value = calls[world].connect(fd, (struct sockaddr *)&address, shared->plan.inet6 ? 28 : sizeof address); break;
    case 1: out->value = calls[world].connect(fd, (struct sockaddr *)&address, 3); break;
    case 2: out->value = calls[world].listen(fd, 5); break;
    case 3:
        address.sin_port = 0;
        out->value = calls[world].bind(fd, (struct sockaddr *)&address, sizeof address); break;
    case 4: out->value = calls[world].accept(fd, NULL, NULL); break;
    case 5: out->value = calls[world].shutdown(fd, (int)(3 + (uint32_t)step->b % 7)); break;
    case 6: out->value = calls[world].readv(fd, &piece, -1); break;
    case 7: out->value = calls[world].writev(fd, &piece, 0); break;
    case 8: out->value = calls[world].writev(fd, &piece, 1025); break;
    case 9: out->value = calls[world].recvmsg(fd, NULL, MSG_DONTWAIT); break;
    case 10: out->value = calls[world].sendmsg(fd, NULL, MSG_DONTWAIT); break;
    case 11: out->value = lseek(fd, 0, SEEK_SET); break;
    default: out->value = pread(fd, buffer, 10, 0); break;
    }
    out->error = out->value < 0 ? errno : 0;
}

void perform(const struct step *step, int world, int actor, struct outcome *out) {
    memset(out, 0, sizeof *out);
    int fd = descriptor_of(step, world, actor);
    if (fd < 0) {
        out->skipped = true;
        return;
    }
    struct end *end = &shared->ends[world][step->end];
    if (step->operation <= SENDFILE) return send_step(step, world, fd, out);
    if (step->operation <= RECVMMSG) return receive_step(step, world, fd, out);
    pipes = 0;
    switch (step->operation) {
    case POLL: poll_step(step, world, fd, out); break;
    case SELECT: select_step(step, world, fd, out); break;
    case EPOLL_CTL:
    case EPOLL_WAIT: epoll_step(step, world, fd, out); break;
    case SHUTDOWN: {
        int how = (int)((uint32_t)step->a % 3);
        errno = 0;
        out->value = calls[world].shutdown(fd, how);
        out->error = out->value < 0 ? errno : 0;
        if (out->value == 0 && how != SHUT_WR) end->readShut = true;
        if (out->value == 0 && how != SHUT_RD) end->writeShut = true;
        break;
    }
    case CLOSE:
    case LINGER_CLOSE: close_step(step, world, actor, fd, out); break;
    case DUP: duplicate_step(step, world, actor, fd, out); break;
    case NONBLOCK:
        errno = 0;
        if (step->b & 1) {
            int flags = calls[world].fcntl(fd, F_GETFL);
            out->value = calls[world].fcntl(fd, F_SETFL, step->a & 1 ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
        } else {
            int on = step->a & 1;
            out->value = calls[world].ioctl(fd, FIONBIO, &on);
        }
        out->error = out->value < 0 ? errno : 0;
        break;
    case SETSOCKOPT:
    case GETSOCKOPT: option_step(step, world, fd, out); break;
    case IOCTL: control_step(step, world, fd, out); break;
    case NAMES: {
        struct sockaddr_storage address;
        memset(&address, 0, sizeof address);
        socklen_t length = (uint32_t)step->b % 40;
        errno = 0;
        out->value = step->a & 1 ? calls[world].getsockname(fd, (struct sockaddr *)&address, &length)
                                 : calls[world].getpeername(fd, (struct sockaddr *)&address, &length);
        out->error = out->value < 0 ? errno : 0;
        out->extra[out->extras++] = (int32_t)length;
        break;
    }
    case MISUSE: misuse_step(step, world, fd, out); break;
    default: break;
    }
    out->signals = pipes;
}
