#!/usr/bin/env bash
# From a fresh clone to a mounted cluster with a file copied in and out.
#
#   scripts/quickstart.sh [MOUNTPOINT] [--dir DIR]   builds, starts, mounts (default ./.dfs/mnt, data in ./.dfs)
#   scripts/quickstart.sh --down [--dir DIR]         unmounts and stops; the data stays
#
# Run it again at any time: what runs already is left as it is.
. "$(dirname "$0")/lib.sh"

dir=$ROOT/.dfs
mount=
down=
while [ $# -gt 0 ]; do
    case $1 in
    --down) down=1 ;;
    --dir) dir=${2:?--dir needs a directory} && shift ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit ;;
    -*) die "unknown option $1; see $0 --help" ;;
    *) mount=$1 ;;
    esac
    shift
done
dir=$(realpath -m "$dir")
mount=$(realpath -m "${mount:-$dir/mnt}")

if [ -n "$down" ]; then
    "$BIN/dfsctl" dev down --dir "$dir"
    say "stopped; the data is still in $dir"
    exit
fi

say "Preparing this machine"
need_toolchain
can_mount || die "without FUSE there is nothing to mount; dfsctl dev up without --mount still works"

say "Building (the first time takes some minutes)"
build

say "Starting one metadata node, three storage nodes and a mount"
"$BIN/dfsctl" dev up --dir "$dir" --mount "$mount"

say "Copying real files in and out"
tree=$mount/quickstart
back=$(mktemp -d)
trap 'rm -rf "$back"' EXIT
rm -rf "$tree"
mkdir "$tree"
cp -a README.md docs "$tree"/
cp "$BIN/dfsctl" "$tree/dfsctl"
cp -a "$tree/." "$back"/
cmp "$BIN/dfsctl" "$back/dfsctl"
cmp README.md "$back/README.md"
diff -r docs "$back/docs"
count=$(find "$tree" -type f | wc -l)
size=$(du -sh --apparent-size "$tree" | cut -f1)
note "$count files, $size, went in and came out identical"
note "sha256 of one, as stored: $(getfattr --only-values -n user.dfs.sha256 "$tree/README.md" 2>/dev/null || sha256sum <"$tree/README.md" | cut -d' ' -f1)"

"$BIN/dfsctl" wait healthy --timeout 30s --meta "$(. "$dir/env" && printf %s "$DFS_META_ADDRS")"

say "Your cluster runs"
cat <<TEXT
    your files          ls $mount
    its health          . $dir/env && dfsctl status
    kill something      dfsctl dev kill storage-2 --dir $dir    (and look: everything still works)
    bring it back       dfsctl dev start storage-2 --dir $dir
    stop everything     scripts/quickstart.sh --down --dir $dir
TEXT
