"""memcached with a checking client and the clients of libmemcached."""
import os

from harness import Case, free_port, settings


class Memcached(Case):
    def start_server(self, switched=True):
        self.port = free_port()
        user = ["-u", "root"] if os.geteuid() == 0 else []
        self.server = self.start(
            ["memcached", "-p", str(self.port), "-U", "0", "-l", "127.0.0.1", "-t", "2", *user], switched)
        self.wait_listening(self.port, self.server)

    def session(self, switched=True):
        session = self.start_python("memcached_session.py", self.port, settings.seed, switched=switched)
        session.wait_for_output("ready", 60)
        session.tell("steady")
        return session

    def test_session(self):
        self.start_server()
        session = self.session()
        self.prove_companion(self.port, session)
        session.tell("end")
        session.wait()

    def test_libmemcached_clients(self):
        self.start_server()
        capable = self.run_program(["memccapable", "-a", "-h", "127.0.0.1", "-p", str(self.port)], seconds=100)
        self.assertIn("All tests passed", capable.output + capable.errors)
        statistics = self.run_program(["memcstat", f"--servers=127.0.0.1:{self.port}"])
        self.assertIn("curr_connections", statistics.output)

    def one_sided(self, server, client):
        self.start_server(server)
        session = self.session(client)
        self.prove_tcp(self.port, "peerNotSwitched", session)
        session.tell("end")
        session.wait()
        self.run_program(["memcstat", f"--servers=127.0.0.1:{self.port}"], client)

    def test_only_server_switched(self):
        self.one_sided(True, False)

    def test_only_client_switched(self):
        self.one_sided(False, True)
