#!/usr/bin/env bash
# Runs the file system exerciser fsx on a mount of a fresh cluster on this machine: random writes, truncations, memory mappings,
# copies of ranges, holes and reads of one file, each read compared with what must be there.
#
#   scripts/fsx.sh [OPERATIONS=1000000] [SEED...]     so many for each seed, by default the seeds 1 to 4 side by side
#
# After a failure the seed and the last operations are printed, and the same seed does the same again.
. "$(dirname "$0")/lib.sh"

VERSION=0.3.0

operations=${1:-1000000}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] && seeds=("$@") || seeds=(1 2 3 4)
can_mount || die "without FUSE there is nothing to test"
have fsx || {
    note "building fsx (once)"
    cargo install --locked --quiet --version "$VERSION" fsx
}
[ -x "$BIN/mount.dfs" ] && [ -x "$BIN/dfsctl" ] || build

dir=$(mktemp -d)
leave() {
    "$BIN/dfsctl" dev down --dir "$dir/cluster" >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap leave EXIT

# Files of three chunks and a bit; what is longest between two operations is a flush, so these are rarer.
cat >"$dir/fsx.toml" <<TOML
flen = 13000000
[opsize]
min = 1
max = 131072
[weights]
close_open = 0.3
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 4
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 1
punch_hole = 1
sendfile = 2
posix_fadvise = 1
copy_file_range = 4
TOML

# Each flush replaces a version: what the trash would keep of a million of them fills any disk.
"$BIN/dfsctl" dev up --dir "$dir/cluster" --mount "$dir/mnt" --meta-arg=--trash-retention=0 --meta-arg=--gc-grace=5s >/dev/null
begun=$SECONDS
pids=()
for seed in "${seeds[@]}"; do
    mkdir "$dir/$seed"
    fsx -f "$dir/fsx.toml" -N "$operations" -S "$seed" -P "$dir/$seed" "$dir/mnt/file-$seed" >"$dir/$seed/out" 2>&1 &
    pids+=($!)
done
failed=
for i in "${!seeds[@]}"; do
    wait "${pids[$i]}" || {
        failed=1
        tail -n 40 "$dir/${seeds[$i]}/out" >&2
        note "fsx failed: scripts/fsx.sh $operations ${seeds[$i]}"
    }
done
[ -z "$failed" ] || die "fsx read something else than it had written"
note "fsx: ${#seeds[@]} times $operations operations in $((SECONDS - begun)) s"
