#!/usr/bin/env python3
"""Runs other people's test suites natively and under the switch, and compares test by test.

    python3 Tests/Conformance/run.py [-k PATTERN …] [--short] [--mode default|eager …] [--only TEST …] [--rounds N]
                                     [--jobs N] [--tools DIRECTORY] [--list]

-k        only units whose id contains PATTERN
--short   the units that `make test` runs
--mode    one of the modes beside `native`: default (policy as delivered), eager (everything moves as soon as it is made)
--only    only tests whose id contains TEST
--rounds  all of it N times; ends at the first round with a difference

A test that ends in another way than natively is a difference, a test that hangs or crashes, too. Before it is reported, the
same tests run natively again: what TCP shows now and then is no difference. Outcomes and output: .build/conformance/results.
"""
import argparse
import concurrent.futures
import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time

import differences
import running
import suites

RESULTS = os.path.join(running.CACHE, "results")
#: How often the tests that differ run natively again.
NATIVE_RETRIES = 4
#: How often a unit runs again when nothing went over a companion.
ATTEMPTS = 6


class Standstill(threading.Thread):
    """How long a thread that sleeps 20 ms at a time stood still: a test whose server did as well may have missed its time."""
    def __init__(self):
        super().__init__(daemon=True)
        self.longest = 0.0
        self.start()

    def run(self):
        before = time.monotonic()
        while True:
            time.sleep(0.02)
            now = time.monotonic()
            self.longest = max(self.longest, now - before)
            before = now


def work(unit, mode, only, result_path, log_path, tools, excluded):
    """In a process of its own, which collects everything that the unit leaves behind."""
    running.become_subreaper()
    running.restore_signals()
    if unit.isolated:
        running.isolate()
    unit.excluded = excluded
    with running.Run(mode, tools) as run:
        began = time.monotonic()
        standstill = Standstill()
        outcomes = unit.run(run, log_path, only)
        seconds = time.monotonic() - began
    with open(result_path, "w") as file:
        json.dump({"outcomes": outcomes, "seconds": seconds, "bytes": run.companion_bytes, "pairs": run.pairs,
                   "complaints": run.complaints, "standstill": standstill.longest}, file)


class Conformance:
    def __init__(self, arguments):
        self.arguments = arguments
        self.known = differences.read_known()
        self.pool = concurrent.futures.ThreadPoolExecutor(arguments.jobs)
        # So that a row need not wait for all the units behind it.
        self.repeats = concurrent.futures.ThreadPoolExecutor(arguments.jobs)
        self.failures = []

    def start(self, unit, mode, only=(), attempt=""):
        pool = self.repeats if attempt else self.pool
        return pool.submit(self.run_worker, unit, mode, list(only), attempt)

    def run_worker(self, unit, mode, only, attempt):
        name = f"{unit.id}.{mode}{attempt}"
        result_path, log_path = (os.path.join(RESULTS, f"{name}.{kind}") for kind in ("json", "log"))
        if os.path.exists(result_path):
            os.unlink(result_path)
        excluded = [entry.test for entry in self.known if entry.covers(unit.id) and entry.mode == "all"]
        order = {"unit": unit.id, "mode": mode, "only": only, "result": result_path, "log": log_path,
                 "tools": self.arguments.tools, "excluded": excluded}
        with unit.lock if unit.exclusive else contextlib.nullcontext():
            worker = subprocess.run([sys.executable, os.path.abspath(__file__), "--worker", json.dumps(order)],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if worker.returncode != 0:
            return {"outcomes": {"(runner)": ("crashed", worker.stdout[-4000:])}, "seconds": 0, "bytes": 0, "pairs": 0, "standstill": 0,
                    "complaints": [f"the runner failed: {worker.stdout[-2000:]}"]}
        with open(result_path) as file:
            return json.load(file)

    def unsteady(self, unit, tests):
        """{test: outcomes that it had natively in further runs}"""
        seen = {test: set() for test in tests}
        runs = [self.start(unit, "native", tests, f".again{number}") for number in range(NATIVE_RETRIES)]
        for result in runs:
            outcomes = result.result()["outcomes"]
            for test in tests:
                seen[test].add(outcomes.get(test, ("missing",))[0])
        return seen

    def compare(self, unit, native, mode, result):
        """Prints the differences of a unit in a mode; (unjustified, justified, native's own) counts."""
        counts = {"differs": 0, "known": 0, "unsteady": 0}
        open_ones = []
        for test in differences.different(native["outcomes"], result["outcomes"]):
            entry = next((entry for entry in self.known if entry.matches(unit.id, test, mode)), None)
            if entry:
                entry.used = True
                counts["known"] += 1
            else:
                open_ones.append(test)
        seen = self.unsteady(unit, open_ones) if open_ones else {}
        for test in open_ones:
            before = native["outcomes"].get(test, ("missing", ""))[0]
            now, text = result["outcomes"].get(test, ("missing", ""))
            if now in seen[test]:
                counts["unsteady"] += 1
                print(f"   unsteady natively, too: {unit.id} {test}: {before}, {now}")
                continue
            counts["differs"] += 1
            self.failures.append(f"{unit.id} {test}: natively {before}, {mode} {now}")
            print(f"   DIFFERENCE {unit.id} {test}\n      natively {before}, {mode} {now}")
            print("\n".join(f"      | {line}" for line in text.strip().splitlines()[-25:]))
            if result["standstill"] > 0.5:
                print(f"      (meanwhile an ordinary thread stood still for {result['standstill']:.1f} s)")
            print(f"      {self.reproduction(unit, mode, test)}", flush=True)
        return counts

    def reproduction(self, unit, mode, test):
        words = ["python3", "Tests/Conformance/run.py", "-k", unit.id, "--mode", mode]
        return shlex.join(words + ([] if test.startswith("(") else ["--only", test]))

    def complain(self, text):
        self.failures.append(text)
        print(f"   {text}", flush=True)

    def check_staleness(self, unit, mode, native, result):
        for entry in self.known:
            if not entry.covers(unit.id) or self.arguments.only:
                continue
            where = f"known-differences.tsv:{entry.number}"
            if entry.mode == "all" and mode == self.arguments.mode[0]:
                if native["outcomes"].get(entry.test, ("",))[0] != "excluded":
                    self.complain(f"{where} is stale: {unit.id} has no test {entry.test}")
            elif entry.mode == mode:
                exists = entry.test.startswith("(") or any(entry.matches(unit.id, test, mode) for test in native["outcomes"])
                if not exists:
                    self.complain(f"{where} is stale: {unit.id} has no test {entry.test}")
                elif entry.frequency == "always" and not entry.used:
                    self.complain(f"{where} is stale: {entry.test} no longer differs in mode {mode}")

    def round(self, units):
        """Everything once. Rows of the table are printed as they are ready."""
        modes = self.arguments.mode
        runs = {}
        for unit in units:  # all modes of a unit one after the other: equal conditions
            for mode in ["native", *modes]:
                runs[unit.id, mode] = self.start(unit, mode, self.arguments.only)
        header = f"{'unit':44} {'tests':>6} {'passed':>6} {'s':>5}"
        print(header + "".join(f" | {mode:>8}: {'differ':>6} {'known':>5} {'pairs':>5} {'companion B':>12}" for mode in modes))
        for unit in units:
            native = runs[unit.id, "native"].result()
            outcomes = [outcome for outcome, _ in native["outcomes"].values()]
            row = f"{unit.id:44} {len(outcomes):6} {outcomes.count('passed'):6} {native['seconds']:5.0f}"
            if not outcomes:
                self.complain(f"{unit.id}: no test ran natively")
            for complaint in native["complaints"]:
                self.complain(f"{unit.id} native: {complaint}")
            for mode in modes:
                result = runs[unit.id, mode].result()
                for number in range(ATTEMPTS if mode == "eager" and unit.carries and not self.arguments.only else 0):
                    if result["bytes"]:
                        break
                    # Short conversations are over before the service answers when it does not get a processor.
                    result = self.start(unit, mode, attempt=f".carried{number}").result()
                counts = self.compare(unit, native, mode, result)
                for complaint in result["complaints"]:
                    self.complain(f"{unit.id} {mode}: {complaint}")
                if mode == "eager" and unit.carries and result["bytes"] == 0 and not self.arguments.only:
                    self.complain(f"{unit.id} eager: no byte went over a companion")
                self.check_staleness(unit, mode, native, result)
                row += (f" | {'':8}  {counts['differs']:6} {counts['known']:5} {result['pairs']:5} {result['bytes']:12}")
            print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--mode", action="append", choices=["default", "eager"])
    parser.add_argument("--only", action="append", default=[], metavar="TEST")
    parser.add_argument("--rounds", type=int, default=1)
    # Most tests wait most of the time.
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--tools", default=os.path.join(running.ROOT, "out", "bin"), metavar="DIRECTORY", type=os.path.abspath)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    units = suites.all_units()
    if arguments.worker:
        order = json.loads(arguments.worker)
        unit = next(unit for unit in units if unit.id == order["unit"])
        work(unit, order["mode"], order["only"], order["result"], order["log"], order["tools"], order["excluded"])
        return 0
    arguments.mode = arguments.mode or ["default", "eager"]
    units = [unit for unit in units if (unit.short or not arguments.short)
             and (not arguments.k or any(part in unit.id for part in arguments.k))]
    if arguments.list:
        print("\n".join(unit.id for unit in units))
        return 0
    if not units:
        print("no unit matches", file=sys.stderr)
        return 2
    os.makedirs(RESULTS, exist_ok=True)
    for unit in units:
        unit.prepare()
    for number in range(arguments.rounds):
        if arguments.rounds > 1:
            print(f"== round {number + 1} of {arguments.rounds}")
        conformance = Conformance(arguments)
        began = time.monotonic()
        conformance.round(units)
        print(f"{len(units)} units in {time.monotonic() - began:.0f} s")
        if conformance.failures:
            print("\n".join(f"failed: {failure}" for failure in conformance.failures))
            return 1
    print("no differences" + (f" in {arguments.rounds} rounds" if arguments.rounds > 1 else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
