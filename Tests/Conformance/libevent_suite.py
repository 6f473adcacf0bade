"""libevent's suite, from Debian's source package: `regress` and the `test-` programs, as test/test.sh runs them."""
import os
import re
import subprocess

import preparing
import running
from unit import Unit

#: What test.sh sets to leave one backend.
BACKENDS = ["EPOLL", "POLL", "SELECT"]
#: Programs of test.sh, which are one test each. All but test-fdleak talk over Unix sockets or not at all.
PROGRAMS = ["test-init", "test-eof", "test-closed", "test-weof", "test-time", "test-changelist", "test-fdleak"]
#: The rate limits that CMakeLists.txt has as tests.
RATES = {
    "group_lim": "-g 30000 -n 30 -t 100 --check-grouplimit 1000 --check-stddev 100",
    "con_lim": "-c 1000 -n 30 -t 100 --check-connlimit 50 --check-stddev 50",
    "group_con_lim": "-c 1000 -g 30000 -n 30 -t 100 --check-grouplimit 1000 --check-connlimit 50 --check-stddev 50",
    "group_con_lim_drain": "-c 1000 -g 35000 -n 30 -t 100 -G 500 --check-grouplimit 1000 --check-connlimit 50 --check-stddev 50",
}


class LibeventUnit(Unit):
    """The suite on one backend, each test a process by itself."""
    isolated = True
    #: The tests sleep: the whole suite takes half a second of a processor.
    parallel = 4

    def __init__(self, name, backend, environment=None, **options):
        super().__init__("libevent", name, **options)
        self.environment = {f"EVENT_NO{other}": "yes" for other in BACKENDS if other != backend} | (environment or {})

    def source(self):
        def make(directory):
            preparing.call(["autoreconf", "-fi"], cwd=directory)
            preparing.call(["./configure", "--disable-shared", "--disable-samples"], cwd=directory)
            # Its clocks may differ by 50 ms: not on a machine that has other work, natively or switched.
            preparing.replace_once(os.path.join(directory, "test", "regress.h"), "(diff), 50)", "(diff), 1000)")
            preparing.call(["make", f"-j{os.cpu_count()}"], cwd=directory)
        return preparing.built(preparing.debian_source("libevent"), make)

    def prepare(self):
        self.source()

    def tests(self, directory):
        """{id: arguments}; the order is the suite's."""
        listed = subprocess.run([os.path.join(directory, "regress"), "--list-tests"], stdout=subprocess.PIPE, text=True).stdout
        tests = {program: [os.path.join(directory, program)] for program in PROGRAMS}
        dump, check = (os.path.join(directory, name) for name in ("test-dumpevents", "check-dumpevents.py"))
        tests["test-dumpevents"] = ["sh", "-c", f"{dump} | python3 {check}"]
        for name, options in RATES.items():
            tests[f"test-ratelim/{name}"] = [os.path.join(directory, "test-ratelim"), *options.split()]
        for name in re.findall(r"^    (\S+)$", listed, re.MULTILINE):  # without those that are off by default
            tests[name] = [os.path.join(directory, "regress"), "--verbose", name]
        return tests

    def run(self, run, log_path, only):
        directory = os.path.join(self.source(), "test")
        commands = self.tests(directory)
        tests = {test: (arguments, self.environment) for test, arguments in commands.items()
                 if test not in self.excluded and (not only or any(part in test for part in only))}
        ends = running.run_each(run, tests, log_path, self.test_seconds, run.scratch, self.parallel)
        results = {test: ("excluded", "") for test in self.excluded if test in commands}
        for test, (status, text) in ends.items():
            results[test] = (self.outcome(status, text), text[-4000:])
        return results

    @staticmethod
    def outcome(status, text):
        if status is None:
            return "hung"
        if status < 0:
            return "crashed"
        if status != 0:
            return "failed"
        return "skipped" if re.search(r"\((?!0 )\d+ skipped\)", text) else "passed"


def units():
    changed = {"EVENT_EPOLL_USE_CHANGELIST": "yes", "EVENT_PRECISE_TIMER": "1"}
    return [
        LibeventUnit("epoll", "EPOLL"),
        LibeventUnit("epoll-changelist", "EPOLL", changed),
        LibeventUnit("epoll-debug", "EPOLL", {"EVENT_DEBUG_MODE": "1"}),
        LibeventUnit("poll", "POLL"),
        LibeventUnit("select", "SELECT"),
    ]
