"""What a call returns must not depend on the carrier: programs with a connection on TCP beside one that has moved."""
import os
import signal
import subprocess

from harness import Case, settings

GUESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guests")

JAVA = """
import java.io.*; import java.net.*;
public class Guest {
    static class Box { int value; }
    static int read(Box box) { return box.value; }
    public static void main(String[] arguments) throws Exception {
        ServerSocket server = new ServerSocket(0, 8, InetAddress.getByName("127.0.0.1"));
        Socket client = new Socket(server.getInetAddress(), server.getLocalPort()), accepted = server.accept();
        int seen = 0, sum = 0;
        Box box = new Box();
        for (int i = 0; i < 40000; i++) {
            if (i % 40 == 0) {
                client.getOutputStream().write(i / 40 & 127);
                sum += accepted.getInputStream().read();
                accepted.getOutputStream().write(1);
                sum += client.getInputStream().read();
            }
            // Compiled code finds a null by the signal.
            try { sum += read(i > 30000 ? null : box); } catch (NullPointerException e) { seen++; }
        }
        System.out.println(seen + " " + sum);
        System.in.read();
    }
}
"""

TALK = """
import ctypes, faulthandler, socket, sys, time
faulthandler.enable()
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
def sent(): return int.from_bytes(client.getsockopt(6, 11, 256)[200:208], 'little')
end = time.monotonic() + 20
while True:
    before = sent()
    for _ in range(8):
        client.sendall(b'x'); accepted.recv(1); accepted.sendall(b'y'); client.recv(1)
    if sent() == before: break
    assert time.monotonic() < end, 'the connection does not move'
    time.sleep(0.001)
print('moved', flush=True)
"""

NODE = """
const net = require('net');
const bytes = Uint8Array.from([0,97,115,109,1,0,0,0,1,6,1,96,1,127,1,127,3,2,1,0,5,3,1,0,1,7,5,1,1,114,0,0,10,9,1,7,0,32,0,40,2,0,11]);
const load = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports.r;
const server = net.createServer((s) => s.pipe(s)).listen(0, '127.0.0.1', () => {
    let turns = 0, traps = 0;
    const client = net.connect(server.address().port, '127.0.0.1', () => client.write('x'));
    client.on('data', () => {
        // Outside of its memory: V8 finds out by the signal.
        try { load(0x10000 + turns); } catch (e) { if (e instanceof WebAssembly.RuntimeError) traps++; }
        if (++turns < 2000) client.write('x'); else { console.log(turns, traps); process.stdin.once('data', () => process.exit(0)); }
    });
});
"""


class Calls(Case):
    def setUp(self):
        super().setUp()
        self.run_options = ["--upgrade", "eager", "--tcp", "address=127.0.0.2"]

    def compile(self, name, *flags):
        program = os.path.join(self.directory, name)
        subprocess.run(["gcc", "-O1", "-w", "-pthread", "-o", program, os.path.join(GUESTS, name + ".c"), *flags], check=True)
        return program

    def on_both_carriers(self, name, flags=()):
        """The program compares by itself; without the switch, too, which checks its cases."""
        program = self.compile(name, *flags)
        plain = self.run_program([program, "plain"], False, expected=None)
        self.assertIn("\n0 different\n", plain.output, plain.describe())
        if not settings.plain:
            ours = self.run_program([program], expected=None)
            self.assertIn("\n0 different\n", ours.output, ours.describe())

    def test_bad_pointers(self):
        self.on_both_carriers("pointers")

    def test_first_socket_beside_vfork(self):
        self.on_both_carriers("first")

    def test_flags_and_options(self):
        self.on_both_carriers("options")

    def test_what_the_fuzzer_found(self):
        self.on_both_carriers("found")

    def test_numbers_and_options_beside_the_switch(self):
        self.on_both_carriers("beside")

    def test_what_an_attack_found(self):
        self.on_both_carriers("attacked")

    def test_handlers(self):
        """In the middle of calls they send, jump out, end calls or let them go on, as on TCP."""
        self.on_both_carriers("handlers", flags=["-fexceptions"])

    def test_signal_actions(self):
        program = self.compile("signal-actions")
        plain = self.run_program([program], False, environment={"PLAIN": "1"})
        self.assertIn("wait -1 4", plain.output)
        if not settings.plain:
            self.assertEqual(plain.output, self.run_program([program]).output)

    def test_beside_a_library_that_chains_handlers(self):
        """libjsig's way: it takes sigaction, and calls on; what a program sees of its actions is as without the switch."""
        library, program = self.compile("chains", "-shared", "-fPIC"), self.compile("signal-actions")
        environment = {"LD_PRELOAD": library}
        plain = self.run_program([program], False, environment={"PLAIN": "1", **environment})
        self.assertRegex(plain.output, r"(?m)^chained 10: \d+$")
        if not settings.plain:
            self.assertEqual(plain.output, self.run_program([program], environment=environment).output)

    def test_closed_by_another_thread(self):
        self.on_both_carriers("closed")

    def test_past_the_interface(self):
        self.on_both_carriers("past")

    def test_fault_signals(self):
        program = self.compile("fault-signals")
        for what, status in (("before", 0), ("after", 0), ("trick", 0), ("children", 0), ("fault", -signal.SIGSEGV),
                             ("kill", -signal.SIGSEGV), ("raise", -signal.SIGBUS), ("overflow", -signal.SIGSEGV), ("reset", -signal.SIGSEGV)):
            with self.subTest(what):
                plain = self.run_program([program, what], False, expected=status, environment={"PLAIN": "1"})
                if not settings.plain:
                    ours = self.run_program([program, what], expected=status)
                    self.assertEqual(plain.output, ours.output)

    def port_of(self, program):
        """The port on which the program listens, by the switch's list."""
        def found():
            self.assertTrue(program.running(), program.describe())
            return [int(entry["local"].rsplit(":", 1)[1]) for entry in self.ps()["sockets"]
                    if entry["pid"] == program.pid and entry["kind"] == "accepted"]
        return self.wait_until(found, "the program accepted a connection")[0]

    def prove_moved(self, program):
        if not settings.plain:
            entries = self.wait_until(
                lambda: [e for e in self.connections(self.port_of(program)) if e["bytes"]["companionSent"] > 500],
                "bytes went over the companion", describe=lambda: str(self.ps()))
            self.assertEqual(len(entries), 2)

    def test_null_pointers_of_java(self):
        with open(os.path.join(self.directory, "Guest.java"), "w") as file:
            file.write(JAVA)
        subprocess.run(["javac", os.path.join(self.directory, "Guest.java")], check=True)
        java = self.start(["java", "-Xshare:auto", "-cp", self.directory, "Guest"])
        self.assertIn("9999 ", java.wait_for_output("\n", 60))
        self.prove_moved(java)
        java.tell("end")
        java.wait()

    def test_traps_of_node(self):
        path = os.path.join(self.directory, "guest.js")
        with open(path, "w") as file:
            file.write(NODE)
        node = self.start(["node", path])
        self.assertEqual(node.wait_for_output("\n"), "2000 2000\n")
        self.prove_moved(node)
        node.tell("end")
        node.wait()

    def test_faulthandler_of_python(self):
        path = os.path.join(self.directory, "guest.py")
        for what, status, text in (
                ("ctypes.string_at(0)", -signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
                ("faulthandler._sigsegv()", -signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
                ("faulthandler.disable(); faulthandler._sigsegv()", -signal.SIGSEGV, "")):
            with self.subTest(what):
                with open(path, "w") as file:
                    file.write(TALK.replace("if sent() == before", "if True") if settings.plain else TALK)
                    file.write(what + "\n")
                python = self.start(["python3", path])
                python.wait(30, status)
                self.assertEqual(python.output, "moved\n", python.describe())
                self.assertIn(text, python.errors)
