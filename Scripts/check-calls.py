#!/usr/bin/env python3
"""Compares Tests/Compatibility/calls.tsv with libc and with what the library takes.

Every function of this machine's libc whose name belongs to one of the families below can take a descriptor that is a
stream socket, or is named as if it could: it must have a row. So a libc that brings a new one fails here. Every name that
the library exports must have a row that says so, and the other way round.

    python3 Scripts/check-calls.py [--missing]     --missing prints the names without a row and nothing else
"""
import fnmatch
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "Tests/Compatibility/calls.tsv"
EXPORTS = ROOT / "Sources/Interposer/exports.map"
CARRIERS = {"companion", "moved back", "stays", "kernel"}
#: Names that must have a row: what they do with a socket has to be known.
FAMILIES = re.compile(
    r"(?<!th)read|write|recv|send|sock|accept|connect|bind|listen|shutdown|close|dup|fcntl|ioctl|poll|select|splice|^tee$|copy_file|"
    r"fdopen|dprintf|^_*aio_|^_*lio_|isfdtype|syscall|peername|fsync|fdatasync|lseek|flock|lockf|ftruncate|fallocate|fadvise|"
    r"readahead|sync_file|eventfd|signalfd|timerfd|pidfd|fanotify|inotify|exec|spawn|fork|^_*clone|^system$|popen|rcmd|rexec|"
    r"^_*mmap|^_*fstat|isatty|^tc|ttyname|getmsg|putmsg|getpmsg|putpmsg|^svc|^clnt|^sigaction$|^signal$|sigset$|sigignore|siginterrupt|"
    r"sysv_signal|bsd_signal|ssignal|^_*sigvec|^daemon$|login_tty|forkpty|openpty|file_attach|uring|fchown|fchmod|futimens|fxstat|"
    r"exit|backtrace|unshare|freopen|fclose|wordexp|io_submit")


def libc_names():
    """Functions that a program can link with: without what is private to libc."""
    maps = pathlib.Path("/proc/self/maps").read_text()
    path = next(line.split()[-1] for line in maps.splitlines() if re.search(r"/libc\.so\.6$|/libc-[\d.]+\.so$", line))
    names = set()
    for line in subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in "TWi" and "GLIBC_PRIVATE" not in fields[2]:
            names.add(fields[2].split("@")[0])
    return names


def rows():
    """name (may be a pattern) -> (kind, carrier, explanation, proof)"""
    table = {}
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        if not line or line.startswith("#") or line.startswith("name\t"):
            continue
        fields = line.split("\t")
        if len(fields) != 5 or not all(field.strip() == field and field for field in fields):
            sys.exit(f"{TABLE.name}:{number}: five fields, none empty, between single tabs")
        name, kind, carrier, explanation, proof = fields
        if kind not in ("call", "flag", "option") or carrier not in CARRIERS:
            sys.exit(f"{TABLE.name}:{number}: kind or carrier is none of the known ones")
        if (name, kind) in table:
            sys.exit(f"{TABLE.name}:{number}: {name} is there already")
        table[name, kind] = (carrier, explanation, proof)
    return table


def main():
    table = {name: row for (name, kind), row in rows().items() if kind == "call"}
    exports = set(re.findall(r"^\s+(\w+);", EXPORTS.read_text(), re.M)) - {"local"}
    patterns = [name for name in table if "*" in name]
    libc = libc_names()
    wanted = {name for name in libc if FAMILIES.search(name)} | exports
    missing = sorted(name for name in wanted if name not in table and not any(fnmatch.fnmatchcase(name, p) for p in patterns))
    if "--missing" in sys.argv:
        print("\n".join(missing))
        return 0
    errors = [f"{name}: no row" for name in missing]
    for name, (carrier, _, _) in table.items():
        if "*" in name:
            if carrier != "kernel":
                errors.append(f"{name}: only what is harmless may be a pattern")
        elif carrier in ("companion", "moved back") and name not in exports:
            errors.append(f"{name}: said to be {carrier}, but the library does not take it")
        elif carrier == "kernel" and name in exports:
            errors.append(f"{name}: said to be harmless, but the library takes it")
    for error in errors:
        print(error)
    print(f"calls: {len(wanted)} names of libc and of the library, {len(table)} rows, {len(errors)} errors")
    return 1 if errors or len(wanted) < 150 else 0


if __name__ == "__main__":
    sys.exit(main())
