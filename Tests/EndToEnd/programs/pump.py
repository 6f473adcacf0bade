"""Moves checked bytes in one of several ways until the other end dies, and says when and how it noticed.

    pump.py server PORT          serves every connection in a thread; one JSON line for each end
    pump.py client PORT MODE     MODE: pingpong download upload both epoll stuck idle; a line on standard input makes it
                                 print how much it has moved
"""
import json
import os
import select
import socket
import sys
import threading
import time

PERIOD = 251
BLOCK = bytes(range(PERIOD)) * 1050
WARM_UP = 200


def say(**fields):
    os.write(1, (json.dumps(fields) + "\n").encode())


class Ended(Exception):
    """The stream's end: eof, reset or pipe."""


class Stream:
    """Both directions of one connection; byte n of each is n mod 251."""

    def __init__(self, connection):
        self.socket = connection
        self.sent = 0
        self.received = 0

    def send(self, count):
        start = self.sent % PERIOD
        try:
            done = self.socket.send(memoryview(BLOCK)[start:start + count])
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            raise Ended("reset")
        except BrokenPipeError:
            raise Ended("pipe")
        self.sent += done
        return done

    def send_all(self, count):
        while count:
            count -= self.send(count)

    def receive(self, count):
        try:
            data = self.socket.recv(count)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise Ended("reset")
        if not data:
            raise Ended("eof")
        start = self.received % PERIOD
        if data != BLOCK[start:start + len(data)]:
            say(event="corrupt", offset=self.received)
            os._exit(3)
        self.received += len(data)
        return len(data)

    def receive_all(self, count):
        while count:
            count -= self.receive(count)


def echo(stream):
    while True:
        stream.receive_all(64)
        stream.send_all(64)


def ask(stream):
    while True:
        stream.send_all(64)
        stream.receive_all(64)


def send_only(stream):
    while True:
        stream.send(60000)


def receive_only(stream):
    while True:
        stream.receive(200000)


def both(stream):
    def pour():
        try:
            send_only(stream)
        except (Ended, OSError):
            pass
    sender = threading.Thread(target=pour, daemon=True)
    sender.start()
    try:
        receive_only(stream)
    finally:
        sender.join(5)


def evented(stream):
    stream.socket.setblocking(False)
    poller = select.epoll()
    poller.register(stream.socket, select.EPOLLIN | select.EPOLLOUT)
    try:
        while True:
            for _, events in poller.poll():
                if events & ~select.EPOLLOUT:
                    stream.receive(100000)
                if events & select.EPOLLOUT:
                    stream.send(30000)
    finally:
        poller.close()


def idle(stream):
    while True:
        stream.receive(1)


def stuck(stream):
    """Reads nothing until the other end is gone."""
    poller = select.poll()
    poller.register(stream.socket, select.POLLRDHUP)
    poller.poll()
    receive_only(stream)


# MODE: what the client does, what the server does after the warm-up
MODES = {
    "pingpong": (ask, echo), "download": (receive_only, send_only), "upload": (send_only, receive_only),
    "both": (both, both), "epoll": (evented, evented), "stuck": (stuck, send_only), "idle": (idle, idle),
}


def drive(connection, mode, index, peer_name):
    stream = Stream(connection)
    act = MODES[mode][index]

    def run():
        try:
            for _ in range(WARM_UP):
                if index == 0:
                    stream.send_all(64)
                    stream.receive_all(64)
                else:
                    stream.receive_all(64)
                    stream.send_all(64)
            say(event="running", mode=mode, peer=peer_name)
            act(stream)
        except Ended as end:
            say(event=str(end), at=time.monotonic(), mode=mode, peer=peer_name, sent=stream.sent, received=stream.received)
        connection.close()
    return stream, run


def server(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    say(event="listening")
    names = sorted(MODES)
    while True:
        connection, peer = listener.accept()

        def serve(connection=connection, peer=peer):
            try:
                letter = connection.recv(1)
            except ConnectionResetError:
                letter = b""
            if not letter:
                say(event="eof", at=time.monotonic(), mode="none", peer=peer[1], sent=0, received=0)
                connection.close()
                return
            drive(connection, names[letter[0]], 1, peer[1])[1]()
        threading.Thread(target=serve, daemon=True).start()


def client(port, mode):
    connection = socket.create_connection(("127.0.0.1", port))
    own = connection.getsockname()[1]
    connection.sendall(bytes([sorted(MODES).index(mode)]))
    stream, run = drive(connection, mode, 0, own)

    def obey():
        for _ in sys.stdin:
            say(event="moved", bytes=stream.sent + stream.received)
    threading.Thread(target=obey, daemon=True).start()
    run()


if sys.argv[1] == "server":
    server(int(sys.argv[2]))
else:
    client(int(sys.argv[2]), sys.argv[3])
