"""Passes an epoll set with connections in it to a program that knows nothing of the switch, which must be told of them in the
program's own words: those that were in the set before, and those that are added later.

    passed_set.py          prints "done" when every answer was right
"""
import json
import os
import select
import socket
import subprocess
import sys
import time

RECEIVER = """
import json, select, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
_, fds, _, _ = socket.recv_fds(channel, 1, 1)
events = select.epoll.fromfd(fds[0])
while text := channel.recv(64):
    channel.sendall(json.dumps(sorted(events.poll(float(text)))).encode() + b"\\n")
"""


def pair(listener):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    for _ in range(200):  # until it has moved, where it can
        client.sendall(b"question")
        assert server.recv(8, socket.MSG_WAITALL) == b"question"
        server.sendall(b"answer")
        assert client.recv(6, socket.MSG_WAITALL) == b"answer"
        time.sleep(0.001)
    return client, server


def main():
    listener = socket.create_server(("127.0.0.1", 0))
    first, late = pair(listener), pair(listener)
    events = select.epoll()
    events.register(first[1].fileno(), select.EPOLLIN)
    once = pair(listener)
    events.register(once[1].fileno(), select.EPOLLIN | select.EPOLLONESHOT)
    plain = socket.create_connection(listener.getsockname()), None
    plain = plain[0], listener.accept()[0]
    events.register(plain[1].fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    ours, theirs = socket.socketpair()
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    receiver = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment)
    socket.send_fds(ours, [b"x"], [events.fileno()])
    answers = ours.makefile("r")

    def expect(seconds, *wanted):
        ours.sendall(str(seconds).encode())
        found = json.loads(answers.readline())
        assert found == sorted([end.fileno(), what] for end, what in wanted), (found, wanted)

    expect(0.1)
    first[0].sendall(b"a")
    expect(5, (first[1], select.EPOLLIN))
    expect(5, (first[1], select.EPOLLIN))
    assert first[1].recv(10) == b"a"
    expect(0.1)
    for ends in (once, plain):
        ends[0].sendall(b"b")
        expect(5, (ends[1], select.EPOLLIN))
        expect(0.1)
        assert ends[1].recv(10) == b"b"
    events.register(late[1].fileno(), select.EPOLLIN | select.EPOLLONESHOT)
    late[0].sendall(b"c")
    expect(5, (late[1], select.EPOLLIN))
    events.modify(late[1].fileno(), select.EPOLLIN)
    expect(5, (late[1], select.EPOLLIN))
    assert sorted(events.poll(0)) == [(late[1].fileno(), select.EPOLLIN)]
    assert late[1].recv(10) == b"c"
    expect(0.1)
    for ends in (first, late, once):
        ends[1].sendall(b"back")
        assert ends[0].recv(4, socket.MSG_WAITALL) == b"back"
    ours.shutdown(socket.SHUT_RDWR)
    assert receiver.wait(10) == 0
    print("done")


if __name__ == "__main__":
    main()
