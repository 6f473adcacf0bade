#!/usr/bin/env bash
# Installs the Debian packages that build, demo and tests need and that are missing. Says what it does; may be run again.
#
#     install-deps.sh                   what `make test` and `make demo` need
#     install-deps.sh compatibility     and the programs of `make compatibility`
#     install-deps.sh conformance       and what `make conformance` builds suites with
set -euo pipefail

packages=(
    build-essential git python3 procps iproute2 util-linux binutils curl
    redis-server redis-tools nginx-light memcached libmemcached-tools iperf3 wrk
    strace nodejs default-jdk-headless libpython3.11-testsuite liburing-dev
)
case ${1:-} in
"") ;;
conformance) packages+=(dpkg-dev python3-venv python3-dev tcl pkg-config automake autoconf libtool libssl-dev) ;;
compatibility)
    packages+=(
        apache2-utils golang-go gunicorn haproxy mariadb-client mariadb-server mosquitto mosquitto-clients
        openssh-client openssh-server openssl postgresql rsync socat stunnel4 uvicorn wget
    )
    ;;
*) echo "usage: install-deps.sh [compatibility|conformance]" >&2; exit 64 ;;
esac

missing=()
for package in "${packages[@]}"; do
    case $package in
    # These may be present without Debian's package.
    nodejs) command -v node >/dev/null && continue ;;
    default-jdk-headless) command -v javac >/dev/null && continue ;;
    esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done

if ! command -v swift >/dev/null; then
    echo "install-deps: swift is missing: install Swift 6.3 and put it on the PATH" >&2
    exit 1
fi
[ ${#missing[@]} -gt 0 ] || { echo "== all Debian packages are installed"; exit 0; }

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "install-deps: need root or sudo to install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "== installing: ${missing[*]}"
# Debian starts the servers that it installs. The tests bring their own: forbid that, unless somebody has forbidden it.
policy=/usr/sbin/policy-rc.d
made_policy=0
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
    made_policy=1
fi
cleanup() { [ $made_policy = 0 ] || "${as_root[@]}" rm -f $policy; }
trap cleanup EXIT
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
