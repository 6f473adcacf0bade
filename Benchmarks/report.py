"""What the figures look like: the table of all of them, and the part of README.md that shows the main ones."""
import json
import os
import re
import statistics

WAYS = ["tcp", "tcp-spin", "unix", "switched", "switched-never"]
PLACES = {"two cores": (0, 1), "one core": (0, 0)}
#: What README.md shows, in this order: name of the measurement, what its rate counts.
SHOWN = [
    ("64 B round trip", None), ("8 B messages, one write each", "a second"), ("redis GET, 1 client", "a second"),
    ("redis GET, 50 clients", "a second"), ("connect, one request of 64 B, close", "a second"), ("start of /bin/true", None),
]
BEGIN, END = "<!-- figures: written by Benchmarks/run.py --readme -->\n", "<!-- end of the figures -->\n"


def median_of(rounds):
    keys = {key for result in rounds for key in result} - {"round", "turns"}
    return {key: statistics.median(result[key] for result in rounds if key in result) for key in sorted(keys)}


def gain(kind, rounds):
    """How many times better than TCP, as the median over the rounds (or turns within rounds) of both in one: the machine's speed
    drifts, and what ran side by side drifted alike. None when there is no such round."""
    def worths(result):
        return [1 / seconds for seconds in result.get("turns", [])] or [1 / result["p50"] if kind == "latency" else result["perSecond"]]
    of_tcp = {result["round"]: worths(result) for result in rounds.get("tcp", [])}
    pairs = [ours / tcp for result in rounds.get("switched", []) if result["round"] in of_tcp
             for ours, tcp in zip(worths(result), of_tcp[result["round"]])]
    return statistics.median(pairs) if pairs else None


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(kind, result):
    if result is None:
        return "–"
    if kind == "latency":
        return "{} / {} / {} µs".format(*(number(result[key] / 1000) for key in ("p50", "p99", "p999")))
    if kind == "bytes":
        return f"{result['bytesPerSecond'] / 1e9:.2f} GB/s"
    if result["perSecond"] >= 1e6:
        return f"{result['perSecond'] / 1e6:.2f} M/s"
    return f"{result['perSecond'] / 1e3:.1f} k/s"


def table(results):
    lines = ["| measurement | place | " + " | ".join(WAYS) + " | switched / tcp |", "|---" * (len(WAYS) + 3) + "|"]
    for entry in results:
        for place in PLACES:
            row = entry["places"].get(place)
            if row is None:
                continue
            of_tcp = entry["gains"][place]
            times = f"{of_tcp:.2f} ×" if of_tcp else "–"
            lines.append(f"| {entry['name']} | {place} | " + " | ".join(cell(entry["kind"], row.get(way)) for way in WAYS) + f" | {times} |")
            lines.append("| … CPU µs each | | " + " | ".join(
                number(row[way]["cpuMicrosecondsEach"]) if row.get(way) else "–" for way in WAYS) + " | |")
    return "\n".join(lines)


def conditions(facts, results):
    """What the figures are: how many rounds each is the median of, and where they were measured."""
    rounds = facts["rounds"]
    exceptions = [f"{entry['rounds']} for {entry['name']}" for entry in results if entry.get("rounds", rounds) != rounds]
    return (f"Medians of {rounds} interleaved rounds{' of a tenth of the work' if facts.get('quick') else ''}"
            f"{' (' + '; '.join(exceptions) + ')' if exceptions else ''}: {facts['cpu']}, {facts['cores']} cores, "
            f"Linux {facts['kernel']}, {facts['date']}; a virtual machine, so noisy." + distance(facts))


def distance(facts):
    """The floor of a round trip between the two processors, which is not the same every day."""
    ends = sorted(facts[key] for key in ("cacheLineNanosecondsBefore", "cacheLineNanoseconds") if key in facts)
    if not ends:
        return ""
    span = f"{ends[0]:.0f}" if ends[-1] < 1.1 * ends[0] else f"{ends[0]:.0f} to {ends[-1]:.0f}"
    return f" A cache line went from one processor to the other and back in {span} ns."


def prose(facts, results):
    return (f"{conditions(facts, results)}\n"
            "TCP blocking, TCP spinning, Unix sockets, switched, and switched with `--wait never`. Times are p50 / p99 / p99.9. With the\n"
            "factors: [Benchmarks/results/figures.md](Benchmarks/results/figures.md).\n")


def readme_table(results):
    by_name = {entry["name"]: entry for entry in results}
    lines = ["| | TCP | TCP spinning | Unix socket | switched | never spinning |", "|---|---|---|---|---|---|"]
    for name, counted in SHOWN:
        entry = by_name.get(name)
        for place in PLACES:
            row = entry["places"].get(place) if entry else None
            if not row:
                continue
            where = f", {place}" if len(entry["places"]) > 1 else ""
            lines.append(f"| {name}{where}{', ' + counted if counted else ''} | "
                         + " | ".join(cell(entry["kind"], row.get(way)).replace("/s", "") for way in WAYS) + " |")
            lines.append("| … CPU µs each | " + " | ".join(
                number(row[way]["cpuMicrosecondsEach"]) if row.get(way) else "–" for way in WAYS) + " |")
    return "\n".join(lines) + "\n"


def short_connections(results):
    """What watching costs a connection that carries one request and stays on TCP."""
    gains = next((entry.get("gains", {}) for entry in results if entry["name"].startswith("connect")), {})
    parts = [f"{times:.2f} on {place}" for place, times in gains.items() if times]
    return f"Connections that carry one request stay on TCP; their rate, as a part of TCP's (the median of pairs of turns): {', '.join(parts)}.\n" if parts else ""


def write_readme(root):
    """Puts the figures of Benchmarks/results into README.md, between two marks."""
    with open(os.path.join(root, "Benchmarks", "results", "figures.json"), encoding="utf-8") as file:
        figures = json.load(file)
    path = os.path.join(root, "README.md")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    part = f"{prose(figures['machine'], figures['results'])}\n{readme_table(figures['results'])}\n{short_connections(figures['results'])}"
    new, count = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: BEGIN + part + END, text, flags=re.S)
    if count != 1:
        raise SystemExit(f"README.md has the marks {count} times")
    with open(path, "w", encoding="utf-8") as file:
        file.write(new)
