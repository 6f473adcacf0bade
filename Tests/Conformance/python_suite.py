"""Runs tests of the interpreter that runs this file, one JSON line an event. Started by run.py, once a module and mode.

    python3 python_suite.py EVENTS MODULE [--skip FILE] [--only TEST …] [--resource NAME …] [--list]

EVENTS gets {"begin": id} before and {"end": id, "outcome": …, "text": …} after each test, at once, so that whoever watches knows
which test hangs or crashes. --skip: ids, one a line, that are not run (had their turn before a crash, or are excluded).
"""
import argparse
import faulthandler
import json
import os
import sys
import unittest


class Events:
    def __init__(self, path):
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.owner = os.getpid()

    def write(self, **event):
        # Children that tests fork go through the same result object when they fail to exit.
        if os.getpid() == self.owner:
            os.write(self.descriptor, json.dumps(event).encode() + b"\n")


class Result(unittest.TestResult):
    """Of several outcomes of one test (subtests, tearDown) the first that is none of passing counts."""

    def __init__(self, events):
        super().__init__()
        self.events = events
        self.outcome = None

    def startTest(self, test):
        super().startTest(test)
        self.outcome = None
        self.events.write(begin=test.id())
        print(f"{test.id()} … ", end="", file=sys.stderr, flush=True)

    def stopTest(self, test):
        super().stopTest(test)
        outcome, text = self.outcome or ("passed", "")
        self.events.write(end=test.id(), outcome=outcome, text=text)
        print(outcome, file=sys.stderr, flush=True)

    def note(self, test, outcome, text):
        if text:
            print(text, file=sys.stderr)
        if self.outcome is None or self.outcome[0] == "skipped":
            self.outcome = (outcome, text[-4000:])
        if not isinstance(test, unittest.TestCase):  # setUpClass, setUpModule: never started
            self.events.write(end=test.id(), outcome=outcome, text=text[-4000:])
            self.outcome = None

    def addError(self, test, err):
        super().addError(test, err)
        self.note(test, "failed", self._exc_info_to_string(err, test))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, "failed", self._exc_info_to_string(err, test))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self.note(test, "failed as expected", "")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "passed unexpectedly", "")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(test, "failed", self._exc_info_to_string(err, test))


def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events")
    parser.add_argument("module")
    parser.add_argument("--skip")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--resource", action="append", default=[])
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    del sys.argv[1:]  # tests start children with these arguments, and some parse them

    # As `python -m test` does it: no resource (network, large files …) that was not asked for.
    try:
        from test import support
        support.use_resources = arguments.resource
        support.verbose = False
    except ImportError:
        pass
    skipped = set()
    if arguments.skip:
        with open(arguments.skip) as file:
            skipped = set(file.read().split("\n"))
    suite = unittest.defaultTestLoader.loadTestsFromName(arguments.module)
    tests = [test for test in flatten(suite) if test.id() not in skipped
             and (not arguments.only or any(part in test.id() for part in arguments.only))]
    if arguments.list:
        print("\n".join(test.id() for test in tests))
        return 0
    faulthandler.enable()
    events = Events(arguments.events)
    for test in flatten(suite):
        if test.id() in skipped:
            events.write(excluded=test.id())
    result = Result(events)
    unittest.TestSuite(tests).run(result)
    events.write(done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
