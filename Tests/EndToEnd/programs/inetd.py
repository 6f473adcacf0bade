"""inetd in short: accepts, forks, makes the connection the standard streams, execs.

    inetd.py PORT COMMAND…
"""
import os
import signal
import socket
import sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = listener.accept()
    if os.fork() == 0:
        for stream in (0, 1):
            os.dup2(connection.fileno(), stream)
        connection.close()
        listener.close()
        os.execvp(sys.argv[2], sys.argv[2:])
    connection.close()
