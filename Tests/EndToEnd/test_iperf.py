"""iperf3, both ways."""
import json

from harness import Case, free_port


class Iperf(Case):
    def start_server(self, switched=True):
        self.port = free_port()
        self.server = self.start(["iperf3", "-s", "-p", str(self.port)], switched)
        self.wait_listening(self.port, self.server)

    def client(self, *options, switched=True, seconds=3):
        return self.start(
            ["iperf3", "-c", "127.0.0.1", "-p", str(self.port), "-t", str(seconds), "-J", *options], switched)

    def check(self, client, streams=1):
        client.wait(40)
        result = json.loads(client.output)
        self.assertNotIn("error", result)
        end = result["end"]
        self.assertEqual(len(end["streams"]), streams)
        sent, received = end["sum_sent"]["bytes"], end["sum_received"]["bytes"]
        self.assertGreater(sent, 10_000_000)
        self.assertGreater(received, 0.9 * sent)
        self.assertLessEqual(received, sent)

    def both_ways(self, *options, streams=1):
        self.start_server()
        # On a busy machine the streams need their time to move, one after the other.
        client = self.client(*options, seconds=3 + streams)
        self.prove_companion(self.port, client, minimum_bytes=1 << 20)
        self.check(client, streams)

    def test_forward(self):
        self.both_ways()

    def test_reverse(self):
        self.both_ways("-R")

    def test_bidirectional(self):
        self.start_server()
        client = self.client("--bidir")
        self.prove_companion(self.port, client, minimum_bytes=1 << 20)
        client.wait(40)
        self.assertNotIn("error", json.loads(client.output))

    def test_four_streams(self):
        self.both_ways("-P", "4", streams=4)

    def one_sided(self, server, client):
        self.start_server(server)
        program = self.client(switched=client, seconds=2)
        self.prove_tcp(self.port, "peerNotSwitched", program)
        self.check(program)

    def test_only_server_switched(self):
        self.one_sided(True, False)

    def test_only_client_switched(self):
        self.one_sided(False, True)
