"""redis's suite, from Debian's source package, on the programs of Debian's packages that were built from the same source.

A unit is one file of redis's tests: a test program in Tcl and the servers that it starts, all of them switched.
"""
import os
import re
import shutil
import subprocess

import preparing
import running
from unit import Unit

#: Where the suite looks for the programs, and where Debian has them.
PROGRAMS = ["redis-server", "redis-sentinel", "redis-cli", "redis-benchmark", "redis-check-aof", "redis-check-rdb"]
PACKAGE = "redis-server"

#: Files of the suite, which are a unit each.
FILES = """
    unit/acl unit/acl-v2 unit/aofrw unit/auth unit/bitfield unit/bitops unit/client-eviction unit/cluster unit/cluster-scripting
    unit/cluster/links unit/cluster/misc unit/dump unit/expire unit/functions unit/info unit/info-command unit/introspection
    unit/introspection-2 unit/keyspace unit/latency-monitor unit/lazyfree unit/limits unit/maxmemory unit/multi unit/networking
    unit/obuf-limits unit/oom-score-adj unit/other unit/pause unit/pendingquerybuf unit/protocol unit/pubsub unit/pubsubshard
    unit/querybuf unit/quit unit/replybufsize unit/scan unit/scripting unit/shutdown unit/slowlog unit/sort unit/tracking
    unit/violations unit/wait
    unit/type/hash unit/type/incr unit/type/list unit/type/list-2 unit/type/set unit/type/stream unit/type/stream-cgroups
    unit/type/string unit/type/zset
    integration/aof integration/aof-multi-part integration/block-repl integration/convert-ziplist-hash-on-load
    integration/convert-ziplist-zset-on-load integration/convert-zipmap-hash-on-load integration/corrupt-dump
    integration/dismiss-mem integration/failover integration/logging integration/psync2-master-restart integration/psync2-pingoff
    integration/rdb integration/redis-benchmark integration/redis-cli integration/replication-2
    integration/replication-3 integration/replication-4 integration/replication-buffer integration/replication-psync
    integration/shutdown
""".split()

#: Files that are not run, and why.
EXCLUDED = {
    "integration/corrupt-dump-fuzzer": "feeds random damage to a server for as long as it is told; what it finds is another each time",
    "integration/psync2": "chooses roles at random and has them in the names of its tests, so no two runs have the same tests;"
                          " psync2-pingoff and -master-restart are run",
    "integration/psync2-reg": "chooses at random, in the name of the test, which replica it kills",
    "integration/replication": "over five minutes a mode; replication-2, -3, -4, -buffer, -psync and block-repl are run",
    "unit/geo": "half a minute of one processor; commands and answers as in unit/type",
    "unit/hyperloglog": "over a minute of one processor; commands and answers as in unit/type",
    "unit/memefficiency": "over two minutes; fragmentation of memory, over one connection",
    "unit/printver": "has no tests",
    "unit/tls": "needs a redis that was built with TLS for its tests, and certificates",
    "unit/type/list-3": "most of a minute of one processor; encodings of lists, over one connection",
}


class RedisUnit(Unit):
    """`runtest --single FILE`, one test after the other."""
    isolated = True

    def __init__(self, file, **options):
        super().__init__("redis", file.removeprefix("unit/").replace("/", "."), **options)
        self.file = file

    def source(self):
        version = subprocess.run(["dpkg-query", "-W", "-f", "${source:Version}", PACKAGE], stdout=subprocess.PIPE, text=True,
                                 check=True).stdout
        return preparing.debian_source("redis", version)

    def prepare(self):
        with open(os.path.join(self.source(), "tests", "test_helper.tcl")) as file:
            listed = re.search(r"set ::all_tests \{(.*?)\n\}", file.read(), re.DOTALL).group(1).split()
        unknown = set(listed) ^ {*FILES, *EXCLUDED}
        if unknown:
            raise SystemExit(f"redis_suite.py: the suite and the lists of its files differ: {' '.join(sorted(unknown))}")

    def run(self, run, log_path, only):
        # The suite writes beside its files, and begins by deleting what another run has written there.
        directory = os.path.join(run.scratch, "redis")
        source = self.source()
        shutil.copytree(os.path.join(source, "tests"), os.path.join(directory, "tests"))
        # It takes a server for started when " PID: 323" stands in its log, and servers that share one find there that " PID: 32345"
        # has been: after the last process number comes 300, and the test connects before the server listens.
        preparing.replace_once(os.path.join(directory, "tests", "support", "server.tcl"), '" PID: $pid"', '" PID: $pid\\\\M"')
        for name in ("redis.conf", "sentinel.conf"):
            shutil.copy(os.path.join(source, name), directory)
        os.mkdir(os.path.join(directory, "src"))
        for name in PROGRAMS:
            os.symlink(os.path.join("/usr/bin", name), os.path.join(directory, "src", name))
        command = ["tclsh", "tests/test_helper.tcl", "--single", self.file, "--clients", "1", "--durable",
                   "--timeout", str(self.test_seconds)]
        for test in self.excluded:
            command += ["--skiptest", test]
        status, text = running.run_program(run, command, log_path, self.unit_seconds, directory)
        results = running.tell_end(self.parse(text), status, text)
        if any(outcome not in ("passed", "skipped", "excluded") for outcome, _ in results.values()):
            self.keep_logs(os.path.join(directory, "tests", "tmp"), log_path + ".servers")
        # Tests stand on what those before them have left: all run, whichever were asked for.
        return {test: end for test, end in results.items() if not only or any(part in test for part in only)}

    @staticmethod
    def keep_logs(directory, kept):
        """What the servers wrote: it tells whether one of them stood still."""
        for folder, _, files in os.walk(directory):
            if "stdout" in files:
                os.makedirs(kept, exist_ok=True)
                shutil.copy(os.path.join(folder, "stdout"), os.path.join(kept, os.path.basename(folder)))

    def parse(self, text):
        results, last = {}, None
        for line in re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n"):
            match = re.match(r"\[(ok|err|skip|ignore|exception|TIMEOUT)\]: (.*)", line)
            if match:
                kind, last = match.groups()
                last = self.name_of(kind, last, results)
                outcome = {"ok": "passed", "err": "failed", "exception": "crashed", "TIMEOUT": "hung"}.get(kind, "skipped")
                results[last] = ("excluded" if last in self.excluded else outcome, "" if outcome == "passed" else line + "\n")
            elif last and results[last][0] not in ("passed", "excluded", "skipped"):
                results[last] = (results[last][0], (results[last][1] + line + "\n")[-4000:])
        return results

    @staticmethod
    def name_of(kind, text, results):
        """The name of a test. Some stand in loops, under one name: they are numbered."""
        if kind == "ok":
            text = re.sub(r" \(\d+ ms\)$", "", text)
        elif kind == "err":
            text = re.sub(r" in tests/\S+\.tcl$", "", text)
        elif kind == "ignore":
            text = text.rsplit(": ", 1)[0]
        elif kind in ("exception", "TIMEOUT"):
            text = "(outside of tests)"
        name, number = text, 1
        while name in results:
            number += 1
            name = f"{text} ({number})"
        return name


def units():
    return [RedisUnit(file) for file in FILES]
