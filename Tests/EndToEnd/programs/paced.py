"""Fetches a file by HTTP, so slowly that it can be looked at meanwhile, and evenly: a reader that pauses for seconds, as curl
with --limit-rate after a burst, leaves what TCP's buffers take to TCP.

    paced.py ADDRESS PORT PATH MEGABYTES_A_SECOND FILE
"""
import http.client
import sys
import time

address, port, path, rate, name = sys.argv[1:]
connection = http.client.HTTPConnection(address, int(port), timeout=30)
connection.request("GET", path)
answer = connection.getresponse()
assert answer.status == 200, answer.status
with open(name, "wb") as file:
    while part := answer.read(128 << 10):
        file.write(part)
        time.sleep(len(part) / (float(rate) * 1e6))
