"""epoll, poll and select on connections that have moved, beside connections that a policy keeps on TCP: the same answers."""
import os
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
