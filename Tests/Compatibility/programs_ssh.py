"""OpenSSH (sshd starts itself again with the connection) and rsync's daemon."""
import os

from harness import find_program, settings
from matrix import COMPANION, SERVER_ONLY, STAYS, ProgramCase, only_server_switched, row
from test_web import file_digest, seeded_file

SIZE = 24 << 20
#: The connection is the standard input of what sshd starts itself as.
STANDARD_INPUT = ("handedOver", "unsupportedOption")


class OpenSSH(ProgramCase):
    program = "OpenSSH"
    packages = ("openssh-server", "openssh-client")

    PRIVILEGE_SEPARATION_DIRECTORY = "/run/sshd"

    def setUp(self):
        super().setUp()
        self.made_directory = False
        if os.geteuid() == 0 and not os.path.isdir(self.PRIVILEGE_SEPARATION_DIRECTORY):
            os.mkdir(self.PRIVILEGE_SEPARATION_DIRECTORY, 0o755)
            self.made_directory = True

    def tearDown(self):
        super().tearDown()
        if self.made_directory:
            os.rmdir(self.PRIVILEGE_SEPARATION_DIRECTORY)

    def start_sshd(self, *settings_lines):
        self.port = self.new_port()
        for name in ("host", "user"):
            self.run_program(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path(name)], switched=False)
        os.rename(self.path("user.pub"), self.path("authorized"))
        configuration = self.write("sshd_config", "\n".join([
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.path('host')}", f"PidFile {self.path('pid')}",
            f"AuthorizedKeysFile {self.path('authorized')}", "StrictModes no", "UsePAM no", "PasswordAuthentication no",
            "PermitRootLogin yes", "Subsystem sftp internal-sftp", "MaxStartups 100", *settings_lines, ""]))
        self.sshd = self.server([find_program("sshd"), "-D", "-e", "-f", configuration], self.port)

    def options(self, *more):
        return ["-F", "none", "-i", self.path("user"), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
                "-o", f"UserKnownHostsFile={self.path('known')}", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", *more]

    def copy_both_ways(self):
        digest = seeded_file(self.path("file"), SIZE, settings.seed)
        there = f"127.0.0.1:{self.path('there')}"
        self.client(["scp", *self.options("-P", str(self.port)), self.path("file"), there])
        self.client(["scp", *self.options("-P", str(self.port)), there, self.path("back")])
        return [file_digest(self.path("there")) == digest, file_digest(self.path("back")) == digest]

    @row("`scp` there and back; sshd starts itself again with the connection as its standard streams", STAYS, STANDARD_INPUT)
    def test_scp(self, ends):
        self.start_sshd()
        return self.copy_both_ways()

    @row("`ssh` with a command: output, standard input, exit status", STAYS, STANDARD_INPUT)
    def test_command(self, ends):
        self.start_sshd()
        command = ["ssh", *self.options("-p", str(self.port)), "127.0.0.1"]
        said = self.client([*command, "head -c 4000000 /dev/zero | sha256sum; exit 7"], expected=7)
        amount = self.client([*command, "head -c 8000000 /dev/zero"])
        return said, len(amount)

    @row("`scp`; only the server switched", STAYS, STANDARD_INPUT, ends=SERVER_ONLY)
    def test_scp_only_server(self, ends):
        self.start_sshd()
        return self.copy_both_ways()


class Rsync(ProgramCase):
    program = "rsync"
    packages = ("rsync",)

    def start_daemon(self):
        self.port = self.new_port()
        self.tree = self.path("tree")
        os.makedirs(os.path.join(self.tree, "deep"))
        for number in range(60):
            seeded_file(os.path.join(self.tree, "deep", f"small-{number}"), 3000 + 17 * number, settings.seed + number)
        seeded_file(os.path.join(self.tree, "large"), SIZE, settings.seed)
        os.mkdir(self.path("received"))
        identity = "uid = root\ngid = root" if os.geteuid() == 0 else ""
        configuration = self.write("rsyncd.conf", f"""
            use chroot = no
            pid file = {self.path('pid')}
            {identity}
            [out]
            path = {self.tree}
            [in]
            path = {self.path('received')}
            read only = no
            """)
        self.daemon = self.server(
            ["rsync", "--daemon", "--no-detach", "--config", configuration, "--address", "127.0.0.1", "--port", str(self.port)],
            self.port)

    def digests(self, top):
        return sorted((os.path.relpath(os.path.join(directory, name), top), file_digest(os.path.join(directory, name)))
                      for directory, _, names in os.walk(top) for name in names)

    def transfer(self):
        self.client(["rsync", "-a", f"rsync://127.0.0.1:{self.port}/out/", self.path("fetched")])
        self.client(["rsync", "-a", f"{self.tree}/", f"rsync://127.0.0.1:{self.port}/in/"])
        changed = os.path.join(self.tree, "large")
        with open(changed, "r+b") as file:
            file.seek(SIZE // 2)
            file.write(b"another byte")
        self.client(["rsync", "-a", "--checksum", f"{self.tree}/", f"rsync://127.0.0.1:{self.port}/in/"])
        sent = self.digests(self.tree)
        return self.digests(self.path("received")) == sent, len(self.digests(self.path("fetched"))), sent

    @row("daemon: fetch, send, send differences; a forked child a connection", COMPANION)
    def test_daemon(self, ends):
        self.start_daemon()
        return self.transfer()

    @only_server_switched("daemon")
    def test_daemon_only_server(self, ends):
        self.start_daemon()
        return self.transfer()
