"""A unit is what runs in one process group: `python.test_socket` is unit `test_socket` of suite `python`."""
import threading


class Unit:
    """`run(run, log_path, only)` gives {test id: (outcome, text)}."""

    #: Seconds for the whole unit and for one of its tests, in which it says nothing.
    unit_seconds = 1200
    test_seconds = 180
    #: Uses fixed ports: gets a network of its own.
    isolated = False
    #: Uses fixed names of files: one mode after the other.
    exclusive = False

    def __init__(self, suite, name, short=False, carries=True):
        self.suite = suite
        self.name = name
        #: Part of `make test`.
        self.short = short
        #: Its programs talk over TCP with themselves, enough that the companion must carry some of it in eager mode.
        self.carries = carries
        self.lock = threading.Lock()

    @property
    def id(self):
        return f"{self.suite}.{self.name}"

    def prepare(self):
        """Downloads and builds, once, before anything runs."""

    def run(self, run, log_path, only):
        raise NotImplementedError
