#!/usr/bin/env python3
"""Runs real programs under the switch and checks what they, the switch and the kernel say.

    python3 Tests/EndToEnd/run.py [--build-dir .build/release] [-k PATTERN] [--plain] [--long] [--seed N] [--list]

--plain   everything without the switch: validates the tests themselves, skips only the proofs about companions
--long    200 rounds of sudden death, files of 1 GiB, streams of minutes
-k        only tests whose name contains PATTERN (may be repeated)
"""
import argparse
import faulthandler
import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402


def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


class Result(unittest.TestResult):
    """One plain line a test, with its time."""

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()
        print(f"{harness.short_name(test)} … ", end="", flush=True)

    def finish(self, word):
        notes = harness.take_notes()
        print(f"{word} ({time.monotonic() - self.began:.1f} s){'  ' + '; '.join(notes) if notes else ''}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.finish("passed")

    def addError(self, test, err):
        super().addError(test, err)
        self.finish("FAILED")
        print(self.errors[-1][1], flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.finish("FAILED")
        print(self.failures[-1][1], flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.finish(f"skipped: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--build-dir", default=os.path.join(root, ".build", "release"))
    parser.add_argument("-k", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--stream-seconds", type=float, default=None, help="length of each stream test")
    parser.add_argument("--death-rounds", type=int, default=None)
    arguments = parser.parse_args()

    settings = harness.settings
    settings.build_dir = os.path.abspath(arguments.build_dir)
    settings.plain = arguments.plain
    settings.long = arguments.long
    settings.seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1, 1 << 48)
    settings.stream_seconds = arguments.stream_seconds or (120.0 if arguments.long else 5.0)
    settings.death_rounds = arguments.death_rounds or (200 if arguments.long else 20)

    tests = list(flatten(unittest.defaultTestLoader.discover(os.path.dirname(os.path.abspath(__file__)), "test_*.py")))
    tests = [test for test in tests if not arguments.k or any(part in harness.short_name(test) for part in arguments.k)]
    if arguments.list:
        for test in tests:
            print(harness.short_name(test))
        return 0
    if not tests:
        print("no test matches", file=sys.stderr)
        return 2

    faulthandler.enable()
    harness.become_subreaper()
    print(f"seed {settings.seed}{' (plain TCP)' if settings.plain else ''}", flush=True)
    result = Result()
    unittest.TestSuite(tests).run(result)
    failed = len({id(test) for test, _ in result.failures + result.errors})
    skipped = len(result.skipped)
    passed = max(0, result.testsRun - failed - skipped)
    for test, _ in result.failures + result.errors:
        print(f"failed: {harness.short_name(test)}")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
