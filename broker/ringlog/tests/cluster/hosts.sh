#!/bin/sh
# Hosts of their own on this machine: network namespaces on one bridge, each with an address.
# See hosts.sh --help. Exit status: 0 done, 77 the right to make them is missing, 1 anything else, 2 wrong usage.
set -eu

usage() {
    cat <<'USAGE'
hosts.sh up NAME N [PREFIX]   makes bridge NAME, whose address is PREFIX.1, and hosts 1 to N: namespace NAMEs1 with address
                              PREFIX.2, NAMEs2 with PREFIX.3, …; and addresses PREFIX.102, … at the bridge, where something
                              may listen that stands between this machine and a host. PREFIX is 10.63.0 if not given
hosts.sh down NAME            kills what runs on the hosts of NAME, and removes them and the bridge
hosts.sh sweep                the same for all whose maker has gone: tests that were killed. Those made by hand stay
hosts.sh --help               this

NAME has at most 10 letters, digits or '-'; N is at most 99. Needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN, and ip of iproute2.
Three brokers, each on a host of its own:

    hosts.sh up demo 3
    ip netns exec demos1 ringlog serve --data a --broker-id 1 --listen 10.63.0.2:9644
    ip netns exec demos2 ringlog serve --data b --broker-id 2 --listen 10.63.0.3:9644 --join 10.63.0.2:9644
    ip netns exec demos3 ringlog serve --data c --broker-id 3 --listen 10.63.0.4:9644 --join 10.63.0.2:9644
    ringlog cluster status --brokers 10.63.0.2:9644
    ip link set demol2 down                      # host 2 is cut off; up: it is back
    ip -n demos1 route add blackhole 10.63.0.4   # nothing from host 1 gets to host 3; del: it does again
    hosts.sh down demo

RINGLOG_HOSTS_OWNER=PID says whose they are: when that process has gone, sweep removes them.
USAGE
}

fail() {
    status="$1"
    shift
    printf 'hosts.sh: %s\n' "$*" >&2
    exit "$status"
}

# ip, which must succeed. The words for EPERM and EACCES are not translated.
must() {
    said="$(ip "$@" 2>&1)" && return
    case "$said" in
    *"Operation not permitted"* | *"Permission denied"*) fail 77 "ip $*: $said" ;;
    *) fail 1 "ip $*: $said" ;;
    esac
}

spaces_of() {
    ip netns list 2>/dev/null | sed -n "s/^\($1s[0-9][0-9]*\)\( .*\)\{0,1\}\$/\1/p"
}

up() {
    name="$1" hosts="$2" prefix="$3"
    if ip link show "$name" >/dev/null 2>&1; then
        fail 1 "$name is there already; remove it with: hosts.sh down $name"
    fi
    # What was made is removed when something of it cannot be.
    trap '[ $? -eq 0 ] || down "$name"' EXIT
    must link add "$name" type bridge
    must link set "$name" alias "ringlog hosts${RINGLOG_HOSTS_OWNER:+ of process $RINGLOG_HOSTS_OWNER}"
    must addr add "$prefix.1/24" dev "$name"
    must link set "$name" up
    host=0
    while [ "$host" -lt "$hosts" ]; do
        host=$((host + 1))
        space="${name}s$host" link="${name}l$host" address="$prefix.$((host + 1))"
        must addr add "$prefix.$((host + 101))/24" dev "$name"
        must netns add "$space"
        must link add "$link" type veth peer name eth0 netns "$space"
        must link set "$link" master "$name"
        must link set "$link" up
        must -n "$space" addr add "$address/24" dev eth0
        must -n "$space" link set eth0 up
        must -n "$space" link set lo up
        printf 'host %s: %s, ip netns exec %s …\n' "$host" "$address" "$space"
    done
}

# What is not there, or goes meanwhile, is as good as removed.
down() {
    name="$1"
    for space in $(spaces_of "$name"); do
        for process in $(ip netns pids "$space" 2>/dev/null); do
            kill -9 "$process" 2>/dev/null || true
        done
        ip link del "${name}l${space#"${name}s"}" 2>/dev/null || true
        ip netns del "$space" 2>/dev/null || true
    done
    # Ways that were cut from this machine.
    prefix="$(ip -o -4 addr show dev "$name" 2>/dev/null | sed -n 's/.* inet \([0-9.]*\)\.1\/24 .*/\1/p')"
    if [ -n "$prefix" ]; then
        for route in $(ip route show type blackhole | sed -n "s/^blackhole \($prefix\.[0-9]*\).*/\1/p"); do
            ip route del blackhole "$route" 2>/dev/null || true
        done
    fi
    ip link del "$name" 2>/dev/null || true
}

sweep() {
    ip -o link show type bridge |
        sed -n 's/^[0-9]*: \([^:@]*\).*alias ringlog hosts of process \([0-9]*\).*/\1 \2/p' |
        while read -r name owner; do
            if [ ! -d "/proc/$owner" ]; then
                down "$name"
                printf 'removed %s of process %s\n' "$name" "$owner"
            fi
        done
    # A bridge is the first that is made and the last that is removed: hosts of tests without theirs are left over.
    ip netns list | sed -n 's/^\(rl[0-9a-f]*\)s[0-9][0-9]*\( .*\)\{0,1\}$/\1/p' | sort -u |
        while read -r name; do
            if ! ip link show "$name" >/dev/null 2>&1; then
                down "$name"
                printf 'removed what was left of %s\n' "$name"
            fi
        done
}

name_of() {
    case "$1" in
    '' | *[!A-Za-z0-9-]* | ???????????*) fail 2 "'$1' is no name: at most 10 letters, digits or '-'" ;;
    esac
}

case "${1:-}" in
--help | -h) usage && exit ;;
up | down | sweep) command -v ip >/dev/null || fail 1 "ip is missing; install iproute2" ;;
esac
case "$#:${1:-}" in
3:up | 4:up)
    name_of "$2"
    case "$3" in [1-9] | [1-9][0-9]) ;; *) fail 2 "'$3' is no number from 1 to 99" ;; esac
    up "$2" "$3" "${4:-10.63.0}"
    ;;
2:down)
    name_of "$2"
    down "$2"
    ;;
1:sweep) sweep ;;
*)
    usage >&2
    exit 2
    ;;
esac
