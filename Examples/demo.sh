#!/usr/bin/env bash
# The main job, shown: unmodified redis and redis-benchmark, first on TCP, then over companion sockets, with the figures
# and the proof that the companion carried the bytes. Needs `make build`. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
switch=$PWD/out/bin/sockswitch
work=$(mktemp -d)
export SOCKSWITCH_SERVICE=$work/service.sock
servers=()
cleanup() {
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || :; done
    wait 2>/dev/null || :
    rm -rf "$work"
}
trap cleanup EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# start PORT PREFIX…: a redis server, ready when this returns
start() {
    local port=$1; shift
    "$@" redis-server --port "$port" --bind 127.0.0.1 --save "" --dir "$work" >"$work/redis-$port.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 100); do redis-cli -p "$port" ping >/dev/null 2>&1 && return; sleep 0.1; done
    echo "redis-server did not start:" >&2; cat "$work/redis-$port.log" >&2; exit 1
}
# rate PORT OPTIONS PREFIX…: requests a second and median latency
rate() {
    local port=$1 options=$2; shift 2
    # shellcheck disable=SC2086
    "$@" redis-benchmark -p "$port" -q -t get $options | tr '\r' '\n' | grep 'requests per second' | tail -1 | sed 's/^GET: //'
}

plain=$(free_port); start "$plain" env
switched=$(free_port); start "$switched" "$switch" run --

echo
echo "redis GET                         on TCP                                        over companion sockets"
for options in "-c 1 -n 50000" "-c 50 -n 200000" "-c 50 -P 16 -n 500000"; do
    printf '  %-24s  %-44s  %s\n' "$options" "$(rate "$plain" "$options" env)" "$(rate "$switched" "$options" "$switch" run --)"
done

echo
echo "The proof: one client stays connected, and both the switch and the kernel are asked what carried its bytes."
"$switch" run -- python3 - "$switched" "$switch" <<'PY'
import json, os, socket, subprocess, sys
port, switch = int(sys.argv[1]), sys.argv[2]
client = socket.create_connection(("127.0.0.1", port))
request, answer = b"*2\r\n$4\r\nECHO\r\n$1000\r\n" + b"x" * 1000 + b"\r\n", 1009
for _ in range(20000):
    client.sendall(request)
    left = answer
    while left:
        left -= len(client.recv(left))
environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
report = json.loads(subprocess.check_output([switch, "ps", "--json"], env=environment))
local = "127.0.0.1:%d" % client.getsockname()[1]
row = next(s for s in report["sockets"] if s["local"] == local)
b = row["bytes"]
companion, tcp = b["companionSent"] + b["companionReceived"], b["tcpSent"] + b["tcpReceived"]
print(f"  sockswitch ps   {row['program']} {row['local']} -> {row['peer']}: sends on the {row['sendCarrier']}, "
      f"receives on the {row['receiveCarrier']}")
print(f"                  {companion:,} bytes over the companion, {tcp:,} over TCP: {100 * companion / (companion + tcp):.2f} %")
kernel = subprocess.check_output(["ss", "-tinH", "src", local], env=environment, text=True).split()
counts = {w.split(":")[0]: w.split(":")[1] for w in kernel if w.startswith(("bytes_sent:", "bytes_received:"))}
print(f"  ss -ti          the same connection in the kernel's own books: {counts.get('bytes_sent', '0')} bytes sent, "
      f"{counts.get('bytes_received', '0')} received")
sys.exit(0 if companion >= 99 * tcp else "the companion did not carry the bytes")
PY
echo
echo "Figures that one run on one machine gives; 'make bench' measures with baselines, percentiles and CPU time."
