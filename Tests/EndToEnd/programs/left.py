"""A connection whose peer says its last; what it left behind is read by another program, which gets the descriptor:

    left.py HOW ENDS [BYTES]

HOW it gets it: exec, exec-plain (without the switch), fork, run (subprocess, as its standard input), run-plain, filter (run, but
what is said at last this program says), run-first (what is said at last is said first, with the end of it), run-shut (this
program shuts down its sending half meanwhile; also prints what processor time the relay has taken), run-stopped (this program
sends the relay a SIGTERM, and prints how many there were), shut (run, after this program has shut down its sending half), spawn (posix_spawn), pass
(SCM_RIGHTS), pass-plain; by exec after two helpers have inherited it by mistake (helpers), or with no descriptor left that is not
in use (full), or to be had (none); or not at all, since this program reads it by splice. How the peer ENDS: exit, close, killed; or
half (its sending half only, and prints what it is answered), image (it becomes another program, which says more and goes on like
half), listens (the same, but it is answered, and told the end, before it says more). Prints what was read and expected."""
import hashlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time

READER = ("import hashlib,os,socket,sys,time\ndata=b''\nif sys.argv[1]=='answers late':\n    time.sleep(0.6)\nif sys.argv[1]=='first':\n    os.write(0,b'reply')\n"
          "    socket.socket(fileno=os.dup(0)).shutdown(socket.SHUT_WR)\n    time.sleep(0.5)\n"
          "while True:\n    try: piece=os.read(0,70000)\n"
          "    except ConnectionResetError: sys.exit(print('read reset'))\n    if not piece: break\n    data+=piece\n"
          "print('read',len(data),hashlib.sha256(data).hexdigest(),flush=True)\n"
          "if sys.argv[1]=='watches':\n    time.sleep(1)\n    ticks=0\n    for pid in filter(str.isdigit,os.listdir('/proc')):\n"
          "        try: stat=open(f'/proc/{pid}/stat').read()\n        except OSError: continue\n"
          "        if '(socksw-relay)' in stat: ticks+=sum(map(int,stat.rsplit(')',1)[1].split()[11:13]))\n"
          "    print('relay',ticks,flush=True)\n"
          "if sys.argv[1].startswith('answers'):\n    os.write(0,b'reply')\n    os.close(0)\n"
          "    try: os.wait()\n    except ChildProcessError: pass")

IMAGE = ("import socket,sys,time\nconnection=socket.socket(fileno=int(sys.argv[1]))\n"
         "def listen(): print('answer',connection.recv(100).decode(),file=sys.stderr,flush=True)\n"
         "if sys.argv[3]=='listens':\n    listen()\n    assert connection.recv(1)==b''\n"
         "connection.sendall(sys.argv[2].encode())\nconnection.shutdown(1)\nif sys.argv[3]=='image': listen()")
MORE = "more" * 250


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
    if ends == "half":
        connection.shutdown(socket.SHUT_WR)
        print("answer", connection.recv(100).decode(), file=sys.stderr, flush=True)
    if ends in ("image", "listens"):
        os.set_inheritable(connection.fileno(), True)
        os.execv(sys.executable, [sys.executable, "-c", IMAGE, str(connection.fileno()), MORE, ends])
    if ends == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def fill_descriptors(hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)  # close-on-exec, as all of Python's
    except OSError:
        pass


def splice_all(connection):
    outlet, inlet = os.pipe()
    data = b""
    while count := os.splice(connection.fileno(), inlet, 60000):
        data += os.read(outlet, count)
    print("read", len(data), hashlib.sha256(data).hexdigest(), flush=True)


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
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stdout, text=True)
    server.stdout.readline()
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    before, until = None, time.monotonic() + 20 * ("LD_PRELOAD" in os.environ)
    while before != (before := over_tcp(connection)) and time.monotonic() < until:
        for number in range(50):
            connection.sendall(b"ping")
            exactly(connection, 4)
    connection.sendall(b"last")
    says_more = ends in ("image", "listens")
    answers = ends == "half" or says_more
    if ends == "close" or answers:
        time.sleep(0.3 + 0.3 * says_more)
    else:
        server.wait(20)
    print("over TCP", over_tcp(connection) - before)
    last += MORE.encode() * says_more
    print("expected", len(last), hashlib.sha256(last).hexdigest(), flush=True)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("LD_PRELOAD")}
    speaks = answers and how in ("filter", "splice")
    does = {"run-first": "first", "run-shut": "watches", "run-stopped": "answers late", "shut": "reads"}.get(how, "answers" if answers and not speaks else "reads")
    reader = [sys.executable, "-c", READER, does]
    environment = plain if how.endswith("-plain") else dict(os.environ)
    if how == "helpers":
        os.set_inheritable(connection.fileno(), True)
        if os.fork() == 0:
            os.execv("/bin/true", ["true"])
        os.wait()
        subprocess.run(["/bin/true"], close_fds=False, check=True)  # vfork
    if how == "splice":
        splice_all(connection)
    elif how.startswith("pass"):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        taker = ("import array,os,socket,sys\nunix=socket.socket(fileno=0)\n"
                 "fd=array.array('i',socket.recv_fds(unix,10,1)[1])[0]\nos.dup2(fd,0)\nos.execv(sys.executable,[sys.executable,'-c',*sys.argv[1:]])")
        child = subprocess.Popen([sys.executable, "-c", taker, *reader[2:]], stdin=theirs, env=environment)
        socket.send_fds(ours, [b"x"], [connection.fileno()])
        connection.close()
        assert child.wait(20) == 0
    elif how == "run-shut":
        child = subprocess.Popen(reader, stdin=connection, env=environment)
        time.sleep(0.3)
        connection.shutdown(socket.SHUT_WR)
        assert child.wait(20) == 0
    elif how == "run-stopped":
        child = subprocess.Popen(reader, stdin=connection, env=environment)
        time.sleep(0.3)
        stopped = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/comm") as name:
                    if name.read() == "socksw-relay\n":
                        os.kill(int(pid), signal.SIGTERM)
                        stopped += 1
            except OSError:
                pass
        print("stopped", stopped, flush=True)
        assert child.wait(20) == 0
    elif how in ("filter", "shut") or how.startswith("run"):
        if how == "shut":
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
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
        if how in ("full", "none"):
            fill_descriptors(100 if how == "none" else resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        os.execve(reader[0], reader, environment)
    if speaks:
        connection.sendall(b"reply")
        connection.close()
    if answers:
        server.wait(20)
    server.kill()


main()
