"""One end of a TCP connection that does what it is told, line by line on its standard input, and answers each line.

    stage.py listen [FD | ADDRESS]         makes a listener (or uses inherited descriptor FD), says its port
    stage.py connect PORT [ADDRESS]
    stage.py inherit FD SENT RECEIVED      goes on with a connection that exec has kept
    stage.py receive PATH                  waits at a Unix socket for a connection that another one gives

Every byte of a direction is a function of its position, so both ends check everything, whichever process holds the
connection. Commands are answered with `done …` or end the program with what was wrong.
"""
import array
import ctypes
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time

PERIOD = 65521
# clone(SIGCHLD, 0, …), which every architecture has.
SYSTEM_CALL_FORK = ({"x86_64": 56, "aarch64": 220}[os.uname().machine], 17, 0, 0, 0, 0)
CLONE_NEWPID = 0x20000000
TO_SERVER = random.Random(1).randbytes(PERIOD) * 18
TO_CLIENT = random.Random(2).randbytes(PERIOD) * 18


def say(text):
    os.write(1, (text + "\n").encode())


def read_line():
    """One byte at a time: what follows the line belongs to the next image."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return line.decode().split()


class Stage:
    def __init__(self):
        self.listener = None
        self.connection = None
        self.client = self.confined = False
        self.sent = self.received = 0

    # Data

    def send(self, count):
        data = TO_SERVER if self.client else TO_CLIENT
        while count:
            start = self.sent % PERIOD
            piece = min(count, len(data) - start)
            done = self.connection.send(data[start:start + piece])
            self.sent += done
            count -= done

    def receive(self, count):
        while count:
            count -= self.receive_piece(count)

    def receive_piece(self, count):
        data = TO_CLIENT if self.client else TO_SERVER
        got = self.connection.recv(min(count, 1 << 20))
        if not got:
            raise SystemExit(f"end of file {count} bytes too early, after {self.received}")
        start = self.received % PERIOD
        if got != data[start:start + len(got)]:
            raise SystemExit(f"wrong bytes behind position {self.received}")
        self.received += len(got)
        return len(got)

    def do_send(self, count):
        self.send(int(count))

    def do_choose_buffer(self, size):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(size))

    def do_fill(self):
        """Sends without waiting until nothing more is taken."""
        before = self.sent
        data = TO_SERVER if self.client else TO_CLIENT
        try:
            while True:
                start = self.sent % PERIOD
                self.sent += self.connection.send(data[start:start + 4096], socket.MSG_DONTWAIT)
        except BlockingIOError:
            say(f"filled {self.sent - before}")

    def do_receive(self, count):
        self.receive(int(count))

    def do_both(self, count):
        """Sends and receives at the same time."""
        if self.confined:
            self.both_without_threads(int(count))
            return
        failed = []

        def run():
            try:
                self.send(int(count))
            except BaseException as error:
                failed.append(error)
        thread = threading.Thread(target=run)
        thread.start()
        self.receive(int(count))
        thread.join()
        if failed:
            raise SystemExit(f"sending: {failed[0]!r}")

    def both_without_threads(self, count):
        data = TO_SERVER if self.client else TO_CLIENT
        to_send = to_receive = count
        waiter = select.poll()
        while to_send or to_receive:
            waiter.register(self.connection, (select.POLLOUT if to_send else 0) | (select.POLLIN if to_receive else 0))
            events = waiter.poll(30000)[0][1]
            if to_send and events & select.POLLOUT:
                start = self.sent % PERIOD
                try:
                    done = self.connection.send(data[start:start + min(to_send, 65536)], socket.MSG_DONTWAIT)
                except BlockingIOError:
                    done = 0
                self.sent += done
                to_send -= done
            if to_receive and events & select.POLLIN:
                before = self.received
                self.receive_piece(min(to_receive, 65536))
                to_receive -= self.received - before

    def do_answer(self, rounds, size):
        """Lockstep with `ask` at the other end."""
        for _ in range(int(rounds)):
            self.receive(int(size))
            self.send(int(size))

    def do_ask(self, rounds, size):
        for _ in range(int(rounds)):
            self.send(int(size))
            self.receive(int(size))

    def do_wait_readable(self, how):
        """By poll, select or epoll: the next byte is there."""
        if how == "poll":
            waiter = select.poll()
            waiter.register(self.connection, select.POLLIN)
            found = waiter.poll(30000)
        elif how == "select":
            found = select.select([self.connection], [], [], 30)[0]
        else:
            found = self.epoll().poll(30)
        if not found:
            raise SystemExit("not readable")

    def epoll(self):
        if not hasattr(self, "set"):
            self.set = select.epoll()
            self.set.register(self.connection, select.EPOLLIN)
        return self.set

    def do_look(self):
        """A call that neither sends nor receives."""
        select.select([self.connection], [], [], 0)

    def do_watch(self):
        self.epoll().poll(0)

    def do_end(self):
        rest = self.connection.recv(1)
        if rest:
            raise SystemExit(f"data instead of the end, after {self.received}")

    def do_echoed(self, count):
        """Somebody sends back what this end sends."""
        count = int(count)
        start = self.sent % PERIOD
        thread = threading.Thread(target=self.send, args=(count,))
        thread.start()
        self.expect((TO_SERVER if self.client else TO_CLIENT)[start:start + count])
        thread.join()

    def do_expect_own(self, count):
        """What this end sent last comes back."""
        start = (self.sent - int(count)) % PERIOD
        self.expect((TO_SERVER if self.client else TO_CLIENT)[start:start + int(count)])

    def do_expect_text(self, text):
        self.expect(bytes.fromhex(text))

    def expect(self, wanted):
        got = b""
        while len(got) < len(wanted):
            piece = self.connection.recv(len(wanted) - len(got))
            if not piece:
                raise SystemExit(f"end of file after {len(got)} of {len(wanted)} bytes")
            got += piece
        if got != wanted:
            raise SystemExit(f"{got[:60]!r} instead of {wanted[:60]!r}")

    def do_new_listener(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        say(f"port {self.listener.getsockname()[1]}")

    def do_shutdown(self):
        self.connection.shutdown(socket.SHUT_WR)

    def do_close(self):
        self.connection.close()

    def do_exit(self):
        """With the connection open."""
        say("done exit")
        os._exit(0)

    # Connections

    def do_accept(self):
        self.connection, _ = self.listener.accept()
        self.sent = self.received = 0
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_accept_by_epoll(self):
        waiter = select.epoll()
        waiter.register(self.listener, select.EPOLLIN)
        waiter.poll(30)
        self.do_accept()

    # Processes

    def arguments(self, fd):
        return [sys.executable, os.path.abspath(__file__), "inherit", str(fd), str(self.sent), str(self.received),
                "client" if self.client else "server"]

    @staticmethod
    def environment(switched):
        environment = dict(os.environ)
        if switched == "plain":
            environment.pop("LD_PRELOAD", None)
        return environment

    def do_exec(self, switched, number="0"):
        """The next image goes on with the connection, at descriptor `number` if that is not 0."""
        fd = self.connection.fileno()
        if int(number):
            os.dup2(fd, int(number))
            fd = int(number)
        os.set_inheritable(fd, True)
        os.execve(sys.executable, self.arguments(fd), self.environment(switched))

    def do_exec_by(self, how):
        """The same through the other calls of the family, and with other things kept."""
        fd = self.connection.fileno()
        os.set_inheritable(fd, True)
        arguments, environment = self.arguments(fd), self.environment("switched")
        os.environ["PATH"] = "/nonexistent:" + os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
        libc, path, name = ctypes.CDLL(None), sys.executable.encode(), os.path.basename(sys.executable).encode()
        words = [ctypes.c_char_p(word) for word in (name, *(word.encode() for word in arguments[1:]), None)]
        vector = (ctypes.c_char_p * len(words))(*words)
        variables = [f"{key}={value}".encode() for key, value in environment.items()] + [None]
        variables = (ctypes.c_char_p * len(variables))(*variables)
        if how == "execl":
            libc.execl(path, *words)
        elif how == "execle":
            libc.execle(path, *words, variables)
        elif how == "execlp":
            libc.execlp(name, *words)
        elif how == "execvp":
            libc.execvp(name, vector)
        elif how == "execvpe":
            libc.execvpe(name, vector, variables)
        elif how == "execveat":
            libc.execveat(-100, path, vector, variables, 0)  # AT_FDCWD
        elif how == "fexecve":
            os.execve(os.open(sys.executable, os.O_RDONLY), arguments, environment)
        elif how == "script":
            os.execve(self.script(), arguments[1:], environment)
        elif how == "epoll":  # a set that the next image inherits watches the connection
            set = select.epoll()
            set.register(self.connection, select.EPOLLIN)
            os.set_inheritable(set.fileno(), True)
            os.execve(sys.executable, arguments, environment)
        elif how == "duplicate":
            os.set_inheritable(os.dup(fd), True)
            os.execve(sys.executable, arguments, environment)
        elif how == "child":  # holds it, too
            child = os.fork()
            if child == 0:
                signal.alarm(5)
                signal.pause()
            os.execve(sys.executable, arguments, environment)

    def script(self):
        """This program as a file that the kernel itself has interpreted."""
        path = os.path.join(os.getcwd(), f"stage-{os.getpid()}")
        with open(path, "w") as file:
            file.write(f"#!{sys.executable}\nimport runpy, sys\nsys.argv[0] = {os.path.abspath(__file__)!r}\n"
                       f"runpy.run_path({os.path.abspath(__file__)!r}, run_name='__main__')\n")
        os.chmod(path, 0o700)
        return path

    def do_exec_through(self, how, program=""):
        """An image in between that is not switched passes everything on, this one's variable, too."""
        fd = self.connection.fileno()
        os.set_inheritable(fd, True)
        library = os.environ.get("LD_PRELOAD", "")
        if how == "static":  # `program` forks a child that keeps the connection, and execs its arguments
            os.execve(program, [program, *self.arguments(fd)], dict(os.environ))
        again = [sys.executable, os.path.abspath(__file__), "through", library, *self.arguments(fd)[2:]]
        if how == "unset":
            os.execve(sys.executable, again, self.environment("plain"))
        # The library's file is away when the image begins, and there again when it ends.
        os.rename(library, library + ".away")
        again[2] = "again"  # instead of "through"
        os.execve(sys.executable, again, dict(os.environ))

    def pass_on(self, words):
        """Such an image: reads and writes some bytes that nobody counts, and execs what it would have been."""
        if words[0] == "again":
            os.rename(words[1] + ".away", words[1])
        self.connection = socket.socket(fileno=int(words[3]))
        self.sent, self.received, self.client = int(words[4]), int(words[5]), words[6] == "client"
        if not any("libsockswitch" in line for line in open("/proc/self/maps")):
            say("not switched")
        say("variable " + str("SOCKSWITCH_INHERITED" in os.environ))
        if words[0] == "again":
            self.send(500)
            self.receive(500)
        os.set_inheritable(self.connection.fileno(), True)
        environment = dict(os.environ)
        if words[1]:
            environment["LD_PRELOAD"] = words[1]
        os.execve(sys.executable, self.arguments(self.connection.fileno()), environment)

    def do_exec_listener(self):
        fd = self.listener.fileno()
        os.set_inheritable(fd, True)
        os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), "listen", str(fd), "again"])

    def do_exec_fails(self):
        os.set_inheritable(self.connection.fileno(), True)
        try:
            os.execv("/nonexistent", ["nothing"])
        except FileNotFoundError:
            pass
        os.set_inheritable(self.connection.fileno(), False)

    def do_fork_exec(self, switched):
        """A forked child goes on with it; this process keeps its copy and waits for the child."""
        child = os.fork()
        if child == 0:
            self.do_exec(switched)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"the child ended with {status}")
        sys.exit(0)

    def do_fork(self, how="fork"):
        """A forked child goes on; this process waits for it, and closes its own copy first."""
        libc = ctypes.CDLL(None)
        if how == "fork":
            child = os.fork()
        elif how == "_Fork":
            child = libc._Fork()
        elif how == "syscall":
            child = libc.syscall(SYSTEM_CALL_FORK[0], *SYSTEM_CALL_FORK[1:])
        else:
            begin = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: (say("done fork"), self.loop())[0] and 0)
            stack = ctypes.create_string_buffer(1 << 20)
            top = (ctypes.addressof(stack) + (1 << 20)) & ~63
            child = libc.clone(begin, ctypes.c_void_p(top), signal.SIGCHLD, None)
        if child:
            self.connection.close()
            _, status = os.waitpid(child, 0)
            sys.exit(1 if status else 0)

    def do_confine(self):
        """A child in a PID namespace of its own, with a child of its own, closes its copy and ends."""
        child = ctypes.CDLL(None, use_errno=True).syscall(SYSTEM_CALL_FORK[0], CLONE_NEWPID | signal.SIGCHLD, 0, 0, 0, 0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone")
        if child == 0:
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            self.connection.close()
            os._exit(0 if os.getpid() == 1 else 1)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"the child ended with {status}")

    def do_split(self):
        """A forked child uses the connection, too, when it is told."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.child = os.fork()
        if self.child == 0:
            here.close()
            while True:
                words = there.recv(100).decode().split()
                if not words:
                    os._exit(0)
                self.sent, self.received = int(words[2]), int(words[3])
                (self.send if words[0] == "send" else self.receive)(int(words[1]))
                there.send(b"done")
        self.channel = here
        there.close()

    def by_child(self, what, count):
        self.channel.send(f"{what} {count} {self.sent} {self.received}".encode())
        if self.channel.recv(100) != b"done":
            raise SystemExit("the child ended")

    def do_send_by_child(self, count):
        self.by_child("send", count)
        self.sent += int(count)

    def do_receive_by_child(self, count):
        self.by_child("receive", count)
        self.received += int(count)

    def do_join(self):
        self.channel.close()
        os.waitpid(self.child, 0)

    def do_spawn(self, how):
        """A child by another way: prints what it reads from the connection to this program's output, in hexadecimal."""
        fd = self.connection.fileno()
        command = "od -An -v -tx1 -N 16 | tr -d ' \\n'; echo; exit 0"
        sys.stdout.flush()
        if how == "popen":  # vfork in CPython, with pass_fds
            os.set_inheritable(fd, False)
            subprocess.run(["sh", "-c", command], stdin=self.connection, check=True)
        elif how == "posix_spawn":
            child = os.posix_spawn("/bin/sh", ["sh", "-c", command], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, fd, 0)])
            os.waitpid(child, 0)
        elif how == "posix_spawnp":
            child = os.posix_spawnp("sh", ["sh", "-c", command], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, fd, 0)])
            os.waitpid(child, 0)
        elif how == "system":
            os.set_inheritable(fd, True)
            os.system(f"exec 0<&{fd}; {command}")
        elif how == "libc_popen":
            os.set_inheritable(fd, True)
            libc = ctypes.CDLL(None)
            libc.popen.restype = ctypes.c_void_p
            libc.pclose.argtypes = [ctypes.c_void_p]
            libc.pclose(libc.popen(f"exec 0<&{fd}; {command}".encode(), b"w"))
        elif how == "wordexp":
            os.set_inheritable(fd, True)
            words = (ctypes.c_void_p * 3)()  # a wordexp_t
            if ctypes.CDLL(None).wordexp(f"$(exec 0<&{fd}; {command})".encode(), words, 0) == 0:
                say(ctypes.cast(words[1], ctypes.POINTER(ctypes.c_char_p))[0].decode())
        self.child_read = 16

    def do_position(self):
        say(f"position {self.sent} {self.received}")

    def do_same_as_child(self):
        """The child has read the next bytes; the test compares them."""
        start = self.received % PERIOD
        say("hex " + (TO_CLIENT if self.client else TO_SERVER)[start:start + self.child_read].hex())
        self.received += self.child_read

    def do_give(self, path, keep="no"):
        """Passes the connection to another stage over a Unix socket."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(path)
            text = f"{self.sent} {self.received} {'client' if self.client else 'server'}".encode()
            socket.send_fds(channel, [text], [self.connection.fileno()])
            if keep == "no":
                self.connection.close()
            channel.recv(1)  # it has it

    def do_give_listener(self, path):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(path)
            socket.send_fds(channel, [b"0 0 listener"], [self.listener.fileno()])
            channel.recv(1)
        self.listener.close()

    def take(self, path):
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(path)
            door.listen(1)
            say("done waiting")
            channel, _ = door.accept()
            text, fds, _, _ = socket.recv_fds(channel, 100, 4)
            sent, received, role = text.decode().split()
            self.sent, self.received, self.client = int(sent), int(received), role == "client"
            if role == "listener":
                self.listener = socket.socket(fileno=fds[0])
            else:
                self.connection = socket.socket(fileno=fds[0])
            channel.send(b"x")
            channel.close()

    def do_take_own(self):
        """Goes on through a duplicate that the kernel made past libc's dup."""
        libc = ctypes.CDLL(None, use_errno=True)
        own = os.pidfd_open(os.getpid())
        fd = libc.pidfd_getfd(own, self.connection.fileno(), 0)
        if fd < 0:
            raise SystemExit(f"pidfd_getfd: {ctypes.get_errno()}")
        before, self.connection = self.connection, socket.socket(fileno=fd)
        before.close()

    def do_standard_streams(self):
        """The connection becomes standard input and output, and stdio reads and writes it."""
        fd = self.connection.fileno()
        saved = [os.dup(0), os.dup(1)]
        os.dup2(fd, 0)
        os.dup2(fd, 1)
        libc = ctypes.CDLL(None)
        libc.fgets.restype = ctypes.c_void_p
        stdin = ctypes.c_void_p.in_dll(libc, "stdin")
        # What fgets reads ahead stays in its buffer: unbuffered, it takes the line alone.
        libc.setvbuf(stdin, None, 2, 0)
        data = TO_CLIENT if self.client else TO_SERVER
        got = bytes(libc.fgetc(stdin) & 255 for _ in range(100))
        start = self.received % PERIOD
        wrong = got != data[start:start + 100]
        self.received += 100
        mine = TO_SERVER if self.client else TO_CLIENT
        for byte in mine[self.sent % PERIOD:self.sent % PERIOD + 100]:
            libc.putchar(byte)
        libc.fflush(None)
        self.sent += 100
        os.dup2(saved[0], 0)
        os.dup2(saved[1], 1)
        for copy in saved:
            os.close(copy)
        if wrong:
            raise SystemExit("stdio read other bytes")

    # Confinement and limits

    def do_seccomp(self, strict):
        """From now on only what a program on TCP that reads, writes and polls must do; anything else is death."""
        self.confined = True
        load, jump_equal, give, kill, allow = 0x20, 0x15, 0x06, 0x80000000, 0x7fff0000
        names = {"x86_64": dict(read=0, write=1, close=3, poll=7, mmap=9, mprotect=10, munmap=11, brk=12, rt_sigreturn=15,
                                ioctl=16, select=23, madvise=28, recvfrom=45, sendto=44,
                                shutdown=48, exit=60, exit_group=231, epoll_wait=232, epoll_ctl=233, futex=202, fstat=5, newfstatat=262,
                                epoll_pwait=281, epoll_pwait2=441, lseek=8, pselect6=270, ppoll=271, sigaltstack=131)}
        allowed = names[os.uname().machine].values()
        code = [(load, 0, 0, 0)]
        for position, number in enumerate(allowed):
            code.append((jump_equal, len(names[os.uname().machine]) - position, 0, number))
        code += [(give, 0, 0, kill), (give, 0, 0, allow)]
        if strict == "eventfd":  # kills for what the switch would set up, allows all that Python does
            code = [(load, 0, 0, 0), (jump_equal, 2, 0, 290), (jump_equal, 1, 0, 319), (give, 0, 0, allow), (give, 0, 0, kill)]
        elif strict == "harmless":
            code = [(give, 0, 0, allow)]
        raw = b"".join(operation.to_bytes(2, "little") + bytes([yes, no]) + value.to_bytes(4, "little")
                       for operation, yes, no, value in code)
        filters = ctypes.create_string_buffer(raw, len(raw))

        class Program(ctypes.Structure):
            _fields_ = [("count", ctypes.c_ushort), ("filters", ctypes.c_void_p)]
        program = Program(len(code), ctypes.addressof(filters))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
            raise SystemExit(f"prctl: {ctypes.get_errno()}")

    def do_limit(self, name, value):
        number = getattr(resource, "RLIMIT_" + name)
        value = int(value)
        self.confined = True
        if name == "AS" and value == 0:  # nothing more than there is
            with open("/proc/self/statm") as file:
                value = (int(file.read().split()[0]) + 512) * resource.getpagesize()
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))

    def do_chroot(self, directory):
        os.chroot(directory)
        os.chdir("/")

    def do_setuid(self, number):
        os.setgroups([])
        os.setgid(int(number))
        os.setuid(int(number))

    def do_daemon(self, path):
        """As daemon(3) and its many imitations: two forks, a new session, everything but the connection closed. Goes on
        with a pipe of its own at `path`."""
        keep = {self.connection.fileno()} if self.connection else set()
        if self.listener:
            keep.add(self.listener.fileno())
        for _ in range(2):
            if os.fork():
                os._exit(0)
            if _ == 0:
                os.setsid()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for fd in range(min(limit, 4096)):
            if fd not in keep:
                try:
                    os.close(fd)
                except OSError:
                    pass
        incoming = os.open(path + ".in", os.O_RDWR)
        outgoing = os.open(path + ".out", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        moved = [os.dup2(incoming, 60), os.dup2(outgoing, 61), os.dup2(outgoing, 62)]
        for fd in (incoming, outgoing):
            if fd not in moved and fd not in keep:
                os.close(fd)
        for target, source in enumerate(moved):
            if target not in keep:
                os.dup2(source, target)

    def do_descriptors(self):
        found = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        say("descriptors " + " ".join(map(str, found)))

    def do_variables(self):
        say("variables " + " ".join(sorted(name for name in os.environ if name.startswith("SOCKSWITCH"))))

    def do_raw_fork_exec(self):
        """A child made past libc, which execs something that has nothing to do with the connection."""
        libc = ctypes.CDLL(None, use_errno=True)
        child = libc.syscall(57)
        if child == 0:
            os.execv("/bin/true", ["true"])
        os.waitpid(child, 0)

    # The loop

    def main(self, words):
        if words[0] == "listen":
            if len(words) > 1 and words[1].isdigit():
                self.listener = socket.socket(fileno=int(words[1]))
            else:
                self.listener = socket.create_server((words[1] if len(words) > 1 else "127.0.0.1", 0))
            say(f"port {self.listener.getsockname()[1]}")
            if words[-1] == "again":
                say("done exec_listener")
        elif words[0] == "connect":
            self.client = True
            address = words[2] if len(words) > 2 else "127.0.0.1"
            self.connection = socket.create_connection((address, int(words[1])))
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            say("connected")
        elif words[0] == "inherit":
            self.connection = socket.socket(fileno=int(words[1]))
            self.sent, self.received, self.client = int(words[2]), int(words[3]), words[4] == "client"
            self.connection.getpeername()
            say("done exec")
        elif words[0] in ("through", "again"):
            self.pass_on(words)
        elif words[0] == "receive":
            self.take(words[1])
            say("done taken")
        self.loop()

    def loop(self):
        while True:
            command = read_line()
            getattr(self, "do_" + command[0])(*command[1:])
            say("done " + command[0])


signal.alarm(200)
signal.signal(signal.SIGPIPE, signal.SIG_DFL if "--sigpipe" in sys.argv else signal.SIG_IGN)
Stage().main(sys.argv[1:])
