#!/usr/bin/env python3
"""Compares the documentation with the code.

- Documentation/Rules.md has every rule of Windows Sockets Direct once, and no other.
- Every rule that anything cites is one of them.
- A rule that is done, partly done or met otherwise is cited in Sources, and names a file there that exists; files
  named as tests exist.
- A rule that is not yet there names no file.
- The reasons in Operating.md and in spi.h are those of Reason.swift; the library's variables are in Operating.md.
- The tests that Testing.md names for other systems' shortcomings exist.
- Links between the documents lead to files, and to headings that exist.

Prints what is wrong and ends with status 1, or prints one line.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RULES = {"I": 7, "C": 14, "N": 5, "L": 6, "M": 4, "T": 8, "S": 5, "D": 4, "X": 3}
STATES = ("done", "partly", "otherwise", "not yet")
SUFFIXES = {".swift", ".h", ".c", ".py", ".sh", ".md"}
problems = []


def complain(place, text):
    problems.append(f"{place}: {text}")


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def files_under(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            # Sources/Interposer/Core links to folders that are read anyway.
            if path.suffix in SUFFIXES and path.is_file() and "Core" not in path.relative_to(ROOT).parts[:-1]:
                yield path


def citations(text):
    """The rules that a text cites, with the forms WSD-C7, WSD-I3, I4 and WSD-C4 … C11."""
    found = set()
    for match in re.finditer(r"WSD-([A-Z]\d+(?:(?:,| …|…| and| to)\s*[A-Z]\d+)*)", text):
        parts = re.findall(r"(,|…|and|to)?\s*([A-Z])(\d+)", match.group(1))
        previous = None
        for joint, letter, number in parts:
            first = int(number)
            if joint in ("…", "to") and previous and previous[0] == letter:
                first = previous[1]
            found.update(f"{letter}{n}" for n in range(first, int(number) + 1))
            previous = (letter, int(number))
    return found


def check_tests():
    """Tests that Testing.md names by module, class and function, or by file and function, exist."""
    named = re.findall(r"`(?:([a-z]+)\.)?([A-Z]\w+)(?:\.(\w+))?`", text_of("Documentation/Testing.md").split("## What others lack")[1].split("\n## ")[0])
    swift = {}
    for path in files_under("Tests"):
        if path.suffix == ".swift":
            swift[path.stem] = swift.get(path.stem, "") + path.read_text(encoding="utf-8")
    for module, group, function in named:
        if module:
            path = ROOT / "Tests/EndToEnd" / f"test_{module}.py"
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            found = f"class {group}(" in text and (not function or f"def {function}(" in text)
        elif group.endswith("Tests"):
            found = group in swift and (not function or f"func {function}(" in swift[group])
        else:
            continue
        if not found:
            complain("Documentation/Testing.md", f"there is no test {module or 'file'}.{group}.{function or ''}")
    if len(named) < 30:
        complain("Documentation/Testing.md", "the tables of complaints are gone")


def check_rules():
    known = [f"{letter}{n}" for letter, count in RULES.items() for n in range(1, count + 1)]
    rows = {}
    for line in text_of("Documentation/Rules.md").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not cells[0].startswith("WSD-"):
            continue
        rule = cells[0][4:]
        if len(cells) != 5:
            complain("Rules.md", f"{rule}: {len(cells)} columns instead of 5")
            continue
        if rule in rows:
            complain("Rules.md", f"{rule} is there twice")
        rows[rule] = cells
    for rule in known:
        if rule not in rows:
            complain("Rules.md", f"{rule} is missing")
    for rule in rows:
        if rule not in known:
            complain("Rules.md", f"{rule} is no rule")

    in_sources = set()
    for path in files_under("Sources", "Tests", "Benchmarks", "Documentation"):
        cited = citations(path.read_text(encoding="utf-8", errors="replace"))
        for rule in sorted(cited - set(known)):
            complain(path.relative_to(ROOT), f"cites WSD-{rule}, which is no rule")
        if path.is_relative_to(ROOT / "Sources"):
            in_sources |= cited

    counts = dict.fromkeys(STATES, 0)
    for rule, (_, _, where, tests, state) in rows.items():
        kind = next((s for s in STATES if state == s or state.startswith(s + ":")), None)
        if kind is None:
            complain("Rules.md", f"{rule}: state `{state}` is none of {', '.join(STATES)}")
            continue
        counts[kind] += 1
        if kind in ("partly", "otherwise") and ":" not in state:
            complain("Rules.md", f"{rule}: say what is missing or other")
        sources = re.findall(r"`([^`]+)`", where)
        if kind == "not yet":
            if sources:
                complain("Rules.md", f"{rule} is not yet there, but names files")
        else:
            if not sources:
                complain("Rules.md", f"{rule}: no file is named")
            if rule not in in_sources:
                complain("Rules.md", f"{rule} is said to be {kind}, but nothing in Sources cites it")
        for folder, names in (("Sources", sources), ("Tests", re.findall(r"`([^`]+)`", tests))):
            for name in names:
                if not (ROOT / folder / name).is_file():
                    complain("Rules.md", f"{rule}: there is no {folder}/{name}")
    return counts


def check_reasons():
    source = text_of("Sources/SocketTable/Reason.swift")
    reasons = {name: int(number) for name, number in re.findall(r"^\s*case (\w+) = (\d+)", source, re.M)}
    if len(set(reasons.values())) != len(reasons):
        complain("Reason.swift", "a number is used twice")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text_of("Documentation/Operating.md"), re.M)
    documented = {name: int(number) for number, name in rows}
    for name in sorted(reasons.keys() | documented.keys()):
        if reasons.get(name) != documented.get(name):
            complain("Operating.md", f"reason {name}: {documented.get(name)} here, {reasons.get(name)} in Reason.swift")
    header = text_of("Sources/CSocketSwitch/include/sockswitch/spi.h")
    constants = {name.replace("_", "").lower(): int(number)
                 for name, number in re.findall(r"SOCKSWITCH_REASON_(\w+) = (\d+)", header)}
    for name, number in reasons.items():
        if constants and constants.get(name.lower()) != number:
            complain("spi.h", f"reason {name}: {constants.get(name.lower())} here, {number} in Reason.swift")


def check_variables():
    operating = text_of("Documentation/Operating.md")
    for name in set(re.findall(r'"(SOCKSWITCH_[A-Z]+)"', text_of("Sources/Rendezvous/Messages.swift"))):
        if name not in operating:
            complain("Operating.md", f"the variable {name} is missing")


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def check_links():
    documents = [ROOT / "README.md", *sorted((ROOT / "Documentation").glob("*.md"))]
    for path in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, fragment = target.partition("#")
            file = path.parent / name if name else path
            if not file.exists():
                complain(path.name, f"link to {target} leads nowhere")
            elif fragment:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
                if fragment not in map(anchor, headings):
                    complain(path.name, f"link to {target}: no such heading")
        for name in re.findall(r"`((?:Sources|Tests|Scripts|Packaging)/[\w/+.\-]+)`", path.read_text(encoding="utf-8")):
            if not (ROOT / name).exists():
                complain(path.name, f"there is no {name}")


def main():
    counts = check_rules()
    check_reasons()
    check_variables()
    check_links()
    check_tests()
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    print(f"rules: {sum(counts.values())}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
