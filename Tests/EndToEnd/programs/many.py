"""Very many connections in one process, with hardly more descriptors than that.

    many.py server COUNT DESCRIPTORS[:HARD]      says its port; echoes until COUNT connections have ended
    many.py client COUNT DESCRIPTORS PORT ROUNDS opens COUNT connections, talks ROUNDS times over each, says so, waits for a
                                                 line, talks once more over each, ends
"""
import os
import resource
import select
import socket
import sys

role, count = sys.argv[1], int(sys.argv[2])
soft, _, hard = sys.argv[3].partition(":")
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard or soft)))


def message(number, round_number):
    return f"{number:08d} {round_number:06d} ".encode() * 4


def serve():
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print("port", listener.getsockname()[1], flush=True)
    waiter = select.epoll()
    waiter.register(listener, select.EPOLLIN)
    connections, ended = {}, 0
    while ended < count:
        for fd, _ in waiter.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                waiter.register(connection, select.EPOLLIN)
                connections[connection.fileno()] = connection
                if len(connections) == count:
                    print("all here", flush=True)
                continue
            data = connections[fd].recv(65536)
            if data:
                connections[fd].sendall(data)
            else:
                waiter.unregister(fd)
                connections.pop(fd).close()
                ended += 1
    print("done", flush=True)


def converse(connections, round_number):
    for number, connection in enumerate(connections):
        connection.sendall(message(number, round_number))
    for number, connection in enumerate(connections):
        wanted = message(number, round_number)
        got = b""
        while len(got) < len(wanted):
            piece = connection.recv(len(wanted) - len(got))
            if not piece:
                sys.exit(f"connection {number} ended in round {round_number}")
            got += piece
        if got != wanted:
            sys.exit(f"connection {number}, round {round_number}: {got!r}")


def connect():
    port, rounds = int(sys.argv[4]), int(sys.argv[5])
    connections = []
    for number in range(count):
        connections.append(socket.create_connection(("127.0.0.1", port)))
        # The first move while there are still few, as in life.
        if number % 500 == 499:
            converse(connections, number)
    for round_number in range(rounds):
        converse(connections, round_number)
    print("talked", flush=True)
    os.read(0, 1)
    converse(connections, rounds)
    for connection in connections:
        connection.close()
    print("done", flush=True)


serve() if role == "server" else connect()
