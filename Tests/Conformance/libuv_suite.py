"""libuv's suite, from Debian's source package."""
import os
import re
import subprocess

import preparing
import running
from unit import Unit


class LibuvUnit(Unit):
    """libuv's own tests, one process each, by its runner, which writes TAP."""
    isolated = True
    exclusive = True

    def source(self):
        def make(directory):
            preparing.call(["sh", "autogen.sh"], cwd=directory)
            preparing.call(["./configure", "--disable-shared"], cwd=directory)
            preparing.call(["make", f"-j{os.cpu_count()}", "check", "TESTS="], cwd=directory)
        return preparing.built(preparing.debian_source("libuv1"), make)

    def prepare(self):
        self.source()

    def run(self, run, log_path, only):
        source = self.source()
        environment = {"UV_RUN_AS_ROOT": "1", "UV_TEST_TIMEOUT_MULTIPLIER": "6"}
        program = os.path.join(source, "test", "run-tests")
        if not only:
            status, text = running.run_program(run, [program], log_path, self.unit_seconds, source, environment)
            return running.tell_end(self.parse(text), status, text)
        names = subprocess.run([program, "--list"], stdout=subprocess.PIPE, text=True, cwd=source,
                               env={**run.environment, **environment}).stdout.split()
        results = {}
        for name in names:
            if any(part in name for part in only):
                status, text = running.run_program(run, [program, name], log_path, self.test_seconds, source, environment)
                results.update(self.parse(text))
                if name not in results:
                    running.tell_end(results, status, text)
        return results

    @staticmethod
    def parse(text):
        results, last = {}, None
        for line in text.split("\n"):
            match = re.match(r"(ok|not ok) \d+ - (\S+)(.*)", line)
            if match:
                last = match.group(2)
                outcome = "failed" if match.group(1) == "not ok" else "skipped" if "# SKIP" in match.group(3) else "passed"
                results[last] = (outcome, "")
            elif last and line.startswith("#"):
                results[last] = (results[last][0], (results[last][1] + line + "\n")[-4000:])
        return results


def units():
    return [LibuvUnit("libuv", "tests")]
