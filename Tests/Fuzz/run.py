#!/usr/bin/env python3
"""Builds the fuzzer, starts a service of its own, and runs it under the switch. See the head of oracle.c for the rules.

    run.py [--build-dir DIR] [--library FILE] [--wait adaptive|never] [options of the fuzzer]

    --seconds N         how long (20); seeds are tried one after the other
    --from N            the first seed (random, printed)
    --seed N            this seed alone; --only 3,7,9 takes these steps of it alone
    --differences N     stop after so many (1)
    --shrink N          seconds that shrinking a difference may take (60)
    --no-splice, --no-bad-pointers, --no-exact-restarts
                        without these; --urgent: urgent data in every sequence, not in one of eight; --shared-epoll: sets that
                        several processes change (clean but for bytes that lie unread in a ring whose sender cannot send them
                        again); --stacks: gdb says where a hanging process is
"""
import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def tool(directory, *names):
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            return path
    sys.exit(f"{directory}: no {names[0]}; make build")


def make_nice_count():
    """Under sched_autogroup niceness counts within a session only: one that was started for this takes it on as a whole."""
    value = os.nice(0)
    if value > 0 and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
            file.write(str(value))


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build-dir", default=os.path.join(ROOT, ".build", "release"))
    parser.add_argument("--library")
    parser.add_argument("--wait", default="adaptive")
    parser.add_argument("-h", "--help", action="store_true")
    settings, rest = parser.parse_known_args()
    if settings.help:
        print(__doc__)
        return 0
    if "--seed" not in rest and "--from" not in rest:
        rest = ["--from", str(random.randrange(1 << 40)), *rest]
    make_nice_count()
    library = settings.library or tool(settings.build_dir, "libsockswitch.so")
    directory = tempfile.mkdtemp(prefix="fuzz-")
    service = os.path.join(directory, "service.sock")
    program = os.path.join(directory, "fuzz")
    subprocess.run(["cc", "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-o", program,
                    *(os.path.join(HERE, name) for name in ("fuzz.c", "worlds.c", "perform.c", "oracle.c", "steps.c")), "-ldl"],
                   check=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    daemon = subprocess.Popen([tool(settings.build_dir, "sockswitchd"), "--socket", service, "--log-level", "error"])
    fuzzer = None
    try:
        deadline = time.monotonic() + 20
        while not os.path.exists(service):
            if time.monotonic() > deadline or daemon.poll() is not None:
                sys.exit("the service did not start")
            time.sleep(0.01)
        environment = {**os.environ, "LD_PRELOAD": library, "SOCKSWITCH_SERVICE": service, "SOCKSWITCH_UPGRADE": "eager",
                       "SOCKSWITCH_WAIT": settings.wait}
        fuzzer = subprocess.Popen([program, "--service", service, *rest], env=environment)
        return fuzzer.wait()
    finally:
        if fuzzer and fuzzer.poll() is None:
            fuzzer.terminate()
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
