#!/usr/bin/env python3
"""Runs the program matrix: real programs on TCP and under the switch, with a check of their results and of the carriers.

    python3 Tests/Compatibility/run.py [--build-dir out/bin] [-k PATTERN]… [--plain] [--seed N] [--list] [--write | --write-calls | --check programs|all]
                                          [--stress eager|toggle]

-k        only tests whose name contains PATTERN (may be repeated)
--plain   everything without the switch: validates the tests themselves
--write   writes Documentation/Compatibility.md when every test has passed, now or in earlier runs with the same library
--write-calls
          runs nothing; writes the document's tables of calls, flags and options, after a change of calls.tsv
--stress  eager: connections move as soon as they are made; toggle: and everything is switched off and on all the time. The results
          must be the same; carriers are not those of the rows.
--check   runs nothing; compares the document's rows with the programs here and (all) with calls.tsv, whose proofs must be tests
"""
import argparse
import hashlib
import json
import os
import random
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
KEPT = os.path.join(ROOT, ".build", "compatibility.json")
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
    parser.add_argument("--write-calls", action="store_true")
    parser.add_argument("--check", choices=("programs", "all"))
    parser.add_argument("--stress", choices=("eager", "toggle"))
    arguments = parser.parse_args()

    every_test = list(flatten(unittest.defaultTestLoader.discover(HERE, "programs_*.py")))
    programs = sorted({type(test) for test in every_test}, key=lambda program: program.program.lower())
    if arguments.check:
        return document.check(ROOT, programs, arguments.check == "all")

    if arguments.write_calls:
        document.write_calls(ROOT)
        return 0

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
    if arguments.write and (settings.plain or settings.stress):
        print("--write needs a run in the default policy", file=sys.stderr)
        return 2
    status = run(tests)
    if settings.plain or settings.stress:
        return status
    observations = observed(matrix.observations, {test.id().split(".", 1)[1] for test in tests})
    if arguments.write:
        missing = [row.test for program in programs for row in matrix.rows_of(program) if row.test not in observations]
        if missing:
            print("not written; these have not passed yet: " + " ".join(missing), file=sys.stderr)
            return 1
        document.write(ROOT, programs, observations)
    return status


def observed(now, tried):
    """What was seen now, and in earlier runs of the same library by tests that were not tried now; kept for later ones."""
    with open(library(), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    kept = {"library": digest, "observations": {}}
    if os.path.exists(KEPT):
        with open(KEPT, encoding="utf-8") as file:
            before = json.load(file)
        if before["library"] == digest:
            kept = before
    kept["observations"] = {name: seen for name, seen in kept["observations"].items() if name not in tried} | now
    os.makedirs(os.path.dirname(KEPT), exist_ok=True)
    with open(KEPT, "w", encoding="utf-8") as file:
        json.dump(kept, file, indent=1)
    return kept["observations"]


def library():
    """Where the command looks for it, too."""
    beside = os.path.join(harness.settings.build_dir, "libsockswitch.so")
    return beside if os.path.exists(beside) else os.path.join(os.path.dirname(harness.settings.build_dir), "lib", "libsockswitch.so")


if __name__ == "__main__":
    sys.exit(main())
