"""A connection whose peer says its last and is gone; what it left behind is read by another program, which gets the descriptor:

    left.py HOW ENDS [BYTES]

HOW it gets it: exec, exec-plain (without the switch), fork, run (subprocess, as its standard input), run-plain, spawn
(posix_spawn), pass (SCM_RIGHTS), pass-plain. How the peer ENDS: exit, close, killed. Prints what was read and expected."""
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time

READER = ("import hashlib,os,sys\ndata=b''\nwhile True:\n    piece=os.read(0,70000)\n    if not piece: break\n    data+=piece\n"
          "print('read',len(data),hashlib.sha256(data).hexdigest(),flush=True)")


def exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            sys.exit("end of file")
        data += piece
    return data


def over_tcp(connection):
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return struct.unpack_from("Q", info, 128)[0]  # tcpi_bytes_received


def peer(listener, last, ends):
    connection = listener.accept()[0]
    listener.close()
    while (request := exactly(connection, 4)) != b"last":
        connection.sendall(request)
    connection.sendall(last)
    if ends == "close":
        connection.close()
        sys.stdin.read()
    if ends == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main():
    how, ends, count = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 30000
    last = hashlib.shake_256(b"left").digest(count)
    listener = socket.create_server(("127.0.0.1", 0))
    # Two programs that meet as strangers do; the peer is not to be in this one's family.
    address = listener.getsockname()
    if len(sys.argv) > 4:
        listener.close()
        listener = socket.create_server(("127.0.0.1", int(sys.argv[4])))
        print("listening", flush=True)
        return peer(listener, last, ends)
    listener.close()
    server = subprocess.Popen([sys.executable, __file__, how, ends, str(count), str(address[1])],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    before, until = None, time.monotonic() + 20 * ("LD_PRELOAD" in os.environ)
    while before != (before := over_tcp(connection)) and time.monotonic() < until:
        for number in range(50):
            connection.sendall(b"ping")
            exactly(connection, 4)
    connection.sendall(b"last")
    if ends == "close":
        time.sleep(0.3)
    else:
        server.wait(20)
    print("over TCP", over_tcp(connection) - before)
    print("expected", count, hashlib.sha256(last).hexdigest(), flush=True)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("LD_PRELOAD")}
    reader = [sys.executable, "-c", READER]
    environment = plain if how.endswith("-plain") else dict(os.environ)
    if how.startswith("pass"):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        taker = ("import array,os,socket,sys\nunix=socket.socket(fileno=0)\n"
                 "fd=array.array('i',socket.recv_fds(unix,10,1)[1])[0]\nos.dup2(fd,0)\nos.execv(sys.executable,[sys.executable,'-c',sys.argv[1]])")
        child = subprocess.Popen([sys.executable, "-c", taker, READER], stdin=theirs, env=environment)
        socket.send_fds(ours, [b"x"], [connection.fileno()])
        connection.close()
        assert child.wait(20) == 0
    elif how.startswith("run"):
        subprocess.run(reader, stdin=connection, env=environment, check=True)
    elif how == "spawn":
        child = os.posix_spawn(reader[0], reader, environment, file_actions=[(os.POSIX_SPAWN_DUP2, connection.fileno(), 0)])
        assert os.waitpid(child, 0)[1] == 0
    elif how == "fork" and os.fork():
        connection.close()
        assert os.wait()[1] == 0
    else:
        os.dup2(connection.fileno(), 5)
        os.dup2(5, 0)
        os.execve(reader[0], reader, environment)
    server.kill()


main()
