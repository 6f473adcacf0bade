"""What is run: the units of every suite, and how those written in Python run."""
import glob
import os
import shutil
import subprocess

import libevent_suite
import libuv_suite
import preparing
import redis_suite
import running
from unit import Unit

#: Debian's interpreter, to which libpython3.11-testsuite belongs.
PYTHON = "/usr/bin/python3"


class PythonUnit(Unit):
    """A module of the interpreter's own tests."""

    def __init__(self, name, module=None, resources=(), **options):
        super().__init__("python", name, **options)
        self.module = module or f"test.{name}"
        self.resources = resources

    def run(self, run, log_path, only):
        def command(events, skip):
            options = [option for name in self.resources for option in ("--resource", name)]
            options += [option for part in only for option in ("--only", part)]
            return [PYTHON, os.path.join(running.HERE, "python_suite.py"), events, self.module, "--skip", skip, *options]
        return running.run_events(run, command, log_path, self.test_seconds, self.unit_seconds, self.excluded)


def python_units():
    short = ["test_socket", "test_ssl", "test_httplib", "test_httpservers", "test_asyncore",
             "test_asynchat", "test_smtplib", "test_poplib", "test_nntplib", "test_urllib2_localnet"]
    long = ["test_ftplib", "test_xmlrpc", "test_imaplib", "test_multiprocessing_fork", "test_multiprocessing_spawn",
            "test_multiprocessing_forkserver"]
    # Event loops, simulated servers or pipes only: no TCP connection of their own that carries anything. (test_epoll's
    # connections carry a few bytes, and are sometimes over before they have moved.)
    silent_short = ["test_epoll", "test_select", "test_telnetlib", "test_smtpd"]
    silent_long = ["test_selectors", "test_poll", "test_multiprocessing_main_handling"]
    units = [PythonUnit(name, short=name in short + silent_short, carries=name in short + long)
             for name in short + long + silent_short + silent_long]
    # It wants the resource for talking with itself.
    units.append(PythonUnit("test_socketserver", resources=["network"], short=True))
    units += asyncio_units()
    return units


def asyncio_units():
    """test_asyncio is a package of dozens of modules: a unit each, so that they can run side by side."""
    path = subprocess.run([PYTHON, "-c", "import test.test_asyncio as t; print(t.__path__[0])"], stdout=subprocess.PIPE,
                          text=True, check=True).stdout.strip()
    names = sorted(os.path.basename(file)[:-3] for file in glob.glob(os.path.join(path, "test_*.py")))
    # Those that open TCP connections; the others test tasks, queues, protocols with mock objects.
    carrying = {"test_buffered_proto", "test_events", "test_sendfile", "test_server", "test_sock_lowlevel", "test_ssl",
                "test_sslproto", "test_streams"}
    return [PythonUnit(f"test_asyncio.{name}", short=name in ("test_sock_lowlevel", "test_buffered_proto"),
                       carries=name in carrying) for name in names]


class PackageUnit(PythonUnit):
    """A module of the tests that a package of PyPI ships, run by an interpreter that has the package."""

    def __init__(self, suite, name, module, **options):
        super().__init__(name, module=module, **options)
        self.suite = suite

    def environment(self):
        """(interpreter, directory of the tests or None)"""
        raise NotImplementedError

    def prepare(self):
        self.environment()

    def run(self, run, log_path, only):
        python, directory = self.environment()
        if directory:
            run.environment["PYTHONPATH"] = directory

        def command(events, skip):
            options = [option for part in only for option in ("--only", part)]
            return [python, os.path.join(running.HERE, "python_suite.py"), events, self.module, "--skip", skip, *options]
        return running.run_events(run, command, log_path, self.test_seconds, self.unit_seconds, self.excluded)


class UvloopUnit(PackageUnit):
    VERSION = "0.21.0"
    # Its tests look for a free port from 50000 on, and bind it later: two modes of a unit beside each other find the same one.
    isolated = True

    def environment(self):
        python = preparing.virtual_environment("uvloop", [f"uvloop=={self.VERSION}", "psutil", "pyOpenSSL"], PYTHON)

        def make(directory):
            # Beside the tests lies the source of the package, which is not compiled and would be found first.
            shutil.copytree(os.path.join(preparing.pypi_source(f"uvloop=={self.VERSION}", python), "tests"),
                            os.path.join(directory, "tests"))
        return python, preparing.once(os.path.join(running.CACHE, "uvloop-tests"), make)


def uvloop_units():
    carrying = ["tcp", "sockets", "context"]
    others = ["base", "unix", "dns", "udp", "process", "pipes", "signals", "regr1", "executors", "runner", "dealloc"]
    return [UvloopUnit("uvloop", f"test_{name}", f"tests.test_{name}", carries=name in carrying) for name in carrying + others]


def all_units():
    return python_units() + uvloop_units() + libuv_suite.units() + libevent_suite.units() + redis_suite.units()
