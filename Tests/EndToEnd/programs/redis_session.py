"""A redis client of its own: seeded commands, each reply checked against a model; prints a digest of all replies, then
obeys lines on standard input: `go` (another batch), `steady` (until the next line), `end`.

    redis_session.py PORT SEED [BATCH]
"""
import hashlib
import os
import random
import select
import socket
import sys


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.digest = hashlib.sha256()
        self.replies = 0

    def more(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise SystemExit("the server closed the connection")
        self.buffer += data

    def line(self):
        while True:
            end = self.buffer.find(b"\r\n")
            if end >= 0:
                line = bytes(self.buffer[:end])
                del self.buffer[:end + 2]
                return line
            self.more()

    def exact(self, count):
        while len(self.buffer) < count:
            self.more()
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def reply(self):
        line = self.line()
        self.digest.update(line)
        kind, rest = line[:1], line[1:]
        if kind in b"+-:":
            return line
        if kind == b"$":
            if int(rest) < 0:
                return None
            data = self.exact(int(rest) + 2)[:-2]
            self.digest.update(data)
            return data
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        raise SystemExit(f"not a reply: {line!r}")

    @staticmethod
    def encode(*words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    def command(self, *words):
        self.socket.sendall(self.encode(*words))
        self.replies += 1
        return self.reply()


def batch(client, rng, model, count):
    for _ in range(count):
        roll = rng.randrange(10)
        key = f"key{rng.randrange(200)}"
        if roll < 3:
            value = rng.randbytes(int(2 ** rng.uniform(0, 17)))
            assert client.command("SET", key, value) == b"+OK"
            model[key] = value
        elif roll < 7:
            got = client.command("GET", key)
            assert got == model.get(key), f"{key}: {got!r:.80} instead of {model.get(key)!r:.80}"
        elif roll == 7:
            client.command("INCR", "counter")
        elif roll == 8:
            keys = [f"key{rng.randrange(200)}" for _ in range(rng.randrange(1, 20))]
            got = client.command("MGET", *keys)
            assert got == [model.get(key) for key in keys]
        else:
            keys = [f"key{rng.randrange(200)}" for _ in range(16)]
            client.socket.sendall(b"".join(client.encode("GET", key) for key in keys))
            for key in keys:
                client.replies += 1
                got = client.reply()
                assert got == model.get(key), f"pipelined {key}"


def main():
    port, seed = int(sys.argv[1]), int(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    rng = random.Random(seed)
    client = Client(port)
    model = {}
    batch(client, rng, model, count)
    print("digest", client.digest.hexdigest(), flush=True)
    steady = False
    while True:
        if select.select([0], [], [], 0 if steady else None)[0]:
            # Unbuffered, and only the newest word counts.
            word = (os.read(0, 4096).decode().split() or [""])[-1]
            steady = word == "steady"
            if word in ("end", ""):
                break
            if word == "go":
                batch(client, rng, model, count)
                print("digest", client.digest.hexdigest(), flush=True)
        elif steady:
            batch(client, rng, model, 20)
    client.socket.close()
    print(f"done {client.replies} replies", flush=True)


main()
