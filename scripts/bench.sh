#!/usr/bin/env bash
# The benchmark: dfs with three copies, beside the local file system and, if asked for, a peer, all in one run, because only
# ratios of one run mean anything.
#
#   scripts/bench.sh [--peer moosefs] [--ram] [--smoke]
#
#   --peer moosefs   also MooseFS with three copies, made durable at close as dfs is (needs root and Debian's packages)
#   --ram            on a disk in memory (14 GiB of it), so that the figures show what the systems cost and not what the disk
#                    can do: three copies on the one disk of a test machine soon ask for all it has
#   --smoke          small and quick, to see that it works; docs/benchmarks.md stays as it is
. "$(dirname "$0")/lib.sh"

peer=
smoke=
place=disk
while [ $# -gt 0 ]; do
    case $1 in
    --peer) peer=${2:?--peer needs a name} && shift ;;
    --ram) place=ram ;;
    --smoke) smoke=--smoke ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit ;;
    *) die "unknown option $1; see $0 --help" ;;
    esac
    shift
done
[ -z "$peer" ] || [ "$peer" = moosefs ] || die "known peers: moosefs"
[ "$(id -u)" = 0 ] || die "cold figures need root, who may drop the page cache"
need_toolchain
can_mount || die "the benchmark needs FUSE"
need_pkg mkfs.ext4 e2fsprogs
build

base=$(mktemp -d -p /var/tmp --suffix=.dfs-bench)
cleanup() {
    "$BIN/dfsctl" dev down --dir "$base/fs/dfs" >/dev/null 2>&1 || true
    [ -z "$peer" ] || scripts/peers/moosefs.sh stop "$base/fs/peer" || true
    drop_disk || true
    rm -rf "$base"
}
trap cleanup EXIT

# Each system gets a disk of its own; to see that the benchmark works any place will do.
fresh() {
    if [ -n "$smoke" ]; then mkdir -p "$base/fs"; else fresh_disk "$base/fs" 14 "$place"; fi
}

measure() {
    local name=$1
    shift
    say "$name"
    "$BIN/dfs-bench" run --name "$name" $smoke "$@" | tee "$base/$name.json"
}

fresh
ctl="$BIN/dfsctl"
"$ctl" dev up -m 1 -s 3 --dir "$base/fs/dfs" --mount "$base/fs/mnt" >/dev/null
measure dfs --dir "$base/fs/mnt" --procs dfs-meta,dfs-storage,mount.dfs \
    --remount "'$ctl' dev stop mount --dir '$base/fs/dfs' && '$ctl' dev start mount --dir '$base/fs/dfs'"
"$ctl" dev down --dir "$base/fs/dfs" >/dev/null

if [ -n "$peer" ]; then
    fresh
    scripts/peers/moosefs.sh start "$base/fs/peer"
    measure moosefs --dir "$base/fs/peer/mnt" --procs mfsmaster,mfschunkserver,mfsmount \
        --remount "'$ROOT/scripts/peers/moosefs.sh' remount '$base/fs/peer'"
    scripts/peers/moosefs.sh stop "$base/fs/peer"
fi

fresh
mkdir "$base/fs/local"
measure ext4 --dir "$base/fs/local"

tables=("$base/dfs.json")
[ -z "$peer" ] || tables+=("$base/moosefs.json")
tables+=("$base/ext4.json")
say "dfs beside the others (ratio: dfs divided by the other)"
"$BIN/dfs-bench" table "${tables[@]}" | tee "$base/table.md"

if [ -z "$smoke" ]; then
    {
        # shellcheck disable=SC2016 # backquotes of Markdown
        printf '%s, kernel %s, %s cores; one run of `scripts/bench.sh%s`, medians of three, MB = 10^6 bytes.\n\n' \
            "$(date -u +%Y-%m-%d)" "$(uname -r)" "$(nproc)" "${peer:+ --peer $peer}$([ "$place" = disk ] || echo " --ram")"
        cat "$base/table.md"
    } >"$base/section.md"
    awk -v section="$base/section.md" -v place="$place" '
        $0 == "<!-- bench:" place ":begin -->" {
            print; print ""; while ((getline line < section) > 0) print line; print ""; skip = 1; next
        }
        $0 == "<!-- bench:" place ":end -->" { skip = 0 }
        !skip { print }' docs/benchmarks.md >"$base/benchmarks.md"
    grep -q "^$(head -n 1 "$base/section.md" | cut -c1-40)" "$base/benchmarks.md" || die "docs/benchmarks.md has no place for these figures"
    cp "$base/benchmarks.md" docs/benchmarks.md
    note "written to docs/benchmarks.md"
fi
