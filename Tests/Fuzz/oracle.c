// What must be equal, and what TCP itself leaves open.
//
// Every step is taken in the native world (libc's functions, kernel TCP), then in the switched one. Before the next step
// both have settled: what was sent has arrived, ends and resets too. Then everything is determined and must be equal:
// result, errno, SIGPIPEs, bytes (each byte is a function of its direction and position), bytes beyond the result
// (untouched), what message headers say, readiness, FIONREAD, the kernel's state of the TCP socket. Except:
//
//  1. How much a call takes while much is under way. Below `limit` bytes under way (16 KiB, half of the first ring;
//     256 once a buffer size was set) amounts are TCP's to determine
//     and equal. Above, a non-blocking or interrupted send may take any part; taking nothing (EAGAIN) where TCP takes
//     something is allowed if anything is under way, but then the socket must become writable within seconds although
//     nobody reads, as TCP is (tried now and then), or TCP carries the direction and its own buffers are full: those of a
//     connection over which less has gone are smaller. How much of it has arrived, POLLOUT and FIONREAD are open as well,
//     and so what a receive gets. If the two worlds then have different amounts under way, both are drained, with every byte
//     checked.
//     (A receiver that has shut down reading sees the end where bytes are still on their way.)
//  2. Memory of which a part is inaccessible: the kernel moves whole segments, so the call may fail with EFAULT or move
//     any number of the bytes that are accessible.
//  3. A receive where a carrier change lies in the middle of what is under way may return the first part of it, as TCP
//     may at a segment's end, and FIONREAD may speak of it alone. What it returns is counted (splits), never zero.
//  4. An edge-triggered epoll set may report an edge more, with events that are true. None less, except the edges of what
//     is open by 1: room, if a send here has not been told since that there was none; data, while much is under way. (TCP
//     repeats that there is room when something else has happened, also when that is over, and with room it repeats what
//     there is to read; and of everything after SO_RCVLOWAT, SO_SNDBUF, TCP_NOTSENT_LOWAT.)
//  5. FIN_WAIT1 and FIN_WAIT2 are one state (the acknowledgement may be delayed), and so are LAST_ACK, CLOSING, TIME_WAIT
//     and CLOSE.
//  6. With SO_RCVTIMEO or SO_SNDTIMEO near the time of a signal either of EAGAIN and EINTR.
//  7. Bytes that lay in the ring when their receiver gives it up for good (splice, options) are late until the sender's next
//     call, and those for which TCP has no room then until the one after it. A splice that got nothing is made again after
//     that; when it got a part the rest is drained. Where they cannot be sent again splice answers EINVAL, and the fuzzer
//     copies, as programs do.
//  8. Without TCP_NODELAY what is sent may wait until what was sent before it has been acknowledged, up to 40 ms, and so may
//     the reset that answers it: of several messages of one call the second one may meet it or not. So only one is sent to
//     an end that has shut down both halves; and nothing with MSG_MORE to an end that reads no more. Where one world sends to
//     such an end and the other has no room (1), the reset comes in one world only: the sequence ends there.
//  9. What the kernel has dropped for want of memory it sends again, after up to seconds: while it tries, in either world,
//     half a minute is given.
// 10. Where the urgent byte stands is TCP's to determine while it takes all of a call at once, so urgent data are sent below
//     `limit` only. A second one makes the first an ordinary byte again, or drops it if everything before it has been read: to
//     TCP it has, when all of that is in the ring. So the second one waits until the first has been reached.
// 11. Under which numbers an end is registered in a set: the worlds share a process's descriptor numbers, so a duplicate may
//     get the number of a closed one, whose registration the kernel keeps, in one world only. When a step's number is
//     registered by different steps in the two worlds, the sequence ends.
// 12. What a signal does that comes in the middle of a call that need not wait (the process had no processor for some
//     milliseconds): sendfile then ends early, or with EINTR before it has moved anything, and a receive at the urgent mark
//     does not go past it. When TCP so tells of an urgent byte that has been passed, the sequence ends.
// 13. With the urgent byte alone before a receive there is nothing to read. TCP says that there is when its receive buffer is
//     nearly full (a byte keeps all that it came with in memory, also what has been read), or its window less than a segment.
#include "fuzz.h"
#include <stdarg.h>

uint64_t under_way(int world, int sender) {
    return shared->ends[world][sender].sent - shared->ends[world][1 - sender].received;
}

/// Of what is under way, what FIONREAD tells of: it sees nothing behind an urgent mark, nor a mark itself.
uint64_t until_mark(int world, int sender) {
    struct end *reader = &shared->ends[world][1 - sender];
    bool isHidden = reader->mark >= reader->received && reader->mark != NO_MARK && !reader->isInline;
    return isHidden ? reader->mark - reader->received : under_way(world, sender);
}

bool has_ended(int world, int sender) { return holder(world, sender, 0) < 0 || shared->ends[world][sender].writeShut; }

/// Where a receive of `size` bytes begins that finds itself at `position`: at the mark it leaves the urgent byte out, which is
/// gone then, whether or not anything comes behind it.
uint64_t begin_of_receive(const struct end *end, uint64_t position, size_t size) {
    return position == end->mark && size > 0 && !end->isInline ? position + 1 : position;
}

void differ(const char *format, ...) {
    if (shared->differs) return;
    va_list list;
    va_start(list, format);
    vsnprintf(shared->verdict, sizeof shared->verdict, format, list);
    va_end(list);
    shared->differs = true;
    shared->failedStep = shared->step;
}

static bool is_send(const struct step *step) { return step->operation <= SENDFILE; }
static bool is_receive(const struct step *step) { return step->operation > SENDFILE && step->operation <= RECVMMSG; }

static const char *name_of(int error) { return error ? strerrorname_np(error) : "no error"; }

static bool may_wait_differently(int error) { return error == EAGAIN || error == EINTR; }

static bool compare_free(const struct step *step, const struct outcome *native, const struct outcome *switched) {
    if ((native->value > 0) == (switched->value > 0) && native->error == switched->error) return true;
    if (native->value <= 0 && switched->value <= 0 && may_wait_differently(native->error) && may_wait_differently(switched->error))
        return true;
    // Who waits for room has not looked at the memory yet, and who waits for data not at how much was wanted.
    // (What has arrived takes room until it is acknowledged.)
    if (native->error == EFAULT && is_send(step) && may_wait_differently(switched->error))
        return under_way(SWITCHED, step->end) > 0 || switched->unacknowledged;
    if (is_send(step) && may_wait_differently(native->error) && switched->error == EFAULT)
        return under_way(NATIVE, step->end) > 0 || native->unacknowledged;
    if (is_receive(step) && step->size == 0 && native->value == 0 && may_wait_differently(switched->error))
        return shared->ends[NATIVE][step->end].limit < 1000;
    if (is_receive(step) && may_wait_differently(native->error) && (switched->error == EFAULT || switched->value == 0)) return true;
    if (is_receive(step) && native->error == EFAULT && may_wait_differently(switched->error))
        return shared->ends[NATIVE][step->end].limit < 1000;
    // After an own SHUT_RD nobody waits: what has not come is the end.
    bool isEnd = is_receive(step) && shared->ends[NATIVE][step->end].readShut;
    if (isEnd && native->error == EFAULT && switched->value == 0) return true;
    if ((native->value > 0) == (switched->value > 0)) return false;
    if (isEnd) return true;
    // With small buffers bytes are on their way for long.
    if (is_receive(step) && native->value > 0 && may_wait_differently(switched->error) && shared->ends[NATIVE][step->end].limit < 1000)
        return true;
    if (step->memory == HALF && (native->error == EFAULT || switched->error == EFAULT)) return true;
    if (native->value > 0) {
        // What has arrived takes room until it is acknowledged.
        return is_send(step) && may_wait_differently(switched->error) && (under_way(SWITCHED, step->end) > 0 || switched->unacknowledged);
    }
    return may_wait_differently(native->error);
}

/// A receive that ended at a carrier change.
static bool is_split(const struct step *step, const struct outcome *native, const struct outcome *switched) {
    if (!is_receive(step) || !shared->toggled || native->value <= 0 || switched->value <= 0) return false;
    // Of several messages any may end there.
    return switched->moved < native->moved || (step->operation == RECVMMSG && switched->moved == native->moved);
}

/// Whether all that is under way to an end is an urgent byte: nothing else, and no end of the stream.
static bool has_mark_alone(int end) {
    if (shared->ends[NATIVE][end].readShut || has_ended(NATIVE, 1 - end)) return false;
    return under_way(NATIVE, 1 - end) == 1 && until_mark(NATIVE, 1 - end) == 0;
}

/// Events that are open for an end: whether there is room depends on the carrier.
static uint32_t open_events(int end) {
    uint32_t limit = shared->ends[NATIVE][end].limit, open = 0;
    if (under_way(NATIVE, end) > limit || under_way(SWITCHED, end) > limit || limit < 1000) open |= POLLOUT | POLLWRNORM | POLLWRBAND;
    // The end comes behind it.
    if (under_way(NATIVE, 1 - end) > limit) open |= POLLRDHUP;
    if (limit < 1000 && under_way(NATIVE, 1 - end) > limit) open |= POLLIN | POLLRDNORM;
    if (shared->ends[NATIVE][end].lags && under_way(NATIVE, 1 - end) > 0) open |= POLLIN | POLLRDNORM;
    if (has_mark_alone(end)) open |= POLLIN | POLLRDNORM;
    return open;
}

/// poll and select where it is open whether there is room.
static bool compare_waits(const struct step *step, const struct outcome *native, const struct outcome *switched) {
    uint32_t open = open_events(step->end);
    if (!open) return false;
    if (step->operation == SELECT)
        return (open & POLLIN || native->extra[0] == switched->extra[0]) && native->extra[2] == switched->extra[2];
    if (step->operation != POLL) return false;
    for (int i = 0; i < 2; i++)
        if (((uint32_t)native->extra[i] & ~open) != ((uint32_t)switched->extra[i] & ~open)) return false;
    return native->error == switched->error;
}

static bool compare_edges(const struct step *step, const struct outcome *native, const struct outcome *switched) {
    enum { ROOM = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND, DATA = EPOLLIN | EPOLLRDNORM };
    struct end *mine = &shared->ends[NATIVE][step->end], *ours = &shared->ends[SWITCHED][step->end];
    int32_t open = (int32_t)open_events(step->end);
    bool wasFlooded = mine->flooded;
    if (wasFlooded) open |= EPOLLIN | EPOLLRDNORM;
    if (under_way(NATIVE, 1 - step->end) <= mine->limit) mine->flooded = false;
    bool hasRoom = !ours->full, wasCrowded = mine->crowded;
    for (int i = 0; i < native->extras; i++)
        if (native->extra[i] & ROOM) mine->crowded = false;
    uint64_t came = shared->ends[SWITCHED][1 - step->end].sent, told[MAXIMUM_STEPS];
    memcpy(told, ours->toldData, sizeof told);
    for (int i = 0; i < switched->extras; i++)
        if (switched->extra[i] & DATA) ours->toldData[(uint32_t)switched->extra[i] >> 24] = came;
    for (int i = 0; i < switched->extras; i++)
        if (switched->extra[i] & ROOM) ours->full = false, ours->toldRoom[(uint32_t)switched->extra[i] >> 24] = true;
    for (int i = 0; i < native->extras; i++) {
        uint32_t registration = (uint32_t)native->extra[i] >> 24;
        bool isEdge = shared->plan.steps[registration].a & EDGE_BIT;
        int32_t mayMiss = open | (isEdge && hasRoom && (wasCrowded || ours->toldRoom[registration]) ? ROOM : 0);
        // With an edge of room comes what is there to read, though it has been told, and that something is urgent.
        if (isEdge && native->extra[i] & ROOM & mayMiss) mayMiss |= EPOLLPRI | (came > 0 && told[registration] == came ? DATA : 0);
        if (isEdge && mine->retold) continue;
        // When TCP sends what waited for room in the window is its own affair, and with that edge comes everything else.
        if (isEdge && wasFlooded && native->extra[i] & DATA) continue;
        if (!(native->extra[i] & 0xffffff & ~mayMiss)) continue;
        int at = 0;
        while (at < switched->extras && (uint32_t)switched->extra[at] >> 24 != registration) at++;
        if (at == switched->extras) return false;
        if ((native->extra[i] & ~switched->extra[at]) & 0xffffff & ~mayMiss) return false;
    }
    mine->retold = false;
    return true;
}

bool compare_outcomes(const struct step *step, const struct outcome *native, const struct outcome *switched) {
    if (native->wrongBytes) {
        differ("TCP itself delivered other bytes than were sent: a defect of the fuzzer");
        return false;
    }
    if (switched->wrongBytes) {
        differ("wrong bytes, or memory written that should not be (result %lld) %s", (long long)switched->value, shared->detail);
        return false;
    }
    if (native->skipped != switched->skipped) {
        differ("the descriptor is open in one world only");
        return false;
    }
    if (native->registration != switched->registration) return false;
    if (native->isAmountFree || switched->isAmountFree) {
        if (compare_free(step, native, switched)) return true;
    } else if (step->operation == EPOLL_WAIT) {
        if (native->error == switched->error && compare_edges(step, native, switched)) {
            shared->statistics.extraEdges += native->extras < switched->extras;
            return true;
        }
    } else if (native->value == switched->value && native->error == switched->error
        && memcmp(native->extra, switched->extra, sizeof native->extra) == 0 && native->waited == switched->waited
        && native->signals == switched->signals) {
        return true;
    } else if (shared->timed && native->value < 0 && switched->value < 0 && may_wait_differently(native->error)
        && may_wait_differently(switched->error)) {
        return true;
    } else if (compare_waits(step, native, switched)) {
        return true;
    } else if (step->operation == SENDFILE && switched->value > native->value && (native->value > 0 || native->error == EINTR)) {
        return true;
    } else if (is_split(step, native, switched)) {
        shared->statistics.splits++;
        return true;
    }
    char text[2048];
    size_t at = 0;
    for (int i = 0; i < native->extras || i < switched->extras; i++)
        if (native->extra[i] != switched->extra[i] && at < sizeof text - 64)
            at += (size_t)snprintf(text + at, sizeof text - at, "; value %d written: 0x%x and 0x%x", i, native->extra[i], switched->extra[i]);
    text[at] = 0;
    differ("TCP: %lld (%s), the switch: %lld (%s)%s%s%s", (long long)native->value, name_of(native->error), (long long)switched->value,
           name_of(switched->error), native->signals != switched->signals ? "; number of SIGPIPEs" : "",
           native->waited != switched->waited ? "; restarting after a signal" : "", text);
    return false;
}

static int merged(int state) {
    switch (state) {
    case TCP_FIN_WAIT2: return TCP_FIN_WAIT1;
    case TCP_LAST_ACK:
    case TCP_CLOSING:
    case TCP_TIME_WAIT: return TCP_CLOSE;
    default: return state;
    }
}

bool has_stayed_at_mark(int end, const struct view *native) {
    const struct end *mine = &shared->ends[NATIVE][end];
    return native->events & POLLPRI && mine->mark != NO_MARK && mine->mark < mine->received;
}

bool views_agree(int end, const struct view *native, const struct view *switched, bool isLate, bool isLast) {
    bool isFlooded = under_way(NATIVE, 1 - end) > shared->ends[NATIVE][end].limit, queueIsOpen = isFlooded;
    if (isLate && shared->toggled && switched->queued > 0 && switched->queued < native->queued) queueIsOpen = true;
    // Of what was dropped for want of memory TCP sends some again after seconds only.
    if (isLate && native->open && native->queued >= 0 && (uint64_t)native->queued < until_mark(NATIVE, 1 - end)
        && native->queued < switched->queued && (uint64_t)switched->queued <= until_mark(SWITCHED, 1 - end))
        queueIsOpen = shared->ends[NATIVE][end].lags = true;
    // MSG_MORE holds back much as well as little, in each world for itself.
    bool mayStillCome = isFlooded && !isLate && native->queued > 0 && switched->queued == 0;
    int open = (int)open_events(end);
    // That there is nothing to read has to be seen all the same where TCP says it.
    if (has_mark_alone(end) && switched->events & ~native->events & POLLIN) open &= ~(POLLIN | POLLRDNORM);
    bool agree = !mayStillCome && native->open == switched->open && (native->events & ~open) == (switched->events & ~open)
        && (queueIsOpen || native->queued == switched->queued) && (isFlooded || merged(native->state) == merged(switched->state));
    if (!agree && isLast)
        differ("after it, end %c looks otherwise. TCP: events 0x%x, FIONREAD %d, state %d; the switch: events 0x%x, FIONREAD %d, state %d "
               "(to it %d segments on their way, %d times in vain)",
               "ab"[end], native->events, native->queued, native->state, switched->events, switched->queued, switched->state,
               switched->unacknowledged, switched->retries);
    return agree;
}
