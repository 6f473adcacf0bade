"""Sources of suites: Debian's source packages and PyPI, downloaded into .build/conformance and kept there."""
import glob
import os
import shutil
import subprocess

import running

SOURCES = os.path.join(running.CACHE, "sources")


def call(arguments, **options):
    """Runs a command; its output is shown only when it fails."""
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout[-6000:]}\nended with {done.returncode}")
    return done.stdout


def once(directory, make):
    """`make(directory)` unless it has been done before; what was begun and not finished is thrown away."""
    marker = os.path.join(directory, ".complete")
    if not os.path.exists(marker):
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        make(directory)
        open(marker, "w").close()
    return directory


def apt_options(directory):
    """Package lists of our own, with the sources of the machine's Debian entries: most machines have no deb-src lines."""
    entries = os.path.join(directory, "entries")
    os.makedirs(entries, exist_ok=True)
    os.makedirs(os.path.join(directory, "lists", "partial"), exist_ok=True)
    for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*")]:
        if not os.path.isfile(path):
            continue
        with open(path) as file:
            text = file.read()
        if path.endswith(".sources"):
            stanzas = [stanza for stanza in text.split("\n\n") if "debian-archive-keyring" in stanza]
            text = "\n\n".join("\n".join("Types: deb-src" if line.startswith("Types:") else line for line in stanza.split("\n"))
                               for stanza in stanzas)
        else:
            lines = [line for line in text.split("\n") if line.startswith("deb ") and "/debian" in line]
            text = "\n".join("deb-src " + line[4:] for line in lines)
        if text.strip():
            with open(os.path.join(entries, os.path.basename(path)), "w") as file:
                file.write(text + "\n")
    # As root apt would download as another user, who may not write here.
    return ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={entries}",
            "-o", f"Dir::State::lists={directory}/lists", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]


def replace_once(path, text, by):
    """Changes a suite's own file, in which `text` stands once: else the suite is another one than this was written for."""
    with open(path) as file:
        whole = file.read()
    if whole.count(text) != 1:
        raise SystemExit(f"{path}: {text!r} stands there {whole.count(text)} times, not once")
    with open(path, "w") as file:
        file.write(whole.replace(text, by))


def debian_source(package, version=None):
    """The unpacked source of a Debian source package, Debian's patches applied."""
    request = f"{package}={version}" if version else package

    def make(directory):
        apt = os.path.join(running.CACHE, "apt")
        options = apt_options(apt)
        once(os.path.join(apt, "updated"), lambda _: call(["apt-get", *options, "update"]))
        call(["apt-get", *options, "source", request], cwd=directory)
    directory = once(os.path.join(SOURCES, request.replace(":", "-")), make)
    return next(path for path in sorted(glob.glob(os.path.join(directory, "*"))) if os.path.isdir(path))


def built(source, make):
    """`make(source)` once."""
    marker = os.path.join(source, ".built")
    if not os.path.exists(marker):
        make(source)
        open(marker, "w").close()
    return source


def virtual_environment(name, packages, python):
    """An interpreter with packages of PyPI."""
    def make(directory):
        call([python, "-m", "venv", directory])
        call([os.path.join(directory, "bin", "pip"), "install", "-q", *packages])
    return os.path.join(once(os.path.join(running.CACHE, "venv", name), make), "bin", "python3")


def pypi_source(requirement, environment_python):
    """The unpacked source distribution of a package of PyPI."""
    def make(directory):
        name = requirement.split("==")[0]
        call([environment_python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary",
                      requirement.split("==")[0], "-d", directory,
              requirement])
        archive = glob.glob(os.path.join(directory, "*.tar.gz"))[0]
        call(["tar", "xf", archive, "-C", directory])
    directory = once(os.path.join(SOURCES, requirement.replace("==", "-")), make)
    return next(path for path in sorted(glob.glob(os.path.join(directory, "*"))) if os.path.isdir(path))
