"""Both ends in one thread: connect, accept, then write much before anything is read, as TCP's buffers allow.

    self_talk.py BYTES ROUNDS
"""
import hashlib
import random
import socket
import sys

size, rounds = int(sys.argv[1]), int(sys.argv[2])
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)
a = socket.create_connection(listener.getsockname())
b, _ = listener.accept()
rng = random.Random(size)


def move(source, target, data):
    source.sendall(data)
    got = bytearray()
    while len(got) < len(data):
        got += target.recv(len(data) - len(got))
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest(), "bytes differ"


for _ in range(200):
    move(a, b, rng.randbytes(64))
    move(b, a, rng.randbytes(64))
print("warm", flush=True)
for number in range(rounds):
    data = rng.randbytes(size)
    move(a, b, data)
    move(b, a, data)
a.shutdown(socket.SHUT_WR)
assert b.recv(1) == b""
b.sendall(b"last words")
b.close()
assert a.recv(100) == b"last words" and a.recv(1) == b""
print("done", flush=True)
