"""epoll, poll and select on connections that have moved, beside connections that a policy keeps on TCP: the same answers."""
import os
import re
import subprocess

from harness import Case, PROGRAMS, find_program, free_port, note, settings


class Readiness(Case):
    limit = 60

    def time_limit(self):
        return self.limit + settings.stream_seconds * 3

    def compiled(self, name):
        program = os.path.join(self.directory, name)
        subprocess.run(
            [find_program("gcc"), "-O1", "-w", "-pthread", "-o", program, os.path.join(PROGRAMS, f"{name}.c")], check=True)
        return program

    def test_random_operations(self):
        kept, moved = free_port(), free_port()
        self.run_options = ["--upgrade", "eager", "--tcp", f"port={kept}"]
        arguments = [self.compiled("readiness"), settings.seed, settings.stream_seconds, kept, moved]
        if settings.plain:
            arguments.append("plain")
        program = self.run_program(list(map(str, arguments)), seconds=settings.stream_seconds * 2 + 40)
        summary = program.output.strip().splitlines()[-1]
        if not settings.plain:
            self.assertNotIn(" 0 connections moved", summary)
        note(summary)

    def test_scripts(self):
        kept, moved = free_port(), free_port()
        self.run_options = ["--upgrade", "eager", "--tcp", f"port={kept}"]
        program = self.run_program(
            [self.compiled("readiness_scripts"), str(kept), str(moved), *(["plain"] if settings.plain else [])])
        self.assertIn(" 0 differ", program.output)
        if not settings.plain:
            self.assertNotIn(" 0 connections moved", program.output)
        note(program.output.strip().splitlines()[-1])

    def test_what_is_sent_first_is_told_first(self):
        kept, moved = free_port(), free_port()
        self.run_options = ["--upgrade", "eager", "--tcp", f"port={kept}"]
        rounds = 5000 if settings.long else 500
        arguments = [self.compiled("sending_order"), settings.seed, rounds, kept, moved]
        program = self.run_program([*map(str, arguments), *(["plain"] if settings.plain else [])])
        self.assertIn(" 0 differ", program.output)
        if not settings.plain:
            self.assertIn(" 12 connections moved", program.output)
        note(program.output.strip().splitlines()[-1])

    def test_what_is_told_is_there(self):
        """Short-lived connections that move in the middle: no event twice, and none of what is closed."""
        program = self.run_program([self.compiled("short_lived"), "6", *(["plain"] if settings.plain else [])])
        self.assertIn(", 0 reads of nothing", program.output)
        note(program.output.strip().splitlines()[-1])

    def test_idle_connections_cost_nothing(self):
        """Who waits for connections that say nothing sleeps; a wake-up a second would be a lot, a busy loop is thousands."""
        self.run_options = ["--upgrade", "eager"]
        connections = 1000 if settings.long else 300
        program = self.run_program(
            [self.compiled("idle"), str(free_port()), str(connections), *(["plain"] if settings.plain else [])])
        found = dict(re.findall(r"(\w+): woken (\d+) events 1$", program.output, re.M))
        self.assertEqual(set(found), {"level", "edge", "poll", "select"}, program.output)
        for way, woken in found.items():
            self.assertLessEqual(int(woken), 20, f"{way}: {program.output}")
        if not settings.plain:
            self.assertIn(f"{connections} connections moved", program.output)
        note(f"{connections} connections, woken {found}")
