"""Programs that carry bytes for others: socat, stunnel, openssl; memcached and iperf3, whose long forms are in Tests/EndToEnd."""
import hashlib
import json
import os
import subprocess

from harness import find_program, settings
from matrix import COMPANION, STAYS, ProgramCase, only_server_switched, row
from programs_databases import self_signed_certificate
from programs_web import WebCase
from test_web import file_digest, seeded_file

SIZE = 32 << 20


class Socat(WebCase):
    program = "socat"
    packages = ("socat",)

    def send(self, port):
        """Sends a file, half-closes, and gives what comes back."""
        with open(self.path("file"), "rb") as file:
            command = [find_program("socat"), "-t", "60", "-", f"TCP:127.0.0.1:{port}"]
            said = subprocess.run(self.switch_command(command) if self.ends.client else command, stdin=file,
                                  stdout=subprocess.PIPE, env=self.environment, check=True, timeout=100)
        return hashlib.sha256(said.stdout).hexdigest()

    def listen(self, target, *options):
        port = self.new_port()
        self.server(["socat", "-t", "60", *options, f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", target], port,
                    name=f"socat-{port}")
        return port

    @row("`TCP-LISTEN,fork` to `EXEC:cat`: there and back, half-close", COMPANION)
    def test_echo(self, ends):
        digest = seeded_file(self.path("file"), SIZE, settings.seed)
        port = self.listen("EXEC:cat")
        return self.send(port) == digest, self.send(port) == digest

    @row("a relay before nginx, a forked process a connection", COMPANION)
    def test_relay(self, ends):
        return self.fetch_all(self.listen(f"TCP:127.0.0.1:{self.start_nginx(ends.client)}"))

    @row("`EXEC,nofork`: the socket becomes the standard streams of another program", STAYS, ("handedOver", "unsupportedOption"))
    def test_exec(self, ends):
        digest = seeded_file(self.path("file"), SIZE, settings.seed)
        return self.send(self.listen("EXEC:cat,nofork")) == digest

    @only_server_switched("a relay before nginx")
    def test_only_server(self, ends):
        return self.fetch_all(self.listen(f"TCP:127.0.0.1:{self.start_nginx(ends.client)}"))


class Stunnel(WebCase):
    program = "stunnel"
    packages = ("stunnel4",)

    @row("a TLS server before nginx; a thread a connection", COMPANION)
    def test_server(self, ends):
        backend = self.start_nginx()
        certificate, key = self_signed_certificate(self.place)
        front = self.new_port()
        configuration = self.write("stunnel.conf", f"foreground = yes\npid =\n[web]\naccept = 127.0.0.1:{front}\n"
                                                   f"connect = 127.0.0.1:{backend}\ncert = {certificate}\nkey = {key}\n")
        self.server(["stunnel", configuration], front)
        many = self.client(["curl", "-sS", "-k", "--fail", "-w", "%{http_code}\\n", "-o", self.path("fetched"),
                            f"https://127.0.0.1:{front}/small?[1-200]"]).count("200\n")
        return many, self.fetch(front, "large", "https", "-k") == self.large


class OpenSSL(ProgramCase):
    program = "openssl"
    packages = ("openssl",)

    def start_s_server(self):
        port = self.new_port()
        certificate, key = self_signed_certificate(self.place)
        self.digest = seeded_file(self.path("file"), SIZE, settings.seed)
        self.server(["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificate, "-key", key, "-WWW", "-quiet"],
                    port, directory=self.place)
        return port

    @row("`s_server` and curl", COMPANION)
    def test_s_server(self, ends):
        port = self.start_s_server()
        self.client(["curl", "-sS", "-k", "--fail", "-o", self.path("got"), f"https://127.0.0.1:{port}/file"])
        return file_digest(self.path("got")) == self.digest

    @row("`s_server` and `s_client`", COMPANION)
    def test_s_client(self, ends):
        port = self.start_s_server()
        command = [find_program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-ign_eof"]
        said = subprocess.run(self.switch_command(command) if ends.client else command, input=b"GET /file HTTP/1.0\r\n\r\n",
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment, check=False, timeout=60)
        return hashlib.sha256(said.stdout.partition(b"\r\n\r\n")[2]).hexdigest() == self.digest


class Memcached(ProgramCase):
    program = "memcached"
    packages = ("memcached",)

    def talk(self):
        port = self.new_port()
        user = ["-u", "root"] if os.geteuid() == 0 else []
        server = self.server(["memcached", "-p", str(port), "-U", "0", "-l", "127.0.0.1", "-t", "4", *user], port)
        session = self.start_python("memcached_session.py", port, settings.seed, switched=self.ends.client)
        session.wait_for_output("ready", 60)
        session.tell("steady")
        load = self.client(["memcslap", f"--servers=127.0.0.1:{port}", "--concurrency=6", "--execute-number=2000", "--test=set"])
        session.tell("end")
        session.wait()
        self.end(server)
        return "rror" in load, session.output.count("done")

    @row("four threads, seven clients", COMPANION)
    def test_threads(self, ends):
        return self.talk()

    @only_server_switched("four threads")
    def test_only_server(self, ends):
        return self.talk()


class Iperf(ProgramCase):
    program = "iperf3"
    packages = ("iperf3",)

    def measure(self, *options):
        port = self.new_port()
        self.server(["iperf3", "-s", "-p", str(port)], port)
        said = json.loads(self.client(["iperf3", "-c", "127.0.0.1", "-p", str(port), "-n", "500M", "-J", *options]))
        return "error" in said, len(said["end"]["streams"]), said["end"]["sum_sent"]["bytes"] >= 500 << 20

    @row("one stream", COMPANION)
    def test_forward(self, ends):
        return self.measure()

    @row("four streams, reverse", COMPANION)
    def test_reverse(self, ends):
        return self.measure("-R", "-P", "4")
