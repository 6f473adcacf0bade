"""redis-server with redis-benchmark, redis-cli and a checking client."""
import unittest

from harness import Case, free_port, settings


class Redis(Case):
    def start_server(self, switched=True):
        self.port = free_port()
        self.server = self.start(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--daemonize", "no", "--dir", self.directory], switched)
        self.wait_listening(self.port, self.server)

    def cli(self, *words, switched=True):
        return self.run_program(["redis-cli", "-p", str(self.port), *words], switched).output.strip()

    def digest(self, switched):
        self.start_server(switched)
        session = self.start_python("redis_session.py", self.port, settings.seed, 3000, switched=switched)
        line = session.wait_for_output("digest", 60)
        return session, line.split()[1]

    def test_session_like_tcp(self):
        plain, wanted = self.digest(False)
        plain.tell("end")
        plain.wait()
        session, got = self.digest(True)
        self.assertEqual(got, wanted, "replies differ from those over TCP")
        session.tell("steady")
        self.prove_companion(self.port, session)
        session.tell("end")
        session.wait()
        self.assertIn("done", session.output)

    def benchmark(self, *options, requests=20000, value_bytes=3, connections=50):
        self.start_server()
        arguments = ["redis-benchmark", "-p", str(self.port), "-t", "set,get", "-c", str(connections), "-d", str(value_bytes),
                     *options]
        finite = self.run_program([*arguments, "-n", str(requests), "--csv"], seconds=100)
        rows = [line.split(",")[0].strip('"') for line in finite.output.splitlines() if line.startswith('"')]
        self.assertEqual([row for row in rows if row in ("SET", "GET")], ["SET", "GET"], finite.describe())
        self.assertNotIn("rror", finite.output + finite.errors)
        self.assertEqual(self.cli("dbsize"), "1")
        self.assertEqual(int(self.cli("strlen", "key:__rand_int__")), value_bytes)
        endless = self.start([*arguments, "-n", "100000000", "-q"])
        self.prove_companion(self.port, endless, minimum_bytes=1_000_000, minimum_connections=2 * connections)
        self.assertTrue(endless.running(), endless.describe())

    def test_benchmark_one_client(self):
        self.benchmark(connections=1, requests=5000)

    def test_benchmark_fifty_clients(self):
        self.benchmark(requests=50000)

    def test_benchmark_pipelined(self):
        self.benchmark("-P", "16", requests=200000)

    def test_benchmark_large_values(self):
        self.benchmark(value_bytes=65536, requests=5000)

    def test_publish_subscribe(self):
        """A subscriber that only ever receives, messages from another program."""
        self.start_server()
        subscriber = self.start(["redis-cli", "-p", str(self.port), "subscribe", "news"])
        subscriber.wait_for_output("subscribe")
        for number in range(30):
            self.assertEqual(self.cli("publish", "news", f"message-{number}"), "1")
        subscriber.wait_for_output("message-29")

    def one_sided(self, server, client):
        self.start_server(server)
        session = self.start_python("redis_session.py", self.port, settings.seed, 1000, switched=client)
        session.wait_for_output("digest", 60)
        session.tell("steady")
        self.prove_tcp(self.port, "peerNotSwitched", session)
        session.tell("end")
        session.wait()
        bench = self.run_program(
            ["redis-benchmark", "-p", str(self.port), "-t", "set,get", "-n", "5000", "--csv"], client)
        self.assertIn('"GET"', bench.output)

    def test_only_server_switched(self):
        self.one_sided(True, False)

    def test_only_client_switched(self):
        self.one_sided(False, True)


