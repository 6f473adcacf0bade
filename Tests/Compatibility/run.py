#!/usr/bin/env python3
"""Runs the program matrix: real programs on TCP and under the switch, with a check of their results and of the carriers.

    python3 Tests/Compatibility/run.py [--build-dir out/bin] [-k PATTERN]… [--plain] [--seed N] [--list] [--write | --check]
                                          [--stress eager|toggle]

-k        only tests whose name contains PATTERN (may be repeated)
--plain   everything without the switch: validates the tests themselves
--write   writes Documentation/Compatibility.md when every test has passed
--stress  eager: connections move at their first byte; toggle: and everything is switched off and on all the time. The results
          must be the same; carriers are not those of the rows.
--check   runs nothing; compares the document's rows with the programs here and with calls.tsv
"""
import argparse
import os
import random
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import matrix  # noqa: E402
import document  # noqa: E402
import harness  # noqa: E402
from results import flatten, run  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", default=os.path.join(ROOT, "out", "bin"))
    parser.add_argument("-k", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--stress", choices=("eager", "toggle"))
    arguments = parser.parse_args()

    every_test = list(flatten(unittest.defaultTestLoader.discover(HERE, "programs_*.py")))
    programs = sorted({type(test) for test in every_test}, key=lambda program: program.program.lower())
    if arguments.check:
        return document.check(ROOT, programs)

    settings = harness.settings
    settings.build_dir = os.path.abspath(arguments.build_dir)
    settings.plain = arguments.plain
    settings.stress = arguments.stress
    settings.seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1, 1 << 48)
    tests = [test for test in every_test
             if not arguments.k or any(part in harness.short_name(test) for part in arguments.k)]
    if arguments.list:
        for test in tests:
            print(harness.short_name(test))
        return 0
    if not tests:
        print("no test matches", file=sys.stderr)
        return 2
    if arguments.write and (len(tests) < len(every_test) or settings.plain or settings.stress):
        print("--write needs a run of everything in the default policy", file=sys.stderr)
        return 2
    status = run(tests)
    if status == 0 and arguments.write:
        document.write(ROOT, programs, matrix.observations)
    return status


if __name__ == "__main__":
    sys.exit(main())
