"""A memcached client of its own (text protocol): seeded sets and gets, each checked; then obeys standard input like
redis_session.py.

    memcached_session.py PORT SEED
"""
import os
import random
import select
import socket
import sys


def main():
    port, seed = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    connection = socket.create_connection(("127.0.0.1", port))
    file = connection.makefile("rb")
    model = {}
    commands = 0

    def batch(count):
        nonlocal commands
        for _ in range(count):
            commands += 1
            key = f"key{rng.randrange(100)}".encode()
            if rng.randrange(3) == 0:
                value = rng.randbytes(int(2 ** rng.uniform(0, 18)))
                connection.sendall(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(value), value))
                assert file.readline() == b"STORED\r\n"
                model[key] = value
            else:
                connection.sendall(b"get %s\r\n" % key)
                line = file.readline()
                got = None
                if line != b"END\r\n":
                    word, name, flags, length = line.split()
                    assert (word, name, flags) == (b"VALUE", key, b"7"), line
                    got = file.read(int(length) + 2)[:-2]
                    assert file.readline() == b"END\r\n"
                assert got == model.get(key), key

    batch(3000)
    print("ready", flush=True)
    steady = False
    while True:
        if select.select([0], [], [], 0 if steady else None)[0]:
            # Unbuffered, and only the newest word counts.
            word = (os.read(0, 4096).decode().split() or [""])[-1]
            steady = word == "steady"
            if word in ("end", ""):
                break
        elif steady:
            batch(20)
    connection.sendall(b"quit\r\n")
    assert file.read() == b""
    print(f"done {commands} commands", flush=True)


main()
