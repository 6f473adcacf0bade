"""Databases and brokers: PostgreSQL, MariaDB, redis with replication, mosquitto."""
import glob
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile

from harness import find_program, settings
from matrix import COMPANION, STAYS, ProgramCase, only_server_switched, row


def self_signed_certificate(directory):
    """(certificate, key) for localhost."""
    certificate, key = os.path.join(directory, "certificate.pem"), os.path.join(directory, "key.pem")
    subprocess.run(
        [find_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return certificate, key


class PostgreSQL(ProgramCase):
    """The server refuses to run as root: then it runs as the user that the package made, with the service of root."""

    program = "PostgreSQL"
    packages = ("postgresql-15", "postgresql-client-15")
    limit = 300
    template = None

    @classmethod
    def as_user(cls):
        if os.geteuid() != 0:
            return []
        return [find_program("setpriv"), "--reuid=postgres", "--regid=postgres", "--init-groups"]

    @staticmethod
    def binary(name):
        """Debian keeps them beside the PATH, by version."""
        return sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))[-1]

    @classmethod
    def give(cls, path):
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            for directory, directories, files in os.walk(path):
                for name in [directory, *(os.path.join(directory, name) for name in directories + files)]:
                    os.chown(name, user.pw_uid, user.pw_gid)

    @classmethod
    def setUpClass(cls):
        cls.template_directory = tempfile.mkdtemp(prefix="sockswitch-postgresql-")
        os.chmod(cls.template_directory, 0o711)
        cls.template = os.path.join(cls.template_directory, "data")
        os.mkdir(cls.template, 0o700)
        cls.give(cls.template)
        subprocess.run([*cls.as_user(), cls.binary("initdb"), "-D", cls.template, "-U", "tester", "--auth=trust", "--no-sync",
                        "--no-instructions", "--locale=C", "--encoding=UTF8"], check=True, stdout=subprocess.DEVNULL, cwd="/")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.template_directory, ignore_errors=True)

    def setUp(self):
        super().setUp()
        if os.geteuid() == 0:
            os.chmod(self.service_directory, 0o711)

    def start_postgres(self, *options):
        self.port = self.new_port()
        data = self.path("data")
        shutil.copytree(self.template, data)
        self_signed_certificate(data)
        self.give(data)
        os.chmod(data, 0o700)
        os.chmod(os.path.join(data, "key.pem"), 0o600)
        self.postgres = self.server(
            [*self.as_user(), self.binary("postgres"), "-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", "",
             "-c", "fsync=off", "-c", "ssl_cert_file=certificate.pem", "-c", "ssl_key_file=key.pem", *options],
            self.port, name="postgres")
        self.where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "tester"]

        def answers():
            asked = subprocess.run([self.binary("psql"), *self.where, "-d", "postgres", "-Atc", "select 1"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
            return asked.stdout == b"1\n"
        self.wait_until(answers, "PostgreSQL answers", 60, self.postgres.describe)

    def sql(self, statement, **options):
        return self.client([self.binary("psql"), *self.where, "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-Atc", statement],
                           **options)

    def bench(self, *options, environment=None):
        pgbench = self.binary("pgbench")
        self.client([pgbench, *self.where, "-i", "-q", "-s", "1", "postgres"], environment=environment)
        said = self.client([pgbench, *self.where, "-n", f"--random-seed={settings.seed}", *options, "postgres"],
                           environment=environment, seconds=120)
        done = re.search(r"actually processed: (\d+)/(\d+)", said)
        self.assertTrue(done, said)
        sums = self.sql("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),"
                        "(select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches),"
                        "(select count(*) from pgbench_history)", environment=environment)
        return done.groups(), sums

    def stop(self):
        self.end(self.postgres, 2)

    @row("`pgbench`, 4 connections, a forked backend each", COMPANION)
    def test_pgbench(self, ends):
        self.start_postgres()
        result = self.bench("-c", "4", "-j", "2", "-t", "400", "-M", "prepared")
        self.stop()
        return result

    @row("`pgbench` over TLS", COMPANION)
    def test_pgbench_tls(self, ends):
        self.start_postgres("-c", "ssl=on")
        encrypted = {"PGSSLMODE": "require"}
        result = self.bench("-c", "2", "-t", "400", environment=encrypted)
        cipher = self.sql("select ssl from pg_stat_ssl where pid = pg_backend_pid()", environment=encrypted)
        self.stop()
        return result, cipher

    # Its short connections stay on TCP.
    @row("`pgbench`, a connection a transaction", COMPANION)
    def test_pgbench_reconnecting(self, ends):
        self.start_postgres()
        result = self.bench("-c", "2", "-t", "60", "-C")
        self.stop()
        return result

    @row("`psql` COPY out and in", COMPANION)
    def test_copy(self, ends):
        self.start_postgres()
        rows = 400_000
        self.sql(f"create table numbers as select n, md5(n::text) as digest from generate_series(1, {rows}) n")
        out = self.path("rows.csv")
        self.sql(f"\\copy numbers to '{out}' csv")
        self.sql("create table again (n int, digest text)")
        said = self.sql(f"\\copy again from '{out}' csv")
        same = self.sql("select count(*), sum((a.digest = b.digest)::int) from numbers a join again b using (n)")
        self.stop()
        with open(out, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest(), said, same

    @only_server_switched("`pgbench`")
    def test_pgbench_only_server(self, ends):
        self.start_postgres()
        result = self.bench("-c", "2", "-t", "400")
        self.stop()
        return result


class MariaDB(ProgramCase):
    program = "MariaDB"
    packages = ("mariadb-server",)

    @classmethod
    def setUpClass(cls):
        cls.template_directory = tempfile.mkdtemp(prefix="sockswitch-mariadb-")
        cls.template = os.path.join(cls.template_directory, "data")
        subprocess.run([find_program("mariadb-install-db"), "--no-defaults", f"--datadir={cls.template}", *cls.as_user(),
                        "--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=10M"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.template_directory, ignore_errors=True)

    @staticmethod
    def as_user():
        return ["--user=root"] if os.geteuid() == 0 else []

    def talk(self, *options):
        self.port = self.new_port()
        data = self.path("data")
        shutil.copytree(self.template, data)
        server = self.server(
            ["mariadbd", "--no-defaults", f"--datadir={data}", f"--port={self.port}", "--bind-address=127.0.0.1", *self.as_user(),
             f"--socket={self.path('mariadb.sock')}", f"--pid-file={self.path('pid')}", "--skip-grant-tables",
             "--max-allowed-packet=64M", "--innodb-log-file-size=10M", "--innodb-flush-log-at-trx-commit=0", *options],
            self.port)
        where = ["--no-defaults", "--host=127.0.0.1", f"--port={self.port}", "--protocol=tcp"]
        said = self.client(["mariadb", *where, "--batch", "--max-allowed-packet=64M", "-e", """
            create database trial; use trial;
            create table numbers (n int primary key, digest char(32)) as select seq as n, md5(seq) as digest from seq_1_to_100000;
            select * from numbers order by n;
            select md5(repeat('companion', 2000000)), sum(n) from numbers;"""])
        self.client(["mariadb-slap", *where, "--concurrency=4", "--number-of-queries=2000", "--auto-generate-sql", "--silent"],
                    seconds=120)
        self.end(server, seconds=60)
        return hashlib.sha256(said.encode()).hexdigest(), len(said)

    @row("a thread a connection; files by io_uring; `mariadb`, `mariadb-slap`", COMPANION)
    def test_threads(self, ends):
        return self.talk()

    @only_server_switched("`mariadb`, `mariadb-slap`")
    def test_only_server(self, ends):
        return self.talk()


class Redis(ProgramCase):
    program = "redis"
    packages = ("redis-server", "redis-tools")

    def start_redis(self, name, *options):
        port = self.new_port()
        os.mkdir(self.path(name))
        server = self.server(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", self.path(name), "--daemonize", "no",
             "--save", "", "--enable-debug-command", "local", "--repl-diskless-sync-delay", "0", *options], port)
        return port, server

    def cli(self, port, *words):
        return self.client(["redis-cli", "-p", str(port), *words]).strip()

    def field(self, port, section, name):
        found = re.search(rf"^{name}:(\S+)", self.cli(port, "info", section), re.MULTILINE)
        return found.group(1) if found else None

    def fill(self, port, count=20000):
        """Every key of a fixed set, with values that depend on it alone."""
        lines = "".join(f"SET key:{number} {hashlib.sha256(str(number).encode()).hexdigest()}\r\n" for number in range(count))
        with open(self.path("commands"), "w") as file:
            file.write(lines)
        with open(self.path("commands")) as commands:
            piped = subprocess.run(
                self.switch_command([find_program("redis-cli"), "-p", str(port), "--pipe"]) if self.ends.client
                else [find_program("redis-cli"), "-p", str(port), "--pipe"],
                stdin=commands, stdout=subprocess.PIPE, env=self.environment, text=True, check=True, timeout=60)
        self.assertIn("errors: 0", piped.stdout)

    def synchronised(self, port):
        self.wait_until(lambda: self.field(port, "replication", "master_link_status") == "up", "the replica is linked", 30)

    @row("replication: full synchronisation, then the stream", COMPANION)
    def test_replication(self, ends):
        first, _ = self.start_redis("first")
        self.fill(first, 5000)
        second, _ = self.start_redis("second", "--replicaof", "127.0.0.1", str(first))
        self.synchronised(second)
        self.fill(first)
        said = self.client(["redis-benchmark", "-p", str(first), "-t", "incr,lpush,set", "-n", "20000", "-c", "8", "--csv"])
        self.assertIn('"LPUSH"', said)
        # WAIT would wait for the writes of its own connection only.
        self.wait_until(lambda: self.field(first, "replication", "master_repl_offset")
                        == self.field(second, "replication", "slave_repl_offset"), "the replica has everything")
        digests = {self.cli(port, "debug", "digest") for port in (first, second)}
        self.assertEqual(len(digests), 1)
        return digests, self.cli(second, "llen", "mylist")

    @row("forked children write RDB and AOF while clients go on", COMPANION)
    def test_children(self, ends):
        port, _ = self.start_redis("first", "--appendonly", "yes")
        self.fill(port)
        load = self.start(["redis-benchmark", "-p", str(port), "-t", "incr", "-n", "100000", "-c", "8", "-q"], ends.client)
        for command, section in (("bgsave", "rdb_bgsave_in_progress"), ("bgrewriteaof", "aof_rewrite_in_progress")):
            self.wait_until(lambda: "started" in self.cli(port, command), f"{command} starts", 30)
            self.wait_until(lambda: self.field(port, "persistence", section) == "0", f"{command} is done", 30)
        load.wait()
        states = [self.field(port, "persistence", name) for name in ("rdb_last_bgsave_status", "aof_last_bgrewrite_status")]
        return states, self.cli(port, "get", "counter:__rand_int__"), self.cli(port, "dbsize")


class Mosquitto(ProgramCase):
    program = "mosquitto"
    packages = ("mosquitto", "mosquitto-clients")

    def exchange(self, quality):
        port = self.new_port()
        user = "user root" if os.geteuid() == 0 else ""
        configuration = self.write("mosquitto.conf", f"listener {port} 127.0.0.1\nallow_anonymous true\n{user}\n"
                                                     "max_queued_messages 0\nmax_inflight_messages 0\n")
        self.server(["mosquitto", "-c", configuration], port)
        count = 4000
        where = ["-h", "127.0.0.1", "-p", str(port), "-q", quality, "-t", "news"]
        subscriber = self.start(["mosquitto_sub", *where, "-C", str(count + 1)], self.ends.client)
        # The subscription is in force once a message comes through.
        self.wait_until(lambda: self.client(["mosquitto_pub", *where, "-m", "first"]) == "" and subscriber.output, "the first message")
        extra = subscriber.output.count("first\n") - 1
        lines = self.write("lines", "".join(f"message {number} {'x' * (number % 300)}\n" for number in range(count - extra)))
        with open(lines) as file:
            program = [find_program("mosquitto_pub"), *where, "-l"]
            subprocess.run(self.switch_command(program) if self.ends.client else program, stdin=file, env=self.environment,
                           check=True, timeout=60)
        subscriber.wait(60)
        return sorted(line for line in subscriber.output.splitlines() if line != "first")[:count - 20] and len(
            subscriber.output.splitlines())

    @row("`mosquitto_pub` and `mosquitto_sub`, QoS 0", COMPANION, share=0.1)
    def test_at_most_once(self, ends):
        return self.exchange("0")

    @row("`mosquitto_pub` and `mosquitto_sub`, QoS 2", COMPANION)
    def test_exactly_once(self, ends):
        return self.exchange("2")
