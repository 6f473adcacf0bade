"""An epoll set that a forked child has, too: whatever one of the two does with it, the other finds, as on TCP.

    forked_set.py          prints "done" when every answer was right
"""
import errno
import json
import os
import select
import socket

from passed_set import pair

IN, OUT, ONCE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLONESHOT


def perform(events, name, *values):
    """A call on the set, or a number of a socket that is closed and given to it again; its result, or errno."""
    if name == "replace":
        other = os.dup(*values)
        os.dup2(other, *values)
        os.close(other)
        return 0
    try:
        result = getattr(events, name)(*values)
    except OSError as error:
        return error.errno
    return sorted(map(list, result)) if name == "poll" else 0


def serve(channel, events):
    for line in channel.makefile("r"):
        channel.sendall(json.dumps(perform(events, *json.loads(line))).encode() + b"\n")
    os._exit(0)


class Set:
    """One set, and two processes that use it."""

    def __init__(self):
        self.events = select.epoll()

    def fork(self):
        self.channel, theirs = socket.socketpair()
        self.child = os.fork()
        if self.child == 0:
            self.channel.close()
            serve(theirs, self.events)
        theirs.close()
        self.answers = self.channel.makefile("r")

    def parent(self, *call):
        return perform(self.events, *call)

    def relative(self, *call):
        self.channel.sendall(json.dumps(call).encode() + b"\n")
        return json.loads(self.answers.readline())

    def end(self):
        self.channel.shutdown(socket.SHUT_RDWR)
        assert os.waitpid(self.child, 0)[1] == 0


def expect(found, wanted):
    assert found == wanted, (found, wanted)


def with_both(listener, change_it, the_other):
    """What `change_it` changes `the_other` is told of."""
    shared = Set()
    change, other = (lambda *call: getattr(shared, change_it)(*call)), (lambda *call: getattr(shared, the_other)(*call))
    level, once, late, gone = (pair(listener) for _ in range(4))
    shared.events.register(level[1].fileno(), IN)
    shared.events.register(once[1].fileno(), IN | ONCE)
    shared.events.register(gone[1].fileno(), OUT)
    shared.fork()
    fds = [ends[1].fileno() for ends in (level, once, late, gone)]

    # Nothing has changed: what is level-triggered both are told.
    level[0].sendall(b"a")
    for who in (change, other, change):
        expect(who("poll", 5), sorted([[fds[0], IN], [fds[3], OUT]]))
    # Deleted: it is no more, for the other either.
    expect(change("unregister", fds[3]), 0)
    expect(other("poll", 0.1), [[fds[0], IN]])
    expect(other("modify", fds[3], OUT), errno.ENOENT)
    expect(other("register", fds[3], OUT), 0)
    expect(change("poll", 5), sorted([[fds[0], IN], [fds[3], OUT]]))
    expect(change("unregister", fds[3]), 0)
    # Changed.
    expect(change("modify", fds[0], OUT), 0)
    expect(other("replace", fds[0]), 0)
    expect(other("poll", 5), [[fds[0], OUT]])
    expect(other("modify", fds[0], IN | OUT), 0)
    expect(change("poll", 5), [[fds[0], IN | OUT]])
    expect(change("modify", fds[0], 0), 0)
    expect(other("poll", 0.1), [])
    # Fired: it waits for nobody until somebody says so.
    once[0].sendall(b"b")
    expect(change("poll", 5), [[fds[1], IN]])
    expect(other("poll", 0.1), [])
    expect(change("poll", 0.1), [])
    expect(other("modify", fds[1], IN | ONCE), 0)
    expect(change("poll", 5), [[fds[1], IN]])
    expect(other("poll", 0.1), [])
    # Made after the fork.
    expect(change("register", fds[2], IN), 0)
    expect(other("register", fds[2], IN), errno.EEXIST)
    late[0].sendall(b"c")
    expect(other("poll", 5), [[fds[2], IN]])
    expect(change("poll", 5), [[fds[2], IN]])
    expect(other("unregister", fds[2]), 0)
    expect(change("poll", 0.1), [])

    for ends, sent in ((level, b"a"), (once, b"b"), (late, b"c"), (gone, b"")):
        assert ends[1].recv(10) == sent if sent else True
        ends[1].sendall(b"back")
        assert ends[0].recv(4, socket.MSG_WAITALL) == b"back"
    shared.end()
    # The child is gone: the set is this process's.
    level[0].sendall(b"d")
    expect(shared.parent("modify", fds[0], IN), 0)
    expect(shared.parent("poll", 5), [[fds[0], IN]])


def main():
    listener = socket.create_server(("127.0.0.1", 0))
    with_both(listener, "relative", "parent")
    with_both(listener, "parent", "relative")
    print("done")


main()
