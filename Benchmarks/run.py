#!/usr/bin/env python3
"""Measures companion sockets beside TCP and Unix sockets, in interleaved rounds, and writes a table and JSON.

    python3 Benchmarks/run.py [--core] [--rounds 3] [--only NAME …] [--quick] [--results DIRECTORY] [--build-dir .build/release]
    python3 Benchmarks/run.py --readme      puts what --results Benchmarks/results has written into README.md

Every measurement of a switched program that is about companions is followed (or, for redis, accompanied) by a look at
`sockswitch ps --json`: when the bytes did not go over companions the benchmark fails instead of printing a figure of TCP. (Short
connections stay on TCP on purpose; /bin/true has none.) Figures are medians of the
rounds. Five ways are compared: `tcp` (blocking), `tcp-spin` (non-blocking, tried again at once), `unix` (Unix sockets,
blocking), `switched` and `switched-never` (`sockswitch run --wait never`: no spinning, every wait sleeps at once).
"""
import argparse
import datetime
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import typing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "Benchmarks"))
from report import PLACES, WAYS, cell, conditions, gain, median_of, table, write_readme  # noqa: E402



class Failure(Exception):
    """A benchmark that did not measure what it says."""


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.directory = tempfile.mkdtemp(prefix="sockswitch-bench-")
        self.service = os.path.join(self.directory, "service.sock")
        self.port = 24000 + os.getpid() % 4000
        self.started = []
        build = os.path.abspath(arguments.build_dir)
        self.sockbench = os.path.join(build, "sockbench")
        # SwiftPM cannot give the command the name of the library's product; the staged one has its real name.
        self.sockswitch = next(
            (path for path in (os.path.join(build, name) for name in ("sockswitch", "sockswitch-tool")) if os.path.isfile(path)),
            os.path.join(build, "sockswitch"))
        self.library = os.path.join(build, "libsockswitch.so")
        for path in (self.sockbench, self.sockswitch, self.library):
            if not os.access(path, os.X_OK):
                raise Failure(f"{path} is missing: swift build -c release")

    # Starting and looking

    def command(self, way, arguments):
        if not way.startswith("switched"):
            return arguments
        wait = "never" if way == "switched-never" else "adaptive"
        return [self.sockswitch, "run", "--service", self.service, "--wait", wait, "--", *arguments]

    def start(self, way, arguments, **options):
        process = subprocess.Popen(self.command(way, arguments), text=True, **options)
        self.started.append(process)
        return process

    def end(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        self.started.clear()

    def sockets(self):
        answer = subprocess.run([self.sockswitch, "ps", "--json", "--service", self.service], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, timeout=30)
        if answer.returncode != 0:
            raise Failure(f"sockswitch ps: {answer.stderr.strip()}")
        return json.loads(answer.stdout)["sockets"]

    def next_address(self, way):
        self.port += 1
        return os.path.join(self.directory, f"{self.port}.sock") if way == "unix" else str(self.port)

    def check_companions(self, port, connections):
        """Fails unless both ends of every connection of `port` are on companions with 99 % of their bytes."""
        found = [entry for entry in self.sockets() if entry["kind"] in ("connected", "accepted")
                 and (entry["local"].endswith(f":{port}") or entry["peer"].endswith(f":{port}"))]
        over, all_bytes = 0, 0
        for entry in found:
            over += entry["bytes"]["companionSent"] + entry["bytes"]["companionReceived"]
            all_bytes += sum(entry["bytes"].values())
        carriers = {entry[key] for entry in found for key in ("sendCarrier", "receiveCarrier")}
        if len(found) < 2 * connections or carriers != {"companion"} or over < 0.99 * all_bytes:
            raise Failure(f"port {port}: this measured TCP: {len(found)} ends, carriers {carriers}, {over} of {all_bytes} bytes "
                          f"over companions, reasons {sorted({entry['reason'] for entry in found})}")
        return over / all_bytes

    # sockbench

    def sockbench_pair(self, way, place, mode, size, count, *options):
        """A server that listens, and its client, started; and where they meet."""
        address = self.next_address(way)
        server_cpu, client_cpu = PLACES[place]
        common = ["--mode", mode, "--transport", "unix" if way == "unix" else "tcp", "--address", address,
                  "--size", str(size), "--count", str(count), *options]
        server = self.start(way, [self.sockbench, "server", *common, "--cpu", str(server_cpu)], stdout=subprocess.PIPE)
        if server.stdout.readline().strip() != "listening":
            raise Failure(f"{way}: the server did not start")
        client = self.start(way, [self.sockbench, "client", *common, "--cpu", str(client_cpu)], stdout=subprocess.PIPE,
                            stdin=subprocess.PIPE)
        return server, client, address

    @staticmethod
    def sockbench_result(server, client):
        """What both ends say when they have done their work."""
        line = client.stdout.readline()
        if not line:
            raise Failure(f"the client ended with {client.wait()}")
        result = json.loads(line)
        result["cpuSeconds"] += json.loads(server.stdout.readline())["cpuSeconds"]
        result["cpuMicrosecondsEach"] = result["cpuSeconds"] / result["count"] * 1e6
        return result

    @staticmethod
    def sockbench_end(server, client):
        client.stdin.close()
        if client.wait(30) != 0 or server.wait(30) != 0:
            raise Failure("an end did not end well")

    def sockbench_run(self, way, place, mode, size, count):
        """One connection."""
        options = ["--hold"]
        if way == "tcp-spin":
            options += ["--spin"] if len(set(PLACES[place])) > 1 else ["--spin", "--yield"]
        try:
            server, client, address = self.sockbench_pair(way, place, mode, size, count, *options)
            result = self.sockbench_result(server, client)
            if way.startswith("switched"):
                result["companionShare"] = self.check_companions(address, 1)
            self.sockbench_end(server, client)
        finally:
            self.end()
        return result

    def connect_turns(self, ways, place, size, count, batch):
        """Connections made by all ways in turns of some milliseconds, since the speed of a shared machine changes by a half within a
        second. Returns a result for each way, with the seconds of each of its turns."""
        try:
            pairs = {}
            for way in ways:
                server, client, _ = self.sockbench_pair(way, place, "connect", size, count, "--batch", str(batch))
                if client.stdout.readline().strip() != "warm":
                    raise Failure(f"{way}: the client did not start")
                pairs[way] = server, client
            turns = {way: [] for way in ways}
            for turn in range(count // batch):
                for way in ways if turn % 2 == 0 else reversed(ways):
                    client = pairs[way][1]
                    client.stdin.write(".")
                    client.stdin.flush()
                    turns[way].append(json.loads(client.stdout.readline())["seconds"])
            results = {way: {**self.sockbench_result(*pairs[way]), "turns": turns[way]} for way in ways}
            for pair in pairs.values():
                self.sockbench_end(*pair)
        finally:
            self.end()
        return results

    # redis

    def redis_run(self, way, place, requests, clients, pipeline, value_bytes):
        self.port += 1
        port = self.port
        server_cpu, client_cpu = PLACES[place]
        socket_path = os.path.join(self.directory, f"redis-{port}.sock")
        server_command = ["taskset", "-c", str(server_cpu), "redis-server", "--save", "", "--appendonly", "no", "--dir", self.directory,
                          "--bind", "127.0.0.1", "--port", "0" if way == "unix" else str(port)]
        if way == "unix":
            server_command += ["--unixsocket", socket_path]
        target = ["-s", socket_path] if way == "unix" else ["-p", str(port)]
        try:
            server = self.start(way, server_command, stdout=subprocess.PIPE)
            for line in server.stdout:
                if "eady to accept connections" in line:
                    break
            else:
                raise Failure("redis-server did not start")
            subprocess.run(["redis-cli", *target, "set", "key:__rand_int__", "x" * value_bytes], check=True,
                           stdout=subprocess.DEVNULL)
            client = self.start(
                way, ["taskset", "-c", str(client_cpu), "redis-benchmark", *target, "-t", "get", "-n", str(requests),
                      "-c", str(clients), "-P", str(pipeline), "--precision", "3"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            before = cpu_of(server.pid)
            share = None
            while way.startswith("switched") and client.poll() is None and share is None:
                # One good look is enough, and looking costs CPU time.
                time.sleep(0.1)
                try:
                    share = self.check_companions(port, clients)
                except Failure as failure:
                    last = failure
            output, errors = client.communicate(timeout=300)
            used = cpu_of(server.pid) - before + client_cpu_seconds(self, client)
            if client.returncode != 0:
                raise Failure(f"redis-benchmark: {errors}")
            if way.startswith("switched") and share is None:
                raise Failure(f"no look showed the connections on companions: {last if 'last' in locals() else 'too few requests'}")
        finally:
            self.end()
        return {**redis_figures(output), "count": requests, "cpuSeconds": used, "cpuMicrosecondsEach": used / requests * 1e6,
                **({"companionShare": share} if share is not None else {})}

    # Start

    def start_run(self, way, place, count):
        """A program that does nothing, `count` times: what loading the library costs, when no socket is made."""
        environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
        if way.startswith("switched"):
            environment.update(LD_PRELOAD=self.library, SOCKSWITCH_SERVICE=self.service)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {PLACES[place][0]})
        try:
            used, began, times = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter_ns(), []
            for _ in range(count):
                start = time.perf_counter_ns()
                if os.waitpid(os.posix_spawn("/bin/true", ["true"], environment), 0)[1] != 0:
                    raise Failure("/bin/true failed")
                times.append(time.perf_counter_ns() - start)
            seconds = (time.perf_counter_ns() - began) / 1e9
        finally:
            os.sched_setaffinity(0, before)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime
        times.sort()
        return {"count": count, "perSecond": count / seconds, "cpuSeconds": cpu, "cpuMicrosecondsEach": cpu / count * 1e6,
                **{name: times[min(count - 1, int(count * part))] for name, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}}


def redis_figures(output):
    """Rate and latencies (nanoseconds) from what redis-benchmark prints."""
    lines = output.replace("\r", "\n")
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", lines)
    distribution = [(float(part), float(value)) for part, value in re.findall(r"([\d.]+)% <= ([\d.]+) milliseconds \(cum", lines)]
    if not rate or not distribution:
        raise Failure(f"redis-benchmark said {lines[-1000:]}")
    return {"perSecond": float(rate.group(1)), "maximum": distribution[-1][1] * 1e6,
            **{name: next(value for part, value in distribution if part >= wanted) * 1e6
               for name, wanted in (("p50", 50), ("p99", 99), ("p999", 99.9))}}


def cpu_of(pid):
    """CPU seconds of a live process, user and system."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rsplit(b")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def client_cpu_seconds(bench, client):
    """Children's CPU time since the last call: the client just ended is the only one waited for between two."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = usage.ru_utime + usage.ru_stime
    used = total - getattr(bench, "children_before", 0.0)
    bench.children_before = total
    return used


class Measurement(typing.NamedTuple):
    name: str
    kind: str
    function: typing.Callable  # of (bench, way, place); of (bench, ways, place) when all take turns within one round
    ways: list
    places: list
    #: Is it one of those that the project is judged by?
    is_core: bool
    #: Rounds for one of the others: a ratio near 1 drowns in the machine's noise with few.
    rounds_factor: int = 1
    takes_turns: bool = False


def suite(quick):
    part = 10 if quick else 1
    slow = {"tcp": 60_000, "tcp-spin": 100_000, "unix": 80_000, "switched": 400_000, "switched-never": 80_000}

    def pingpong(size, scale=1):
        return lambda bench, way, place: bench.sockbench_run(way, place, "pingpong", size, slow[way] // scale // part)

    def oneway(size, count):
        return lambda bench, way, place: bench.sockbench_run(
            way, place, "oneway", size, (count if way.startswith("switched") else count // 8) // part)

    def redis(clients, pipeline, value_bytes, fast, normal):
        return lambda bench, way, place: bench.redis_run(
            way, place, {"switched": fast, "switched-never": 4 * normal}.get(way, normal) // (4 if quick else 1), clients, pipeline, value_bytes)
    every = WAYS
    no_spin = [way for way in WAYS if way != "tcp-spin"]
    places = list(PLACES)
    return [
        Measurement("64 B round trip", "latency", pingpong(64), every, places, True),
        Measurement("16 KiB round trip", "latency", pingpong(16384, 4), every, places, False),
        Measurement("8 B messages, one write each", "rate", oneway(8, 16_000_000), every, places, True),
        Measurement("64 KiB messages", "bytes", oneway(65536, 160_000), every, places, False),
        Measurement("connect, one request of 64 B, close", "rate",
                    lambda bench, ways, place: bench.connect_turns(ways, place, 64, 10_000 // part, 250), no_spin, places, True, 4, True),
        Measurement("redis GET, 1 client", "rate", redis(1, 1, 3, 1_000_000, 60_000), no_spin, places, True),
        # Many short runs: what is compared runs side by side.
        Measurement("redis GET, 50 clients", "rate", redis(50, 1, 3, 600_000, 70_000), no_spin, places, True, 6),
        Measurement("redis GET, 50 clients, pipeline 16", "rate", redis(50, 16, 3, 6_000_000, 2_000_000), no_spin, places, False),
        Measurement("redis GET, 50 clients, 16 KB values", "rate", redis(50, 1, 16000, 600_000, 100_000), no_spin, places, False),
        Measurement("start of /bin/true", "latency", lambda bench, way, place: bench.start_run(way, place, 1000 // part),
                    ["tcp", "switched"], ["one core"], True, 2),
    ]


def cache_line_nanoseconds(bench):
    """How far apart the two processors are. Where those of a virtual machine lie changes while it runs."""
    answer = subprocess.run([bench.sockbench, "processors"], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return json.loads(answer.stdout)["cacheLineNanoseconds"]


def machine():
    with open("/proc/cpuinfo") as file:
        models = re.findall(r"model name\s*:\s*(.*)", file.read())
    return {"cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "kernel": platform.release()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", default=os.path.join(ROOT, ".build", "release"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="part of a measurement's name; repeatable")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that it runs")
    parser.add_argument("--core", action="store_true", help="only the figures that the project is judged by (some ten minutes)")
    parser.add_argument("--results", help="directory for figures.md and figures.json")
    parser.add_argument("--readme", action="store_true", help="measure nothing: put the figures of Benchmarks/results into README.md")
    arguments = parser.parse_args()
    if arguments.readme:
        return write_readme(ROOT)
    ways = arguments.ways.split(",")
    try:
        bench = Bench(arguments)
    except Failure as failure:
        sys.exit(str(failure))
    failures = []
    results = []
    before = cache_line_nanoseconds(bench)
    chosen = [entry for entry in suite(arguments.quick) if (not arguments.core or entry.is_core)
              and (not arguments.only or any(part in entry.name for part in arguments.only))]
    for entry in chosen:
        name, kind = entry.name, entry.kind
        rounds = {place: {way: [] for way in entry.ways if way in ways} for place in entry.places}
        for number_of_round in range(arguments.rounds * entry.rounds_factor):
            for place in entry.places:
                # Every other round the other way round: what a run leaves behind (connections in TIME_WAIT, say) is met by each.
                order = list(rounds[place])
                if number_of_round % 2:
                    order.reverse()
                for ways_of_run in [order] if entry.takes_turns else [[way] for way in order]:
                    try:
                        client_cpu_seconds(bench, None)
                        done = (entry.function(bench, ways_of_run, place) if entry.takes_turns
                                else {way: entry.function(bench, way, place) for way in ways_of_run})
                    except (Failure, subprocess.SubprocessError, ValueError, IndexError, OSError) as failure:
                        failures.append(f"{name}, {place}, {', '.join(ways_of_run)}: {failure}")
                        print(f"FAILED {failures[-1]}", flush=True)
                        continue
                    for way, result in done.items():
                        rounds[place][way].append({**result, "round": number_of_round})
                        print(f"{name:38} {place:9} {way:14} round {number_of_round + 1}: {cell(kind, result)}", flush=True)
        results.append({"name": name, "kind": kind, "rounds": arguments.rounds * entry.rounds_factor, "places": {
            place: {way: median_of(done) for way, done in of_place.items() if done} for place, of_place in rounds.items()},
                        "gains": {place: gain(kind, of_place) for place, of_place in rounds.items()}})
    text = table(results)
    facts = {**machine(), "cacheLineNanosecondsBefore": before, "cacheLineNanoseconds": cache_line_nanoseconds(bench),
             "rounds": arguments.rounds, "quick": arguments.quick, "date": datetime.date.today().isoformat(), "loadAverage": os.getloadavg()}
    print()
    print(text)
    if arguments.results:
        os.makedirs(arguments.results, exist_ok=True)
        with open(os.path.join(arguments.results, "figures.json"), "w") as file:
            json.dump({"machine": facts, "results": results, "failures": failures}, file, indent=1)
            file.write("\n")
        with open(os.path.join(arguments.results, "figures.md"), "w") as file:
            file.write(f"{conditions(facts, results)}\nLatency: p50 / p99 / p99.9.\n\n{text}\n")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
