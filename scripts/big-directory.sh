#!/usr/bin/env bash
# One directory of very many entries: how long the first of them takes to be listed, all of them, and what the mount needs for it.
#
#   scripts/big-directory.sh [ENTRIES=1000000]
#
# The cluster is in memory (/dev/shm), since what is measured does not wait for a disk but filling would. The mount is new and
# the page cache dropped before each listing.
. "$(dirname "$0")/lib.sh"

entries=${1:-1000000}
helpers=4
[ "$(id -u)" = 0 ] || die "cold figures need root, who may drop the page cache"
can_mount || die "without FUSE there is nothing to measure"
need_toolchain
build

data=$(mktemp -d -p /dev/shm --suffix=.dfs-big)
places=$(mktemp -d)
ctl=$BIN/dfsctl
leave() {
    local i
    for i in $(seq $helpers); do umount "$places/$i" 2>/dev/null || true; done
    "$ctl" dev down --dir "$data/c" >/dev/null 2>&1 || true
    rm -rf "$data" "$places"
}
trap leave EXIT

"$ctl" dev up -m 1 -s 3 --dir "$data/c" --mount "$places/mnt" >/dev/null
mkdir "$places/mnt/big"
# shellcheck source=/dev/null # written by the cluster
meta=$(. "$data/c/env" && printf %s "$DFS_META_ADDRS")
say "Filling it with $entries entries"
# The kernel makes one entry of a directory at a time on each mount.
begun=$SECONDS
for i in $(seq $helpers); do
    mkdir "$places/$i"
    "$BIN/mount.dfs" "$meta" "$places/$i"
done
fillers=()
for i in $(seq $helpers); do
    (cd "$places/$i/big" && seq -f "entry-$i-%08.0f" $((entries / helpers)) | xargs -n 5000 mkdir) &
    fillers+=($!)
done
for pid in "${fillers[@]}"; do wait "$pid"; done
for i in $(seq $helpers); do umount "$places/$i"; done
note "$((SECONDS - begun)) s"

memory_of() { awk '/^VmRSS:/ { print int($2 / 1024) }' "/proc/$(pgrep -f "^mount.dfs $meta $places/mnt")/status"; }

# millis COMMAND...: how long it takes.
millis() {
    local begin=${EPOCHREALTIME/./}
    "$@" >/dev/null
    echo $(((${EPOCHREALTIME/./} - begin) / 1000))
}

first() { ls -f "$places/mnt/big" 2>/dev/null | head -n 1; }

for turn in 1 2 3; do
    "$ctl" dev stop mount --dir "$data/c" >/dev/null
    "$ctl" dev start mount --dir "$data/c" >/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    before=$(memory_of)
    # `head` ends before `ls` does.
    set +o pipefail
    said="ls -f | head -1: $(millis first) ms"
    set -o pipefail
    said="$said; find, all entries: $(millis find "$places/mnt/big" -maxdepth 1) ms"
    note "$turn: $said; the mount has $(memory_of) MiB, and had $before"
done
