"""Connections across exec, fork, spawn, descriptor passing, confinement and limits: each before it moved and after, with bytes
unread in the ring, and with data flowing both ways. Every byte is checked by `stage.py`, whichever process holds the end."""
import os
import resource
import shutil
import signal
import subprocess
import sys

from harness import Case, Program, find_program, free_port, note, settings, tool

EAGER = {"SOCKSWITCH_UPGRADE": "eager"}


class Stage:
    """A running stage.py: tells it one command, waits for the answer."""

    def __init__(self, program):
        self.program = program
        self.seen = 0

    def answer(self, text, seconds=40):
        """Waits for a line that begins with `text`, after those seen before; the line."""
        def found():
            lines = self.program.output.split("\n")[:-1]
            for number in range(self.seen, len(lines)):
                if lines[number].startswith(text):
                    self.seen = number + 1
                    return lines[number]
            if not self.program.running():
                self.program.case.fail(f"ended without saying {text!r}\n{self.program.describe()}")
            return None
        return self.program.case.wait_until(found, f"{self.program.name} says {text!r}", seconds, self.program.describe)

    def has_said(self, text):
        return any(line.startswith(text) for line in self.program.output.split("\n")[self.seen:-1])

    def tell(self, command):
        self.program.tell(command)

    def do(self, command, seconds=40):
        self.tell(command)
        return self.answer("done " + command.split()[0], seconds)


class ProcessCase(Case):
    limit = 120

    def tearDown(self):
        # It would end by itself, two seconds after its last client: too long for so many short tests.
        self.stop_programs()
        self.end_service()
        super().tearDown()

    def end_service(self):
        pid = self.service_pid()
        if pid:
            os.kill(pid, signal.SIGTERM)
            self.wait_until(lambda: not os.path.exists(self.service), "the service ends", 20)

    def stage(self, *arguments, switched=True, environment=None, name=None):
        return Stage(self.start_python(
            "stage.py", *arguments, switched=switched, environment=EAGER if environment is None else environment,
            name=name or f"stage-{arguments[0]}"))

    def listen(self, **options):
        server = self.stage("listen", **options)
        self.port = int(server.answer("port").split()[1])
        return server

    def connect(self, server, accept="accept", **options):
        client = self.stage("connect", self.port, **options)
        client.answer("connected")
        server.do(accept)
        return client

    def pair(self, **options):
        server = self.listen(**options)
        return server, self.connect(server, **options)

    def talk(self, asking, answering, rounds=4, size=100):
        answering.tell(f"answer {rounds} {size}")
        asking.do(f"ask {rounds} {size}")
        answering.answer("done answer")

    def entries(self):
        return self.connections(self.port)

    def carriers(self):
        return {entry[key] for entry in self.entries() for key in ("sendCarrier", "receiveCarrier")}

    def move(self, server, client):
        """Both directions go to the companion."""
        if settings.plain:
            return

        def moved():
            self.talk(client, server)
            found = self.entries()
            return len(found) == 2 and self.carriers() == {"companion"}
        self.wait_until(moved, "the connection moves", 40, lambda: str(self.entries()))

    def reason_of(self, stage, reason):
        """The connection that the stage's process holds is on TCP for `reason`."""
        if settings.plain:
            return

        def right():
            return any(stage.program.pid in entry["pids"] and entry["reason"] == reason
                       and entry["sendCarrier"] == entry["receiveCarrier"] == "tcp" for entry in self.entries())
        self.wait_until(right, f"reason {reason}", 20, lambda: str(self.entries()))

    def both_ways(self, one, other, count=300_000):
        one.tell(f"both {count}")
        other.do(f"both {count}")
        one.answer("done both")

    #: What lies in the carriers when the change comes.
    phases = ("plain", "moved", "unread", "flowing")

    def with_phases(self, act, then="server", phases=phases, **options):
        """`act(server, client)` while the connection is in each of the phases; then both talk on."""
        for phase in phases:
            with self.subTest(phase=phase):
                server, client = self.pair(environment=({} if phase == "plain" else EAGER), **options)
                if phase == "plain":
                    self.talk(client, server, 1)
                else:
                    self.move(server, client)
                if phase == "unread":
                    # The peer sleeps in its next read of its standard input, that is, outside every socket call.
                    client.do("send 20000")
                if phase == "flowing":
                    client.tell("both 3000000")
                    self.during(server)
                heir = act(server, client) or server
                if phase == "unread":
                    self.wake(client, heir)
                if phase == "flowing":
                    heir.do("both 2900000")
                    client.answer("done both")
                self.talk(client, heir)
                self.both_ways(client, heir)
                self.finish(client, heir)

    def during(self, server):
        """Some of the flowing data."""
        server.do("both 100000")

    @staticmethod
    def wake(client, heir):
        heir.tell("receive 20000")
        # Its session speaks in its next socket call, whatever that is.
        client.do("send 10")
        heir.answer("done receive")
        heir.do("receive 10")

    @staticmethod
    def finish(client, heir):
        client.do("close")
        heir.do("end")


class Exec(ProcessCase):
    def test_keeps_the_connection_switched(self):
        self.with_phases(lambda server, client: server.do("exec switched") and None)

    def test_keeps_the_connection_unswitched(self):
        self.with_phases(lambda server, client: server.do("exec plain") and None)

    def test_keeps_what_the_send_buffer_was_set_to(self):
        """Who chose it is held up by a reader that does not read, in the next image, too."""
        server, client = self.pair()
        client.do("choose_buffer 8192")
        client.do("exec switched")
        self.move(server, client)
        client.tell("fill")
        count = int(client.answer("filled").split()[1])
        client.answer("done fill")
        self.assertLess(count, 300_000)
        server.do(f"receive {count}")
        self.talk(client, server)
        self.finish(client, server)

    def test_of_the_connecting_end(self):
        def act(server, client):
            client.do("exec plain")
        self.with_phases(act, phases=("plain", "moved"))

    def test_standard_input_of_the_next_image(self):
        self.with_phases(lambda server, client: server.do("exec plain 30") and None, phases=("moved",))

    def test_that_fails(self):
        self.with_phases(lambda server, client: server.do("exec_fails") and None)

    def test_in_a_forked_child(self):
        self.with_phases(lambda server, client: server.tell("fork_exec plain") or server.answer("done exec") and None)
        self.with_phases(lambda server, client: server.tell("fork_exec switched") or server.answer("done exec") and None,
                         phases=("moved",))

    def test_with_the_connection_in_an_epoll_set(self):
        def act(server, client):
            server.do("watch")
            server.do("exec_fails")
            client.do("send 1")
            server.do("wait_readable epoll")
            server.do("receive 1")
        self.with_phases(act, phases=("plain", "moved"))

    def test_the_next_image_knows_its_sockets(self):
        """`ps` shows them; the variable that told of them is gone."""
        for phase in ("plain", "moved"):
            with self.subTest(phase=phase):
                server, client = self.pair(environment=({} if phase == "plain" else EAGER))
                if phase == "plain":
                    self.talk(client, server, 1)
                else:
                    self.move(server, client)
                for _ in range(2):
                    server.do("exec switched")
                self.reason_of(server, "notWorthItYet")
                server.tell("variables")
                self.assertNotIn("INHERITED", server.answer("variables"))
                server.answer("done variables")
                self.talk(client, server)
                self.finish(client, server)

    def move_again(self, server, client):
        """After an exec: both ends' rows show new bytes on the companion."""
        if settings.plain:
            return

        def carried():
            return [entry["bytes"]["companionSent"] + entry["bytes"]["companionReceived"] for entry in self.entries()]
        self.move(server, client)
        before = carried()
        self.talk(client, server, 4, 1000)
        after = carried()
        self.assertEqual(len(after), 2)
        for was, now in zip(before, after):
            self.assertGreaterEqual(now - was, 8000)

    def test_moves_again(self):
        """The next image is switched, too: the connection leaves TCP again, whichever end it was."""
        for end in ("client", "server"):
            with self.subTest(end=end):
                server, client = self.pair(environment={})
                for _ in range(3):
                    self.move_again(server, client)
                    (client if end == "client" else server).do("exec switched")
                self.move_again(server, client)
                self.both_ways(client, server)
                self.finish(client, server)

    def stays(self, server, client, reason="handedOver"):
        """After an exec: the connection works, on TCP."""
        for _ in range(3):
            self.talk(client, server)
        self.reason_of(server, reason)
        self.both_ways(client, server)
        self.finish(client, server)

    def pair_after(self, exec):
        server, client = self.pair()
        self.move(server, client)
        server.tell(exec)
        server.answer("done exec")
        return server, client

    def test_moves_again_after_every_exec_of_the_family(self):
        for how in ("execl", "execle", "execlp", "execvp", "execvpe", "execveat", "fexecve", "script"):
            with self.subTest(how=how):
                server, client = self.pair_after(f"exec_by {how}")
                self.move_again(server, client)
                self.finish(client, server)

    def test_stays_where_others_may_use_it(self):
        for how in ("epoll", "duplicate", "child"):
            with self.subTest(how=how):
                server, client = self.pair_after(f"exec_by {how}")
                self.stays(server, client)

    def test_stays_after_an_image_in_between(self):
        """Switched, not switched, switched, in one process: the first one's word is not the last one's."""
        between = os.path.join(self.directory, "between")
        subprocess.run(["cc", "-static", "-O1", "-o", between, os.path.join(os.path.dirname(__file__), "programs", "between.c")], check=True)
        for how in ("unset", "static " + between, "away"):
            with self.subTest(how=how.split()[0]):
                environment = dict(EAGER)
                if how == "away":
                    # A copy that can be taken away.
                    environment["LD_PRELOAD"] = shutil.copy(os.path.join(settings.build_dir, "libsockswitch.so"), self.directory)
                server = self.listen(environment=environment, switched=how != "away")
                client = self.connect(server, environment=EAGER)
                self.move(server, client)
                server.tell(f"exec_through {how}")
                if not how.startswith("static"):
                    server.answer("not switched")
                    server.answer("variable True" if how == "away" or not settings.plain else "variable")
                if how == "away":
                    client.do("receive 500")
                    client.do("send 500")
                server.answer("done exec")
                self.stays(server, client)

    def test_stays_without_a_service(self):
        server, client = self.pair()
        self.move(server, client)
        self.end_service()
        server.tell("exec switched")
        server.answer("done exec")
        for _ in range(3):
            self.talk(client, server)
        self.both_ways(client, server)
        self.finish(client, server)

    def test_both_ends_at_once(self):
        for _ in range(3):
            server, client = self.pair()
            self.move(server, client)
            for rounds in range(4):
                for end in (server, client):
                    end.tell("exec switched")
                for end in (server, client):
                    end.answer("done exec")
                self.talk(client, server, rounds)
            self.move_again(server, client)
            self.finish(client, server)

    def test_many_times(self):
        """With bytes unread, and bytes on their way, and nothing left behind at the other end or in the service."""
        server, client = self.pair()
        self.move(server, client)
        pids = [client.program.pid] + ([] if settings.plain else [self.service_pid()])
        before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        for number in range(600 if settings.long else 40):
            end, other = (server, client) if number % 3 else (client, server)
            other.do(f"send {number * 37 % 5000 + 1}")
            end.do("exec switched")
            other.do("look")  # its session speaks in its next socket call
            end.do(f"receive {number * 37 % 5000 + 1}")
            if number % 5 == 0:
                self.move_again(server, client)
            else:
                self.talk(client, server, 1 + number % 4)
        self.move_again(server, client)
        after = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        for was, now in zip(before, after):
            self.assertLessEqual(now, was + 2)
        self.finish(client, server)

    def test_under_load(self):
        """One end execs again and again while the other one streams both ways, in two threads."""
        for end in ("server", "client"):
            with self.subTest(end=end):
                server, client = self.pair()
                self.move(server, client)
                leaver, other = (server, client) if end == "server" else (client, server)
                rounds, piece = (60 if settings.long else 15), 400_000
                other.tell(f"both {rounds * piece}")
                for _ in range(rounds):
                    leaver.do(f"both {piece}")
                    leaver.do("exec switched")
                other.answer("done both")
                self.move_again(server, client)
                self.finish(client, server)

    def test_while_the_other_end_waits(self):
        """Asleep in each of the calls that wait."""
        for how in ("poll", "select", "epoll", "receive"):
            with self.subTest(how=how):
                server, client = self.pair()
                self.move(server, client)
                for _ in range(6):
                    client.tell("receive 1" if how == "receive" else f"wait_readable {how}")
                    server.do("exec switched")
                    server.do("send 1")
                    client.answer("done receive" if how == "receive" else "done wait_readable")
                    if how != "receive":
                        client.do("receive 1")
                    self.talk(client, server, 2)
                self.move_again(server, client)
                self.finish(client, server)

    def test_what_an_image_leaves_is_not_believed(self):
        for text in (",,,", "z", "1" * 5000, "7fffffff,0,1", "ffffffffffffffff,ffffffffffffffff"):
            with self.subTest(text=text[:20]):
                server, client = self.pair(environment={**EAGER, "SOCKSWITCH_INHERITED": text})
                self.move(server, client)
                self.finish(client, server)

    def test_the_next_image_listens(self):
        server = self.listen()
        server.do("exec_listener")
        client = self.connect(server)
        self.move(server, client)
        self.finish(client, server)

    def test_close_on_exec_is_no_hold(self):
        """A child that has become something else holds nothing: the connection is alone, and moves."""
        server, client = self.pair(environment=EAGER)
        server.do("raw_fork_exec")
        self.move(server, client)
        self.finish(client, server)

    def test_bash_and_its_children(self):
        """A shell's own redirections, built-in commands (stdio) and forked children on one connection."""
        server = self.listen()
        script = (f"exec 3<>/dev/tcp/127.0.0.1/{self.port}; for i in 1 2 3 4 5 6; do head -c 100 <&3 >&3; done; "
                  "echo said $(head -c 100 <&3 | wc -c) >&3; read -r -N 1 x <&3; cat <&3 | wc -c; echo over")
        shell = self.start(["bash", "-c", script], environment={**EAGER, "LC_ALL": "C"})
        server.do("accept")
        # What goes back is what came: the pattern of the other direction is not checked here.
        connection = Echo(server)
        for _ in range(6):
            connection.round(100)
        connection.server.do("send 100")
        connection.line(b"said 100\n")
        server.do("send 1")
        server.do("send 70000")
        server.do("close")
        output = shell.wait_for_output("over")
        self.assertIn("70000", output)
        shell.wait()


class Echo:
    """What bash sends back is checked by stage.py's raw commands."""

    def __init__(self, server):
        self.server = server

    def round(self, count):
        self.server.do(f"send {count}")
        self.server.do(f"expect_own {count}")

    def line(self, text):
        self.server.do(f"expect_text {text.hex()}")


class Passing(ProcessCase):
    def give(self, switched, keep="no"):
        def act(server, client):
            path = os.path.join(self.directory, f"door-{len(self.programs)}")
            receiver = self.stage("receive", path, switched=switched)
            receiver.answer("done waiting")
            server.do(f"give {path} {keep}")
            receiver.answer("done taken")
            if switched:
                self.reason_of(receiver, "handedOver")
            return receiver
        return act

    def test_to_a_switched_process(self):
        self.with_phases(self.give(True))

    def test_to_an_unswitched_process(self):
        self.with_phases(self.give(False))

    def test_and_kept(self):
        self.with_phases(self.give(False, "keep"), phases=("moved", "unread"))

    def test_of_a_listener(self):
        server = self.listen()
        path = os.path.join(self.directory, "door")
        receiver = self.stage("receive", path)
        receiver.answer("done waiting")
        server.do(f"give_listener {path}")
        receiver.answer("done taken")
        client = self.connect(receiver)
        self.move(receiver, client)
        self.finish(client, receiver)

    def test_of_an_epoll_set(self):
        """Who gets it is told of its connections in the program's own words, now and later."""
        for options in ([], ["--upgrade", "eager"]):
            self.run_options = options
            self.start_python("passed_set.py").wait(60)

    def test_of_an_epoll_set_by_fork(self):
        """Parent and child use one set: what one of them changes, the other finds."""
        for options in ([], ["--upgrade", "eager"], ["--wait", "never"]):
            self.run_options = options
            self.start_python("forked_set.py").wait(60)

    def test_taken_with_pidfd_getfd(self):
        self.with_phases(lambda server, client: server.do("take_own") and None, phases=("plain", "moved", "unread"))


class Left(ProcessCase):
    """What a peer has left in the ring when it closed, or half-closed, or became another program, is nobody's to send over TCP any
    more; who gets the descriptor reads it, and is heard."""

    def said(self, switched, *arguments):
        """What left.py printed: {what: value}."""
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "left.py")
        output = self.run_program([sys.executable, script, *arguments], switched).output
        return dict(line.rsplit(" ", 1) if line.startswith("over") else line.split(" ", 1) for line in output.splitlines())

    def check(self, how, *ends, count=30000):
        for end in ends or ("exit", "close", "killed"):
            for switched in (False, True):
                lines = self.said(switched, how, end, str(count))
                self.assertEqual(lines["read"], lines["expected"], f"{how}, {end}, switched: {switched}")
                if end in ("half", "image", "listens"):
                    self.assertEqual(lines["answer"], "reply", f"{how}, {end}, switched: {switched}")
                if switched and not settings.plain:
                    most = 2000 if end in ("image", "listens") else 10 if count <= 30000 else count
                    self.assertLess(int(lines["over TCP"]), most, "the last bytes went over the companion")

    def test_to_the_next_image(self):
        self.check("exec")
        self.check("exec-plain")

    def test_to_a_forked_child(self):
        self.check("fork", "exit", "close")

    def test_to_a_command(self):
        self.check("run")
        self.check("run-plain", "exit")

    def test_to_a_spawned_program(self):
        self.check("spawn")

    def test_to_another_process(self):
        self.check("pass")
        self.check("pass-plain", "exit")

    def test_more_than_the_ring_holds(self):
        self.check("exec-plain", "exit", count=200000)
        self.check("pass", "exit", count=200000)
        self.check("exec-plain", "exit", count=900000)

    def test_after_helpers_have_inherited_it(self):
        """A command that a program runs meanwhile takes nothing away from it, though it has the descriptor, too."""
        self.check("helpers", "exit", "half", "image")

    def test_with_all_descriptors_in_use(self):
        self.check("full", "exit", "half", "image")

    def test_without_a_descriptor_to_be_had(self):
        """Nothing can bring the bytes: an error then, no clean end before them."""
        for end in ("exit", "half"):
            for switched in (False, True):
                lines = self.said(switched, "none", end)
                self.assertIn(lines["read"], [lines["expected"], *["reset"] * (switched and not settings.plain)])

    def test_by_a_filter(self):
        """The command ends, and the connection does not."""
        self.check("filter", "half", "image")

    def test_by_a_command_that_answers_first(self):
        """It shuts down its sending half, and reads on."""
        self.check("run-first", "half", "listens")

    def test_of_a_connection_that_its_owner_ends(self):
        for switched in (False, True):
            lines = self.said(switched, "run-shut", "half")
            self.assertEqual(lines["read"], lines["expected"])
            self.assertLess(int(lines["relay"]), 20, "hundredths of a second, while it only waits")

    def test_the_relay_is_told_to_stop(self):
        """By whoever stops all of a unit or container: not before its user does."""
        self.check("run-stopped", "half")
        if not settings.plain:
            self.assertNotEqual(self.said(True, "run-stopped", "half")["stopped"], "0", "there was a relay")

    def test_after_both_ends(self):
        for end in ("exit", "close", "half"):
            for switched in (False, True):
                lines = self.said(switched, "shut", end)
                self.assertEqual(lines["read"], lines["expected"], f"{end}, switched: {switched}")

    def test_by_splice(self):
        self.check("splice", "exit", "half", "image")

    def test_by_one_who_still_reads(self):
        for how in ("exec", "exec-plain", "fork", "run-plain", "pass"):
            self.check(how, "half", "image", count=30000)
        self.check("exec-plain", "half", "image", count=900000)


class Children(ProcessCase):
    def check_child(self, how):
        for phase in ("plain", "moved", "unread"):
            with self.subTest(phase=phase):
                server, client = self.pair(environment=({} if phase == "plain" else EAGER))
                if phase == "plain":
                    self.talk(client, server, 1)
                else:
                    self.move(server, client)
                if phase == "unread":
                    client.do("send 16")
                server.tell(f"spawn {how}")
                if phase != "unread":
                    client.do("send 16")
                # What was under way when the child got the connection comes with one of the sender's next calls.
                self.wait_until(lambda: client.do("look") and server.has_said("done spawn"), "the child ends", 40,
                                server.program.describe)
                server.answer("done spawn")
                client.do("send 1")
                server.tell("same_as_child")
                wanted = server.answer("hex").split()[1]
                server.answer("done same_as_child")
                self.assertIn(wanted, server.program.output.replace("hex " + wanted, ""), "what the child read")
                server.do("receive 1")
                self.talk(client, server)
                self.finish(client, server)

    def test_vfork(self):
        self.check_child("popen")

    def test_posix_spawn(self):
        self.check_child("posix_spawn")
        self.check_child("posix_spawnp")

    def test_system(self):
        self.check_child("system")

    def test_popen(self):
        self.check_child("libc_popen")

    def test_wordexp(self):
        self.check_child("wordexp")

    def test_forked_child_goes_on(self):
        self.with_phases(lambda server, client: server.do("fork") and None)

    def test_cloned_child_goes_on(self):
        """By the ways past fork: what the family knows is the same."""
        for how in ("_Fork", "syscall", "clone"):
            self.with_phases(lambda server, client: server.do(f"fork {how}") and None, phases=("moved",))

    def test_child_in_a_pid_namespace(self):
        """It sees none of its family's process ids, and must not take those processes for dead."""
        server, client = self.pair()
        self.move(server, client)
        server.do("confine")
        self.talk(client, server)
        if not settings.plain:
            self.assertEqual(self.carriers(), {"companion"})
            self.assertEqual(len(self.entries()), 2)
        self.both_ways(client, server)
        self.finish(client, server)

    def test_forked_child_and_parent_take_turns(self):
        server, client = self.pair()
        self.move(server, client)
        server.do("split")
        for _ in range(5):
            client.do("send 3000")
            server.do("receive_by_child 1000")
            server.do("receive 2000")
            server.do("send_by_child 500")
            server.do("send 500")
            client.do("receive 1000")
        if not settings.plain:
            self.assertEqual(self.carriers(), {"companion"})
        server.do("join")
        self.finish(client, server)

    def test_stdio_on_the_connection(self):
        """dup2 onto the standard streams, which libc reads and writes by itself."""
        for phase in ("plain", "moved"):
            with self.subTest(phase=phase):
                server, client = self.pair(environment=({} if phase == "plain" else EAGER))
                if phase == "moved":
                    self.move(server, client)
                client.do("send 100")
                server.tell("standard_streams")
                client.do("receive 100")
                server.answer("done standard_streams")
                self.talk(client, server)
                self.finish(client, server)


class Servers(ProcessCase):
    def test_inherited_listener(self):
        """systemd's socket activation: the listener comes over exec from a program that is not switched."""
        port = free_port()
        activator = self.start(
            ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-E", "LD_PRELOAD", "-E", "SOCKSWITCH_SERVICE",
             "-E", "SOCKSWITCH_UPGRADE", os.path.realpath(sys.executable), os.path.join(os.path.dirname(__file__), "programs", "stage.py"),
             "listen", "3"], switched=False, environment=self.library_environment())
        self.wait_listening(port, activator)
        self.port = port
        server = Stage(activator)
        client = self.stage("connect", port)
        server.answer("port")
        client.answer("connected")
        server.do("accept_by_epoll")
        self.move(server, client)
        self.finish(client, server)

    def library_environment(self):
        """What `sockswitch run` sets, for a program that another one starts."""
        if settings.plain:
            return {}
        shown = self.run_program(["env"], environment=EAGER).output
        wanted = ("LD_PRELOAD=", "SOCKSWITCH_")
        return dict(line.split("=", 1) for line in shown.splitlines() if line.startswith(wanted))

    def test_inetd(self):
        """A super-server accepts, forks, makes the connection the standard streams, and execs."""
        port = free_port()
        server = self.start_python("inetd.py", port, "cat")
        self.wait_listening(port, server)
        client = self.stage("connect", port, name="client")
        client.answer("connected")
        for _ in range(3):
            client.do("echoed 100000")
        client.do("shutdown")
        client.do("end")

    def test_preforked_workers(self):
        """Workers accept from one inherited listener. All come to companions; a reload leaves the old workers what they
        serve, and the death of one is the end of its own connection only."""
        self.port = free_port()
        server = self.start_python("prefork.py", self.port, 3, environment=EAGER)
        self.wait_listening(self.port, server)

        def said(word, count):
            """What has been said of the workers, once there are `count` of it."""
            def found():
                pids = [int(line.split()[1]) for line in server.output.split("\n")[:-1] if line.startswith(word)]
                return pids if len(pids) >= count else None
            return self.wait_until(found, f"{word} {count}", describe=server.describe)
        serving = {}

        def add_client():
            client = self.stage("connect", self.port)
            client.answer("connected")
            serving[said("serving", len(serving) + 1)[-1]] = client
        old = said("worker", 3)
        for _ in old:
            add_client()
        self.serve(serving)
        self.assertEqual(set(serving), set(old), "a worker serves one at a time")

        os.kill(server.pid, signal.SIGHUP)
        new = said("worker", 6)[3:]
        for _ in new:
            add_client()
        self.serve(serving)
        self.assertEqual(set(serving), set(old + new))

        os.kill(new[0], signal.SIGKILL)
        serving.pop(new[0]).do("end")
        heir = said("worker", 7)[6]
        client = self.stage("connect", self.port)
        client.answer("connected")
        self.assertEqual(said("serving", 7)[6], heir)
        self.serve({**serving, heir: client})
        for pid in old:
            serving[pid].do("shutdown")
            serving[pid].do("end")
        self.wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in old), "the old workers end")
        self.assertTrue(server.running(), server.describe())

    def serve(self, clients):
        """Each client is answered right by its worker, and comes to its companion."""
        def moved():
            for client in clients.values():
                client.do("echoed 20000")
            if settings.plain:
                return True
            on_companions = {pid for entry in self.entries() if entry["kind"] == "accepted" and
                             entry["sendCarrier"] == entry["receiveCarrier"] == "companion" for pid in entry["pids"]}
            return set(clients) <= on_companions
        self.wait_until(moved, "every worker on companions", 40, lambda: str(self.entries()))

    def test_daemon(self):
        server, client = self.pair()
        self.move(server, client)
        path = os.path.join(self.directory, "daemon")
        os.mkfifo(path + ".in")
        server.tell(f"daemon {path}")
        server.program.wait()
        with open(path + ".in", "w") as commands:
            heir = Daemon(self, path, commands)
            heir.answer("done daemon")
            self.talk(client, heir)
            self.both_ways(client, heir)
            client.do("close")
            heir.do("end")
            heir.do("exit")

    def test_exit_with_unsent_data(self):
        """What was written before exit arrives, whoever exits, and whichever carrier has it."""
        for phase in ("plain", "moved"):
            with self.subTest(phase=phase):
                server, client = self.pair(environment=({} if phase == "plain" else EAGER))
                if phase == "moved":
                    self.move(server, client)
                server.do("send 20000")
                server.tell("exit")
                server.answer("done exit")
                server.program.wait()
                client.do("receive 20000")
                client.do("end")


class Daemon:
    """A stage behind a named pipe."""

    def __init__(self, case, path, commands):
        self.case, self.path, self.commands, self.seen = case, path, commands, 0

    def tell(self, command):
        self.commands.write(command + "\n")
        self.commands.flush()

    def answer(self, text, seconds=40):
        def found():
            if not os.path.exists(self.path + ".out"):
                return None
            with open(self.path + ".out") as file:
                lines = file.read().split("\n")[:-1]
            for number in range(self.seen, len(lines)):
                if lines[number].startswith(text):
                    self.seen = number + 1
                    return lines[number]
            return None

        def describe():
            with open(self.path + ".out") as file:
                return file.read()[-2000:]
        return self.case.wait_until(found, f"the daemon says {text!r}", seconds, describe)

    def do(self, command, seconds=40):
        self.tell(command)
        return self.answer("done " + command.split()[0], seconds)


class Services(ProcessCase):
    def test_says_why_it_cannot_start(self):
        """In the background, and behind `sockswitch run`, whose command runs on TCP then."""
        for options, status, reason in (
                (("--socket", "/proc/nowhere/service.sock"), 69, "/proc/nowhere"),
                (("--log-file", os.path.join(self.directory, "missing", "log")), 73, "missing/log"),
                (("--socket", "service.sock"), 69, "must be absolute")):
            service = self.start([tool("sockswitchd"), "--detach", *options], False, name="sockswitchd")
            service.wait(20, status)
            self.assertIn(reason, service.errors)
        if settings.plain:
            return
        true = self.start([tool("sockswitch"), "run", "--service", "/proc/nowhere/service.sock", "--", "true"], False, name="true")
        true.wait(20)
        self.assertIn("No such file", true.errors)
        self.assertIn("runs on TCP", true.errors)

    def test_messages_of_one_in_the_background(self):
        """Before it serves to whoever started it, afterwards to the log; nobody's standard error is held."""
        log = os.path.join(self.directory, "log")
        starter = subprocess.run(
            [tool("sockswitchd"), "--detach", "--ephemeral", "--log-file", log, "--log-level", "debug"], env=self.environment,
            stderr=subprocess.PIPE, timeout=20, text=True)
        self.assertEqual((starter.returncode, starter.stderr), (0, ""))
        os.kill(self.service_pid(), signal.SIGTERM)
        self.wait_until(lambda: "ended" in open(log).read(), "it says in its log that it has ended", 20)

    def test_a_new_one_finds_what_is_there(self):
        """The one that paired them was killed, switched off or not: `ps`, `off` and `on` are the next one's at once."""
        if settings.plain:
            return
        for command in ("on", "off"):
            server, client = self.pair()
            self.move(server, client)
            self.ask(command, "--service", self.service)
            self.talk(client, server)
            os.kill(self.service_pid(), signal.SIGKILL)
            self.wait_until(lambda: self.ps() is None, "the service is gone")
            next_one = self.start([tool("sockswitchd"), "--socket", self.service], False, name="sockswitchd")
            self.wait_until(lambda: self.ps() is not None and len(self.entries()) >= 2, "the ends are found", 20, next_one.describe)
            if command == "on":
                self.assertEqual(self.carriers(), {"companion"})
                off = self.ask("off", "--service", self.service)
                self.assertEqual(off.stdout, "Switched off. 2 sockets go back to TCP.\n")
                self.talk(client, server)
                self.talk(client, server)
                self.assertEqual(self.carriers(), {"tcp"})
                off = self.ask("off", "--service", self.service)
                self.assertEqual(off.stdout, "Switched off. No socket was on a companion.\n")
                self.ask("on", "--service", self.service)

            def moved():
                self.talk(client, server)
                return self.carriers() == {"companion"}
            self.wait_until(moved, "the connection moves again", 20, lambda: str(self.entries()))
            self.finish(client, server)
            next_one.kill(signal.SIGTERM)
            next_one.wait()


class Confinement(ProcessCase):
    def test_seccomp(self):
        self.with_phases(lambda server, client: server.do("seccomp strict") and None)

    def test_seccomp_with_an_epoll_set(self):
        def act(server, client):
            server.do("watch")
            server.do("seccomp strict")
            client.do("send 1")
            server.do("wait_readable epoll")
            server.do("receive 1")
        self.with_phases(act, phases=("plain", "moved"))

    def test_seccomp_from_outside(self):
        """A filter that was there before the program sets nothing up, and nothing is tried that it would punish."""
        server, client = self.pair()
        server.do("seccomp eventfd")
        server.do("exec switched")
        self.talk(client, server)
        late = self.connect_again(server)
        def declined():
            self.talk(late, server)
            return any(entry["reason"] == "peerNotSwitched" for entry in self.entries())
        if not settings.plain:
            self.wait_until(declined, "the server does not take part", 20, lambda: str(self.entries()))
        self.finish(late, server)

    def test_seccomp_from_outside_that_is_permitted(self):
        """A container's filter, of which the operator knows that it lets the library do what it must."""
        server, client = self.pair(environment={**EAGER, "SOCKSWITCH_SECCOMP": "ignore"})
        server.do("seccomp harmless")
        server.do("exec switched")
        late = self.connect_again(server)
        self.move(server, late)
        self.finish(late, server)

    def test_file_size_limit(self):
        """The library's memory is a file: beyond RLIMIT_FSIZE making it would be a signal."""
        server = self.listen()
        client = self.start(["bash", "-c", f'ulimit -f 64; exec "$0" "$@"', os.path.realpath(sys.executable),
                             os.path.join(os.path.dirname(__file__), "programs", "stage.py"), "connect", str(self.port)],
                            environment=EAGER)
        client = Stage(client)
        client.answer("connected")
        server.do("accept")
        self.talk(client, server)
        self.finish(client, server)

    def connect_again(self, server):
        server.tell("new_listener")
        self.port = int(server.answer("port").split()[1])
        server.answer("done new_listener")
        client = self.stage("connect", self.port)
        client.answer("connected")
        server.do("accept")
        return client

    def test_chroot_and_setuid(self):
        root = os.path.join(self.directory, "root")
        os.mkdir(root)
        server = self.listen()
        server.do(f"chroot {root}")
        server.do("setuid 65534")
        client = self.connect(server)
        self.talk(client, server)
        self.both_ways(client, server)
        self.finish(client, server)

    def test_chroot_and_setuid_after_the_move(self):
        def act(server, client):
            root = os.path.join(self.directory, f"root-{len(self.programs)}")
            os.mkdir(root)
            server.do(f"chroot {root}")
            server.do("setuid 65534")
        self.with_phases(act, phases=("moved", "unread"))

    def test_limits_lowered(self):
        """Fewer descriptors and less memory than the program has: what is up goes on, what is new stays on TCP."""
        for name, value in (("NOFILE", 24), ("AS", 0)):
            with self.subTest(limit=name):
                server, client = self.pair()
                self.move(server, client)
                server.do(f"limit {name} {value}")
                self.talk(client, server)
                self.both_ways(client, server)
                second = self.stage("connect", self.port)
                second.answer("connected")
                client.do("close")
                server.do("end")
                server.do("accept")
                self.talk(second, server, 8)
                self.both_ways(second, server)
                self.finish(second, server)


class Namespaces(ProcessCase):
    """Ends in network namespaces of their own, which share the service's socket."""

    def setUp(self):
        super().setUp()
        self.namespaces = []

    def tearDown(self):
        try:
            super().tearDown()
        finally:
            for name in self.namespaces:
                self.ip("netns", "del", name)

    @staticmethod
    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    def namespace(self, number):
        name = f"sockswitch-{os.getpid()}-{number}"
        self.ip("netns", "add", name)
        self.namespaces.append(name)
        self.ip("-n", name, "link", "set", "lo", "up")
        return name

    #: Of processes, files, host name and IPC, made anew; that of networks is shared, as in a pod.
    CONTAINER = ("--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc")

    def stage_in(self, namespace, *arguments):
        path = os.path.join(os.path.dirname(__file__), "programs", "stage.py")
        into = ([find_program("nsenter"), "-t", str(namespace.pid), "-U", "-n", "--preserve-credentials"]
                if isinstance(namespace, Program) else [find_program("unshare"), *namespace] if isinstance(namespace, tuple)
                else [find_program("ip"), "netns", "exec", namespace])
        return Stage(self.start(
            [*into, os.path.realpath(sys.executable), path, *map(str, arguments)],
            environment=EAGER, name=f"stage-{arguments[0]}"))

    def converse(self, server_namespace, client_namespace, address, moves):
        server = self.stage_in(server_namespace, "listen", address)
        self.port = int(server.answer("port").split()[1])
        client = self.stage_in(client_namespace, "connect", self.port, address)
        client.answer("connected")
        server.do("accept")
        if moves:
            self.move(server, client)
        else:
            for _ in range(3):
                self.talk(client, server)
        self.both_ways(client, server)
        if not moves and not settings.plain:
            self.assertEqual(self.carriers(), {"tcp"})
        self.finish(client, server)
        for stage in (server, client):
            stage.do("exit")

    def test_both_ends_in_one(self):
        one = self.namespace(1)
        self.converse(one, one, "127.0.0.1", moves=True)

    def test_containers_of_one_network(self):
        """Process ids that mean others, or nobody, on the other side."""
        for server, client in ((self.CONTAINER, self.CONTAINER), (self.CONTAINER, ()), ((), self.CONTAINER)):
            with self.subTest(server=bool(server), client=bool(client)):
                self.converse(server or ("--uts",), client or ("--uts",), "127.0.0.1", moves=True)

    def test_one_end_in_each(self):
        """Paired only by a service that is told to."""
        one, other = self.namespace(1), self.namespace(2)
        self.ip("-n", one, "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b", "netns", other)
        for name, device, address in ((one, "veth-a", "10.213.7.1/24"), (other, "veth-b", "10.213.7.2/24")):
            self.ip("-n", name, "address", "add", address, "dev", device)
            self.ip("-n", name, "link", "set", device, "up")
        self.converse(one, other, "10.213.7.1", moves=False)
        self.end_service()
        service = self.start([tool("sockswitchd"), "--socket", self.service, "--across-namespaces"], switched=False)
        self.wait_until(lambda: settings.plain or self.ps(), "the service answers", 20, service.describe)
        self.converse(one, other, "10.213.7.1", moves=True)

    def test_one_end_in_a_users_own(self):
        """Whoever makes a user namespace can give a network in it any address: such an end is not believed."""
        one = self.namespace(1)
        other = self.start(["unshare", "--user", "--net", "--map-root-user", "sh", "-c", "echo made; exec sleep 100"], switched=False)
        other.wait_for_output("made")
        inside = ["nsenter", "-t", str(other.pid), "-U", "-n", "--preserve-credentials", "ip"]
        self.ip("-n", one, "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b")
        self.ip("-n", one, "link", "set", "veth-b", "netns", str(other.pid))
        self.ip("-n", one, "address", "add", "10.213.8.1/24", "dev", "veth-a")
        self.ip("-n", one, "link", "set", "veth-a", "up")
        for words in (["address", "add", "10.213.8.2/24", "dev", "veth-b"], ["link", "set", "veth-b", "up"]):
            subprocess.run([*inside, *words], check=True)
        service = self.start([tool("sockswitchd"), "--socket", self.service, "--across-namespaces"], switched=False)
        self.wait_until(lambda: settings.plain or self.ps(), "the service answers", 20, service.describe)
        for server, client, address in ((one, other, "10.213.8.1"), (other, one, "10.213.8.2")):
            self.converse(server, client, address, moves=False)


class Many(ProcessCase):
    """More connections than descriptors could be had for all of their doorbells."""
    limit = 180

    def run_many(self, count, descriptors, rounds, reason):
        server = self.start_python("many.py", "server", count, descriptors, environment=EAGER)
        self.port = int(server.wait_for_output("port").split()[1])
        client = self.start_python("many.py", "client", count, descriptors, self.port, rounds, environment=EAGER)
        client.wait_for_output("talked", 150)
        if not settings.plain:
            found = self.entries()
            reasons = {}
            for entry in found:
                reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
            note(str(reasons))
            self.assertEqual(len(found), 2 * count)
            self.assertIn(reason, reasons)
        client.tell("go on")
        client.wait(120)
        server.wait(60)

    def test_connections_and_few_descriptors(self):
        count = 10_000 if settings.long else 1_500
        self.run_many(count, count + 100, 3, "descriptorLimit")

    def test_connections_on_companions(self):
        """The library's descriptors lie above the soft limit, as far as the hard one goes."""
        count = 10_000 if settings.long else 500
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.run_many(count, f"{count + 100}:{hard}", 3, "none")
