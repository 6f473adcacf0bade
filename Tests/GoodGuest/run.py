#!/usr/bin/env python3
"""Runs ordinary programs without and with the library and demands the same standard output and exit status.

    run.py --preload PATH [--service PATH [--eager]] [-v] [TestClass[.test] …]
    run.py --wrapper 'sockswitch run --' …

With --preload alone the library is loaded with no service to talk to: every socket is tracked and stays on TCP. With
--wrapper the command is run by it (the library must then be its business).
Programs that are not installed are skipped.
"""
import argparse
import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
GUESTS = HERE / "guests"
SECONDS = 60
options = argparse.Namespace(preload=None, service=None, wrapper=None, eager=False)


def switched(command):
    """The command and the environment that run it with the library."""
    environment = dict(os.environ)
    if options.wrapper:
        return shlex.split(options.wrapper) + command, environment
    environment["LD_PRELOAD"] = options.preload
    environment["SOCKSWITCH_SERVICE"] = options.service or "/nonexistent/sockswitchd"
    if options.eager:
        environment["SOCKSWITCH_UPGRADE"] = "eager"
    return command, environment


def run(command, with_library, **more):
    environment = dict(os.environ)
    if with_library:
        command, environment = switched(command)
    environment.update(more.pop("environment", {}))
    # A session of its own: whatever hangs is ended with all its children.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True, **more)
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"{command} hung; output so far: …{output[-1000:]}\n{errors[-1000:]}") from None
    return process.returncode, output, errors


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process):
    for _ in range(SECONDS * 20):
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {process.stderr.read()}")
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


class Guest(unittest.TestCase):
    """One temporary directory a class."""

    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="sockswitch-guest-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)

    def need(self, *programs):
        for program in programs:
            if shutil.which(program) is None:
                self.skipTest(f"no {program}")

    def path(self, name, text=None):
        file = pathlib.Path(self.directory) / name
        if text is not None:
            file.write_text(text)
        return str(file)

    def compile(self, name, *flags):
        self.need("gcc")
        program = self.path(name)
        if not os.path.exists(program):
            subprocess.run(
                ["gcc", "-O1", "-w", "-pthread", "-o", program, str(GUESTS / (name.split("-")[0] + ".c")), *flags],
                check=True, timeout=SECONDS)
        return program

    def assert_same(self, command, **more):
        """The program's output, which is the same both ways."""
        plain = run(command, False, **more)
        ours = run(command, True, **more)
        self.assertEqual(plain[:2], ours[:2], f"{command}\nplain: {plain[2]}\nours: {ours[2]}")
        self.assertEqual(plain[0], 0, f"{command}: {plain[2]}")
        return plain[1]


class Tools(Guest):
    """Programs that have nothing to do with sockets."""

    def test_ls(self):
        self.assert_same(["ls", "-la", "/usr"])

    def test_bash(self):
        script = 'set -e; for i in 1 2 3; do echo $i | cat | tr 1-3 a-c; done; (exit 3) || echo $?; exec 7>/dev/null; ls -1 / | wc -l; wait'
        self.assert_same(["bash", "-c", script])

    def test_bash_job_control(self):
        self.assert_same(["bash", "-c", "sleep 0.2 & trap 'echo usr1' USR1; kill -USR1 $$; wait; time true 2>/dev/null; echo $?"])

    def test_git(self):
        self.need("git")
        script = """set -e
            rm -rf r; git init -q r; cd r
            export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
            git config user.name a; git config user.email a@b
            for i in 1 2 3; do echo $i > f$i; git add .; git commit -qm c$i; done
            git log --stat --format=%H | cat; git clone -q . ../c$$; rm -rf ../c$$; git gc -q; git fsck"""
        self.assert_same(["bash", "-c", script], cwd=self.directory)

    def test_gcc(self):
        self.need("gcc")
        source = self.path("hello.c", '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
        program = self.path("hello")
        self.assert_same(["bash", "-c", f"gcc -O2 -o {program} {source} && {program}"])

    def test_tar_and_gzip(self):
        self.need("tar", "gzip", "sha256sum")
        self.assert_same(["bash", "-c", "tar -C /etc --sort=name -czf - passwd group hosts | gunzip | sha256sum"])

    def test_find_and_xargs(self):
        self.assert_same(["bash", "-c", "find /usr/include -name 's*.h' | sort | xargs -P 2 cat | sha256sum"])


class Runtimes(Guest):
    """Language runtimes, each with a server and a client on loopback in one process."""

    def test_node(self):
        self.need("node")
        source = self.path("guest.js", """
            const http = require('http'), crypto = require('crypto'), { execFileSync } = require('child_process');
            const body = crypto.createHash('sha256').update('x').digest('hex').repeat(4000);
            const server = http.createServer((q, r) => r.end(body + q.url));
            server.listen(0, '127.0.0.1', async () => {
                const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
                const get = (i) => new Promise((done, fail) => http.get(
                    { port: server.address().port, host: '127.0.0.1', path: '/' + i, agent }, (r) => {
                        const hash = crypto.createHash('sha256');
                        r.on('data', (d) => hash.update(d)).on('end', () => done(hash.digest('hex')));
                    }).on('error', fail));
                const all = await Promise.all([...Array(60).keys()].map(get));
                console.log(crypto.createHash('sha256').update(all.join()).digest('hex'));
                console.log(execFileSync('echo', ['child']).toString());
                agent.destroy(); server.close();
            });""")
        self.assert_same(["node", source])

    def test_java(self):
        self.need("java", "javac")
        source = self.path("Guest.java", """
            import java.io.*; import java.net.*; import java.nio.*; import java.nio.channels.*; import java.util.*;
            public class Guest {
                public static void main(String[] a) throws Exception {
                    ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
                    Thread t = new Thread(() -> {
                        try { for (int i = 0; i < 3; i++) try (Socket s = server.accept()) {
                            s.getInputStream().transferTo(s.getOutputStream());
                        } } catch (IOException e) { System.out.println(e); }
                    });
                    t.start();
                    for (int i = 0; i < 2; i++) try (Socket s = new Socket(server.getInetAddress(), server.getLocalPort())) {
                        byte[] data = new byte[100000]; new Random(i).nextBytes(data);
                        for (int k = 0; k < 20; k++) {
                            s.getOutputStream().write(data, k * 5000, 5000);
                            byte[] back = s.getInputStream().readNBytes(5000);
                            if (!Arrays.equals(back, Arrays.copyOfRange(data, k * 5000, k * 5000 + 5000))) throw new Error("bytes");
                        }
                        s.shutdownOutput();
                        System.out.println(s.getInputStream().read());
                    }
                    SocketChannel c = SocketChannel.open(server.getLocalSocketAddress());
                    c.configureBlocking(false);
                    Selector selector = Selector.open();
                    c.register(selector, SelectionKey.OP_READ);
                    for (int k = 0; k < 50; k++) {
                        ByteBuffer b = ByteBuffer.allocate(64); b.putInt(k).position(0);
                        while (b.hasRemaining()) c.write(b);
                        ByteBuffer r = ByteBuffer.allocate(64);
                        while (r.hasRemaining()) { selector.select(10000); selector.selectedKeys().clear(); c.read(r); }
                        if (r.flip().getInt() != k) throw new Error("nio");
                    }
                    c.close(); t.join(); server.close();
                    try { server.accept(); } catch (SocketException e) { System.out.println("closed"); }
                    System.out.println(new String(new ProcessBuilder("echo", "child").start().getInputStream().readAllBytes()));
                }
            }""")
        subprocess.run(["javac", source], check=True, timeout=SECONDS)
        self.assert_same(["java", "-Xshare:auto", "-cp", self.directory, "Guest"])

    def test_python(self):
        source = self.path("guest.py", """
import asyncio, hashlib, os, socket, socketserver, subprocess, sys, threading
async def talk():
    async def serve(r, w):
        while data := await r.read(4096):
            w.write(data); await w.drain()
        w.close()
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    async def client(n):
        r, w = await asyncio.open_connection('127.0.0.1', port)
        h = hashlib.sha256()
        for i in range(30):
            data = bytes([n, i]) * 700
            w.write(data); await w.drain()
            h.update(await r.readexactly(len(data)))
        w.write_eof(); assert await r.read() == b''
        w.close(); await w.wait_closed()
        return h.hexdigest()
    print(await asyncio.gather(*map(client, range(10))))
    server.close(); await server.wait_closed()
asyncio.run(talk())
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile: self.wfile.write(line)
with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Echo) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for n in range(3):
        with socket.create_connection(server.server_address) as s, s.makefile('rw') as f:
            for i in range(50):
                f.write(f'{n} {i}\\n'); f.flush(); assert f.readline() == f'{n} {i}\\n'
    print(subprocess.run(['echo', 'x'], capture_output=True).stdout)
    server.shutdown()
with socketserver.ForkingTCPServer(('127.0.0.1', 0), Echo) as server:
    child = os.fork()
    if child == 0:
        for n in range(3):
            with socket.create_connection(server.server_address) as s, s.makefile('rw') as f:
                for i in range(50):
                    f.write(f'{n} {i}\\n'); f.flush(); assert f.readline() == f'{n} {i}\\n'
        os._exit(7)
    for n in range(3): server.handle_request()
    print(os.waitpid(child, 0)[1])
a, b = socket.socketpair(); a.settimeout(0.01)
try: a.recv(1)
except TimeoutError: print('timeout')
with socket.create_server(('127.0.0.1', 0)) as s:
    s.settimeout(0.05)
    try: s.accept()
    except TimeoutError: print('timeout')
    c = socket.create_connection(s.getsockname(), timeout=0.05)
    try: c.recv(1)
    except TimeoutError: print('timeout')
""")
        self.assert_same([sys.executable, "-W", "ignore", source])

    def test_swift(self):
        self.need("swiftc")
        source = self.path("guest.swift", """
            import Dispatch
            import Glibc
            final class Box { var total = 0; deinit { print("released") } }
            func check(_ r: Int) -> Int { if r < 0 { perror("guest"); exit(1) }; return r }
            func pair() -> (Int32, Int32) {
                var a = sockaddr_in(); a.sin_family = sa_family_t(AF_INET); a.sin_addr.s_addr = UInt32(0x7f000001).bigEndian
                var n = socklen_t(MemoryLayout<sockaddr_in>.size)
                let l = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
                return withUnsafeMutableBytes(of: &a) { p in
                    let p = p.baseAddress!.assumingMemoryBound(to: sockaddr.self)
                    _ = check(Int(bind(l, p, n))); _ = check(Int(listen(l, 4))); _ = check(Int(getsockname(l, p, &n)))
                    let c = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
                    _ = check(Int(connect(c, p, n)))
                    let s = accept(l, nil, nil); close(l)
                    return (c, s)
                }
            }
            let (c, s) = pair()
            let group = DispatchGroup()
            let text = (0..<1000).map { "message \\($0)" }.joined(separator: "|")
            DispatchQueue.global().async(group: group) {
                var t = text
                t.withUTF8 { b in for i in stride(from: 0, to: b.count, by: 97) { _ = check(write(c, b.baseAddress! + i, min(97, b.count - i))) } }
                _ = shutdown(c, Int32(SHUT_WR))
            }
            var got: [UInt8] = []
            var part = [UInt8](repeating: 0, count: 64)
            while true { let n = check(read(s, &part, 64)); if n == 0 { break }; got += part[..<n] }
            group.wait()
            let box = Box(); box.total = got.count
            print(String(decoding: got, as: UTF8.self) == text, box.total)
            """)
        program = self.path("swift-guest")
        subprocess.run(["swiftc", "-O", "-o", program, source], check=True, timeout=600)
        self.assert_same([program])

    def test_perl(self):
        self.need("perl")
        self.assert_same(["perl", "-MIO::Socket::INET", "-e", """
            my $s = IO::Socket::INET->new(Listen => 4, LocalAddr => '127.0.0.1') or die;
            if (!fork) { my $c = $s->accept; while (<$c>) { print $c uc } exit 0 }
            my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die;
            for (1..100) { print $c "line $_\n"; my $r = <$c>; die $r if $r ne "LINE $_\n" }
            shutdown($c, 1); print defined(<$c>) ? "more" : "end", "\n"; wait; print $?, "\n" """])


class Interface(Guest):
    """Small C programs at the edges of the interface."""

    def test_edges(self):
        self.assertGreater(self.assert_same([self.compile("edges")]).count("\n"), 700)

    def test_close_everything(self):
        for way in ("close", "closefrom", "close_range", "dup2"):
            with self.subTest(way):
                self.assert_same([self.compile("closeall"), way])

    def test_64_descriptors(self):
        program = self.compile("descriptors")
        for limit in ("-n 64", "-Sn 64"):
            with self.subTest(limit):
                output = self.assert_same(["bash", "-c", f"ulimit {limit} && exec {program}"])
                self.assertTrue(output.startswith("limit 64\n") and output.endswith("full\ndone\n"))

    def test_vfork_and_spawn(self):
        self.assert_same([self.compile("spawn")])

    def test_cancellation(self):
        program = self.compile("cancel")
        for call in ("read", "recv", "accept", "local accept", "poll", "select", "epoll_wait"):
            with self.subTest(call):
                self.assert_same(["timeout", "20", program, call])

    def test_before_the_constructor(self):
        """Sockets used by the constructor of another library, loaded before and after ours."""
        library = self.compile("early-library.so", "-shared", "-fPIC")
        self.assertEqual(run(["/bin/echo", "x"], False, environment={"LD_PRELOAD": library})[:2], (0, "x\n"))
        if options.wrapper:
            return
        for order in (f"{options.preload}:{library}", f"{library}:{options.preload}"):
            with self.subTest(order):
                self.assertEqual(run(["/bin/echo", "x"], True, environment={"LD_PRELOAD": order})[:2], (0, "x\n"))

    def test_cost_of_write(self):
        """write on a descriptor that is no socket costs a table look-up and a jump."""
        program = self.compile("instructions")
        plain, ours = (int(run([program], way)[1]) for way in (False, True))
        print(f"write on a file: {plain} instructions in libc, {ours - plain} more with the library", file=sys.stderr)
        self.assertGreater(plain, 5)
        self.assertGreater(ours, plain, "the library is not loaded")
        self.assertLessEqual(ours - plain, 16)

    def test_nothing_on_standard_error(self):
        for command in (["true"], [self.compile("spawn")]):
            self.assertEqual(run(command, True)[2], "")


class Servers(Guest):
    """A server and a client from different programs, each alone and both with the library."""

    def serve(self, command, port, with_library):
        environment = dict(os.environ)
        if with_library:
            command, environment = switched(command)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment, start_new_session=True, cwd=self.directory)

        def end():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

        self.addCleanup(end)
        wait_for_port(port, process)

    def each(self, server, client):
        """`server(port)` and `client(port)` are commands; the client's output must be one, whoever is switched."""
        results = {}
        for server_switched in (False, True):
            port = free_port()
            self.serve(server(port), port, server_switched)
            for client_switched in (False, True):
                results[server_switched, client_switched] = run(client(port), client_switched)
        for way, result in results.items():
            self.assertEqual(result[0], 0, (way, result))
            self.assertEqual(result[1], results[False, False][1], way)

    def test_python_http_and_curl(self):
        self.need("curl", "sha256sum")
        with open(self.path("big"), "wb") as file:
            for i in range(32):
                file.write(bytes((i * 7 + j) & 255 for j in range(65536)) * 8)
        self.each(
            lambda port: [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
            lambda port: ["bash", "-c", f"for i in 1 2; do curl -sS http://127.0.0.1:{port}/big | sha256sum; done"])

    def test_redis(self):
        self.need("redis-server", "redis-cli")
        self.each(
            lambda port: ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"],
            lambda port: ["bash", "-c", f"for i in 1 2 3; do redis-cli -p {port} ping; done;"
                          f"redis-cli -p {port} -r 100 set k v | sort | uniq -c; redis-cli -p {port} get k;"
                          f"yes 'set a b' | head -2000 | redis-cli -p {port} | sort | uniq -c"])

    def test_redis_benchmark(self):
        self.need("redis-server", "redis-benchmark")
        self.each(
            lambda port: ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"],
            lambda port: ["bash", "-c", f"redis-benchmark -p {port} -n 4000 -c 20 -t set,get --csv | cut -d, -f1;"
                          f"redis-benchmark -p {port} -n 4000 -c 10 -P 16 -d 4096 -t set,get --csv | cut -d, -f1"])

    def test_nginx_and_curl(self):
        self.need("nginx", "curl", "sha256sum")

        def server(port):
            configuration = self.path(f"nginx-{port}.conf", f"""
                daemon off; worker_processes 2; pid {self.path('nginx.pid')}; error_log /dev/null;
                events {{ worker_connections 64; }}
                http {{ access_log off; client_body_temp_path {self.directory}; proxy_temp_path {self.directory};
                    fastcgi_temp_path {self.directory}; uwsgi_temp_path {self.directory}; scgi_temp_path {self.directory};
                    sendfile on; server {{ listen 127.0.0.1:{port}; root {self.directory}; }} }}""")
            return ["nginx", "-c", configuration]

        os.chmod(self.directory, 0o755)
        with open(self.path("page"), "wb") as file:
            file.write(bytes(range(256)) * 20000)
        self.each(server, lambda port: [
            "bash", "-c", f"for i in 1 2 3; do curl -sS http://127.0.0.1:{port}/page http://127.0.0.1:{port}/page | sha256sum; done"])


if __name__ == "__main__":
    # The unit tests start this from a process whose other tests make a service's socket, with a mask of its own for a moment.
    os.umask(0o022)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preload", metavar="PATH", help="the library; made absolute")
    parser.add_argument("--service", metavar="PATH", help="socket of a running sockswitchd")
    parser.add_argument("--eager", action="store_true", help="every connection asks for its companion at once")
    parser.add_argument("--wrapper", metavar="COMMAND", help="runs the commands instead, for example 'sockswitch run --'")
    options, rest = parser.parse_known_args()
    if options.preload:
        options.preload = os.path.abspath(options.preload)
        if not os.path.exists(options.preload):
            parser.error(f"no {options.preload}")
    elif not options.wrapper:
        parser.error("--preload or --wrapper is needed")
    for variable in ("LD_PRELOAD", "SOCKSWITCH_SERVICE", "SOCKSWITCH_POLICY", "SOCKSWITCH_WAIT", "SOCKSWITCH_UPGRADE"):
        os.environ.pop(variable, None)
    # A test runner's thread may have blocked signals, and children inherit that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    unittest.main(argv=[sys.argv[0], *rest])
