"""`sockswitch demo`: its proof holds, and it leaves nothing behind."""
import os
import signal
import subprocess

from harness import Case, descendants, tool


class Demo(Case):
    def demo(self, *options):
        # Its own directory lies where tearDown looks for files, too.
        return subprocess.Popen(
            [tool("sockswitch"), "demo", *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**self.environment, "TMPDIR": self.service_directory}, text=True)

    def expect_nothing_left(self):
        self.assertEqual(os.listdir(self.service_directory), [])
        self.assertEqual(self.wait_for_no_children(0), set())

    def test_without_redis(self):
        demo = self.demo("--server", "echo", "--round-trips", "50000")
        output, errors = demo.communicate()
        self.assertEqual((demo.returncode, errors), (0, ""), output)
        switched = next(line.split() for line in output.splitlines() if line.startswith("switched"))
        program, kernel, companion = map(int, switched[1:])
        self.assertGreaterEqual(companion, 0.99 * program, output)
        self.assertLessEqual(kernel, 0.01 * program, output)
        self.expect_nothing_left()

    def test_interrupted(self):
        demo = self.demo("--server", "echo", "--round-trips", "10000000")
        self.wait_until(lambda: len(descendants(demo.pid)) == 2, "the demo's server and client run")
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate()
        self.assertEqual((demo.returncode, errors), (1, "sockswitch: demo: interrupted\n"))
        self.expect_nothing_left()
