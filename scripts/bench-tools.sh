#!/usr/bin/env bash
# What people do with a tree of source code, timed: tar, ls -lR, du, find, rsync, rm; dfs with three copies beside the local file
# system and, if asked for, MooseFS with three copies, as durable as dfs is and as Debian sets it up.
#
#   scripts/bench-tools.sh [--peer moosefs] [--copies N]
#
#   --copies N   how often the tree (the sources of dfs's dependencies, twice: some 23,000 files) is unpacked; 4 if nothing is said
#
# On a disk in memory (8 GiB of it), so that the figures show what the systems cost and not what the disk of this machine can
# sync. One figure is one run of the tool, in seconds, but that of tar, which is the median of the copies.
. "$(dirname "$0")/lib.sh"

peer=
copies=4
while [ $# -gt 0 ]; do
    case $1 in
    --peer) peer=${2:?--peer needs a name} && shift ;;
    --copies) copies=${2:?--copies needs a number} && shift ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit ;;
    *) die "unknown option $1; see $0 --help" ;;
    esac
    shift
done
[ -z "$peer" ] || [ "$peer" = moosefs ] || die "known peers: moosefs"
[ "$(id -u)" = 0 ] || die "cold figures need root, who may drop the page cache"
need_toolchain
can_mount || die "the benchmark needs FUSE"
need_pkg rsync rsync
need_pkg mkfs.ext4 e2fsprogs
build

base=$(mktemp -d -p /var/tmp --suffix=.dfs-tools)
ctl="$BIN/dfsctl"
cleanup() {
    "$ctl" dev down --dir "$base/fs/dfs" >/dev/null 2>&1 || true
    [ -z "$peer" ] || scripts/peers/moosefs.sh stop "$base/fs/peer" || true
    drop_disk || true
    rm -rf "$base"
}
trap cleanup EXIT

fresh() { fresh_disk "$base/fs" 8 ram; }

say "The tree"
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
[ -d "$sources" ] || die "$sources is missing: build dfs first, with its dependencies from crates.io"
mkdir -p "$base/tree"
cp -a "$sources" "$base/tree/a"
cp -a "$sources" "$base/tree/b"
tar -C "$base" -cf "$base/tree.tar" tree
entries=$(find "$base/tree" | wc -l)
note "$(find "$base/tree" -type f | wc -l) files, $entries entries, $(du -sh "$base/tree" | cut -f1)"

# figure NAME COMMAND...: runs the command and notes the seconds that it took.
figure() {
    local name=$1 begin end
    shift
    begin=${EPOCHREALTIME/./}
    "$@" >"$base/out" 2>"$base/err" || die "$name: $(tail -n 3 "$base/err")"
    end=${EPOCHREALTIME/./}
    printf '%s\t%s\n' "$name" "$(awk -v us=$((end - begin)) 'BEGIN { printf "%.2f", us / 1e6 }')" | tee -a "$results"
}

# measure NAME DIR REMOUNT: all of it in DIR, which is cold after the command REMOUNT and a drop of the page cache.
measure() {
    local dir=$2 remount=$3 i
    results=$base/$1.tsv
    : >"$results"
    say "$1"
    for i in $(seq "$copies"); do
        mkdir "$dir/$i"
        figure "tar x, $((entries / 1000))k entries" tar -C "$dir/$i" -xf "$base/tree.tar"
    done
    sync
    eval "$remount"
    echo 3 >/proc/sys/vm/drop_caches
    figure "ls -lR, $((entries * copies / 1000))k entries, cold" ls -lR "$dir"
    figure "ls -lR, $((entries * copies / 1000))k entries, warm" ls -lR "$dir"
    figure "du -s, warm" du -s "$dir"
    figure "find -newer, warm" find "$dir" -newer "$base/tree.tar" -name '*.c'
    eval "$remount"
    echo 3 >/proc/sys/vm/drop_caches
    figure "tar c, $((entries / 1000))k entries, cold" tar -C "$dir/1" -cf "$base/out.tar" tree
    rm "$base/out.tar"
    figure "rsync -a of a tree that is there" rsync -a "$base/tree/" "$dir/1/tree/"
    figure "rm -r, $((entries / 1000))k entries" rm -r "$dir/1"
}

fresh
"$ctl" dev up -m 1 -s 3 --dir "$base/fs/dfs" --mount "$base/fs/mnt" >/dev/null
measure dfs "$base/fs/mnt" "'$ctl' dev stop mount --dir '$base/fs/dfs' >/dev/null && '$ctl' dev start mount --dir '$base/fs/dfs' >/dev/null"
"$ctl" dev down --dir "$base/fs/dfs" >/dev/null
systems=(dfs)

if [ -n "$peer" ]; then
    for sync in yes no; do
        fresh
        name=moosefs-$([ $sync = yes ] && echo synced || echo unsynced)
        PEER_SYNC=$sync scripts/peers/moosefs.sh start "$base/fs/peer"
        measure "$name" "$base/fs/peer/mnt" "'$ROOT/scripts/peers/moosefs.sh' remount '$base/fs/peer'"
        scripts/peers/moosefs.sh stop "$base/fs/peer"
        systems+=("$name")
    done
fi

fresh
mkdir "$base/fs/local"
measure ext4 "$base/fs/local" true
systems+=(ext4)

files=()
for name in "${systems[@]}"; do files+=("$base/$name.tsv"); done
say "Seconds (ratio: those of the other divided by those of dfs; above 1 dfs is faster)"
{
    printf '| |'; printf ' %s | |' "${systems[@]}"; echo
    printf '|---|'; printf -- '---:|---:|%.0s' "${systems[@]}"; echo
    awk -F '\t' -v systems="${systems[*]}" '
        function median(text,   n, v, i, j, t) {
            n = split(text, v, " ")
            for (i = 1; i < n; i++) for (j = i + 1; j <= n; j++) if (v[j] + 0 < v[i] + 0) { t = v[i]; v[i] = v[j]; v[j] = t }
            return v[int((n + 1) / 2)]
        }
        FNR == 1 { system_of = ++files }
        !($1 in known) { known[$1] = 1; order[++rows] = $1 }
        { values[$1, system_of] = values[$1, system_of] " " $2 }
        END {
            for (r = 1; r <= rows; r++) {
                line = "| " order[r] " |"
                own = median(values[order[r], 1])
                for (s = 1; s <= files; s++) {
                    value = median(values[order[r], s])
                    line = line sprintf(" %s | %s |", value, s == 1 || own == 0 ? "" : sprintf("%.2f", value / own))
                }
                print line
            }
        }' "${files[@]}"
}
