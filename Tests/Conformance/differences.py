"""Comparing the modes test by test, and the file of differences that are a test's own."""
import fnmatch
import os

import running

KNOWN = os.path.join(running.HERE, "known-differences.tsv")


class Known:
    """A line of the file: unit (a glob), test (a glob), mode, what, why. TAB-separated; '#' begins a comment.

    mode `all`: the test is not run at all. Other modes: the test's difference in this mode is its own. what is `always`, or
    `sometimes` when the difference depends on timing; one that always differs and no longer does is stale.
    """

    def __init__(self, line, number):
        fields = line.rstrip("\n").split("\t")
        if len(fields) != 5 or fields[2] not in ("all", "default", "eager") or fields[3] not in ("always", "sometimes") \
                or len(fields[4].strip()) < 20:
            raise SystemExit(f"{KNOWN}:{number}: not 'unit TAB test TAB all|default|eager TAB always|sometimes TAB why'")
        self.unit, self.test, self.mode, self.frequency, self.why = fields
        self.number = number
        self.used = False

    def covers(self, unit):
        return fnmatch.fnmatchcase(unit, self.unit)

    def matches(self, unit, test, mode):
        return self.covers(unit) and self.mode == mode and fnmatch.fnmatchcase(test, self.test)


def read_known():
    known = []
    with open(KNOWN, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                known.append(Known(line, number))
    return known


def different(native, other):
    """Ids whose outcomes differ; a test that one of them did not come to differs, too."""
    return sorted(test for test in native.keys() | other.keys()
                  if native.get(test, ("missing", ""))[0] != other.get(test, ("missing", ""))[0])
