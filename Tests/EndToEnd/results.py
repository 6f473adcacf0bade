"""How a run of tests is reported: one plain line a test, with its time."""
import faulthandler
import time
import unittest

import harness


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

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            print(f"FAILED {subtest._subDescription()}\n{(self.failures + self.errors)[-1][1]}", flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.finish(f"skipped: {reason}")


def run(tests):
    """Runs the tests, prints a summary, and returns the exit status."""
    faulthandler.enable()
    harness.become_subreaper()
    print(f"seed {harness.settings.seed}{' (plain TCP)' if harness.settings.plain else ''}", flush=True)
    result = Result()
    unittest.TestSuite(tests).run(result)
    failed = len({id(test) for test, _ in result.failures + result.errors})
    skipped = len(result.skipped)
    passed = max(0, result.testsRun - failed - skipped)
    for test, _ in result.failures + result.errors:
        print(f"failed: {harness.short_name(test)}")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0
