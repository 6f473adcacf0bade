"""A pre-forking server: workers inherit one listener and accept from it, each one connection after the other, and send
back what comes. The parent starts another for each that ends.

    prefork.py PORT WORKERS      prints "worker PID" as each starts, and "serving PID"
                                 as it accepts; SIGHUP: new workers, the old finish what they serve
"""
import os
import signal
import socket
import sys

HANDLED = (signal.SIGHUP, signal.SIGTERM)
leaving = False


def say(text):
    os.write(1, text.encode() + b"\n")


def work(listener):
    serving = False

    def leave(*_):
        global leaving
        leaving = True
        if not serving:
            os._exit(0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    say(f"worker {os.getpid()}")
    while not leaving:
        connection, _ = listener.accept()
        serving = True
        say(f"serving {os.getpid()}")
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)
        serving = False
    os._exit(0)


def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    count = int(sys.argv[2])
    workers, old = set(), set()

    def end(*_):
        for worker in workers | old:
            os.kill(worker, signal.SIGTERM)
        os._exit(0)

    def reload(*_):
        for worker in workers:
            os.kill(worker, signal.SIGUSR1)
        old.update(workers)
        workers.clear()
        fill()

    def fill():
        while len(workers) < count:
            pid = os.fork()
            if pid == 0:
                work(listener)
            workers.add(pid)
    fill()
    signal.signal(signal.SIGHUP, reload)
    signal.signal(signal.SIGTERM, end)
    while True:
        ended, _ = os.wait()
        # No handler sees the sets half changed.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        workers.discard(ended)
        old.discard(ended)
        fill()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


main()
