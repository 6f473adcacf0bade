#!/usr/bin/env python3
"""Runs real programs under the switch and checks what they, the switch and the kernel say.

    python3 Tests/EndToEnd/run.py [--build-dir .build/release] [-k PATTERN] [--plain] [--long] [--seed N] [--list]
                                  [--stream-seconds N] [--death-rounds N]

--plain   everything without the switch: validates the tests themselves, skips only the proofs about companions
--long    200 rounds of sudden death, files of 1 GiB, streams of minutes
-k        only tests whose name contains PATTERN (may be repeated)
"""
import argparse
import os
import random
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402
from results import flatten, run  # noqa: E402


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

    return run(tests)


if __name__ == "__main__":
    sys.exit(main())
