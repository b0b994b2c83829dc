#!/usr/bin/env bash
# MooseFS from Debian's packages, to compare with: one master, three chunk servers, three copies, one mount.
#
#   scripts/peers/moosefs.sh start DIR | remount DIR | stop DIR
#
# It is set up to promise what dfs promises: chunk servers sync before they acknowledge a close (HDD_FSYNC_BEFORE_CLOSE), and
# the master syncs its change log (CHANGELOG_SAVE_MODE = 2). Neither is its default. Its servers refuse to speak over
# 127.0.0.0/8, so they live in a network namespace that has a loopback device with other addresses and no way out.
#
#   PEER_SERVERS=N   chunk servers, three if nothing is said
#   PEER_SYNC=no     as Debian sets it up: neither of the two syncs
#   PEER_FAST=1      repair as fast as it can: no delay after the start, many copies at once, a server that hangs is given up
#                    after two seconds
. "$(dirname "$0")/../lib.sh"

verb=${1:?start, remount or stop}
dir=$(realpath -m "${2:?a directory}")
space=dfs-bench-moosefs
master=10.201.0.1
servers=${PEER_SERVERS:-3}
sync=${PEER_SYNC:-yes}

[ "$(id -u)" = 0 ] || die "network namespaces and mounts of a peer need root"

# Only the network is another one: the mount must be visible outside.
inside() { nsenter --net="/run/netns/$space" "$@"; }

install_peer() {
    have mfsmaster && have mfschunkserver && have mfsmount && have mfscli && have ip && return
    # Packages must not start their services here.
    local policy=/usr/sbin/policy-rc.d
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy; }
    install_pkg moosefs-master moosefs-chunkserver moosefs-client moosefs-cli iproute2
}

make_network() {
    ip netns add $space
    inside ip link set lo up
    local host
    for host in $(seq 1 $((servers + 1))); do inside ip address add "10.201.0.$host/24" dev lo; done
}

write_config() {
    local i host
    mkdir -p "$dir"/{etc,master,mnt}
    printf 'MFSM NEW' >"$dir/master/metadata.mfs"
    printf '* / rw,alldirs,admin,maproot=0:0\n' >"$dir/etc/exports"
    : >"$dir/etc/topology"
    printf '%s\n' "DATA_PATH = $dir/master" "EXPORTS_FILENAME = $dir/etc/exports" "TOPOLOGY_FILENAME = $dir/etc/topology" \
        "MATOML_LISTEN_HOST = $master" "MATOCS_LISTEN_HOST = $master" "MATOCL_LISTEN_HOST = $master" \
        "CHANGELOG_SAVE_MODE = $([ "$sync" = no ] && echo 0 || echo 2)" >"$dir/etc/master.cfg"
    [ -z "${PEER_FAST:-}" ] || printf '%s\n' "REPLICATIONS_DELAY_INIT = 0" "CHUNKS_LOOP_MIN_TIME = 1" \
        "CHUNKS_LOOP_MAX_CPS = 10000000" "CHUNKS_WRITE_REP_LIMIT = 20,20,20,20" "CHUNKS_READ_REP_LIMIT = 20,20,20,20" \
        "MATOCS_TIMEOUT = 2" >>"$dir/etc/master.cfg"
    for i in $(seq $servers); do
        host=10.201.0.$((i + 1))
        mkdir -p "$dir/server$i"/{var,chunks}
        printf '%s\n' "$dir/server$i/chunks" >"$dir/etc/disks$i"
        printf '%s\n' "DATA_PATH = $dir/server$i/var" "HDD_CONF_FILENAME = $dir/etc/disks$i" "BIND_HOST = $host" \
            "CSSERV_LISTEN_HOST = $host" "MASTER_HOST = $master" "HDD_FSYNC_BEFORE_CLOSE = $([ "$sync" = no ] && echo 0 || echo 1)" >"$dir/etc/server$i.cfg"
    done
    chown -R mfs:mfs "$dir"/{etc,master,server*}
    # The servers run as the user mfs, who must get here.
    local above=$dir
    while [ "$above" != / ]; do chmod o+x "$above" && above=$(dirname "$above"); done
}

connected() { [ "$(inside mfscli -H $master -p -s ';' -SCS 2>/dev/null | grep -c '10\.201\.0\.')" -ge $servers ]; }

mount_it() { inside timeout 30 mfsmount -H $master "$dir/mnt" >/dev/null; }

unmount_it() {
    is_mounted "$dir/mnt" || return 0
    umount "$dir/mnt" 2>/dev/null || umount -l "$dir/mnt"
}

start() {
    install_peer
    write_config
    make_network
    local i
    # In the foreground it says what happens to its servers, which else only the system's log would hear.
    setsid nsenter --net="/run/netns/$space" mfsmaster -f -c "$dir/etc/master.cfg" start >"$dir/master.log" 2>&1 </dev/null &
    for i in $(seq 100); do ! grep -qs "daemon initialized properly" "$dir/master.log" || break; sleep 0.1; done
    kill -0 $! 2>/dev/null || die "mfsmaster: $(tail -n 3 "$dir/master.log")"
    for i in $(seq $servers); do
        inside mfschunkserver -c "$dir/etc/server$i.cfg" start >>"$dir/start.log" 2>&1 || die "mfschunkserver: $(tail -n 3 "$dir/start.log")"
    done
    for i in $(seq 100); do ! connected || break; sleep 0.2; done
    connected || die "the chunk servers of MooseFS do not connect: $(tail -n 3 "$dir/master.log" "$dir/start.log")"
    mount_it
    # A chunk server that has just connected has not looked at its disk yet.
    for i in $(seq 100); do [ "$(stat -f -c %b "$dir/mnt")" = 0 ] || break; sleep 0.2; done
    inside mfssetgoal -r 3 "$dir/mnt" >/dev/null
    inside mfssettrashtime -r 0 "$dir/mnt" >/dev/null
}

stop() {
    unmount_it
    # All that were started, however many the caller has in mind.
    local config
    for config in "$dir"/etc/server*.cfg; do mfschunkserver -c "$config" stop >/dev/null 2>&1 || true; done
    mfsmaster -c "$dir/etc/master.cfg" stop >/dev/null 2>&1 || true
    ip netns delete $space 2>/dev/null || true
}

case $verb in
start) start ;;
remount) unmount_it && mount_it ;;
stop) stop ;;
*) die "start, remount or stop, not $verb" ;;
esac
