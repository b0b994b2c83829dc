#!/usr/bin/env bash
# Runs the POSIX test suite pjdfstest on a mount of a fresh cluster on this machine. Needs root: the tests change users.
#
#   scripts/pjdfstest.sh [TEST_PATTERN...]      all tests, or those whose names contain a pattern
#
# docs/semantics.md says which tests are left out, and why.
. "$(dirname "$0")/lib.sh"

# The version whose tests are the ones that docs/semantics.md speaks of.
VERSION=0.2.2

[ "$(id -u)" = 0 ] || die "pjdfstest changes users, so only root can run it: sudo $0"
can_mount || die "without FUSE there is nothing to test"
have pjdfstest || {
    note "building pjdfstest (once)"
    cargo install --locked --quiet --version "$VERSION" pjdfstest
}
[ -x "$BIN/mount.dfs" ] && [ -x "$BIN/dfsctl" ] || build

# What mount(8) looks for to change a mount that is there, as the tests of read-only file systems do.
HELPER=/sbin/mount.fuse.dfs
linked=
[ -e "$HELPER" ] || {
    ln -s "$(realpath "$BIN/mount.dfs")" "$HELPER"
    linked=1
}

dir=$(mktemp -d)
leave() {
    "$BIN/dfsctl" dev down --dir "$dir/cluster" >/dev/null 2>&1 || true
    ! is_mounted "$dir/other" || umount "$dir/other"
    [ -z "$linked" ] || rm -f "$HELPER"
    rm -rf "$dir"
}
trap leave EXIT

# Other users must reach the mount point.
chmod 755 "$dir"
mkdir "$dir/other"
# Another file system, for what must not cross over.
mount -t tmpfs tmpfs "$dir/other"

# Two users that every Debian and most other systems have. What is not named under [features] is FreeBSD's.
cat >"$dir/pjdfstest.toml" <<TOML
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
secondary_fs = "$dir/other"

[settings]
# Longer than the steps of any clock.
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["daemon", "daemon"], ["bin", "bin"]]
TOML

"$BIN/dfsctl" dev up --dir "$dir/cluster" --mount "$dir/mnt" >/dev/null
umask 022
mkdir "$dir/mnt/pjdfstest"
chmod 755 "$dir/mnt" "$dir/mnt/pjdfstest"

# run CONFIG PATTERN...
run() {
    local config=$1 code=0
    shift
    pjdfstest -c "$config" -p "$dir/mnt/pjdfstest" "$@" >"$dir/out" 2>&1 || code=$?
    if [ $code != 0 ]; then
        grep -A 2 FAILED "$dir/out" >&2 || tail -n 20 "$dir/out" >&2
        die "pjdfstest failed with code $code"
    fi
    grep '^Summary' "$dir/out"
}

begun=$SECONDS
# Some tests leave files open for writing behind, which no file system lets become read-only. So those of read-only file
# systems, which the first run leaves out, have a process of their own.
run "$dir/pjdfstest.toml" "$@"
if [ $# = 0 ]; then
    sed 's/allow_remount = false/allow_remount = true/' "$dir/pjdfstest.toml" >"$dir/remount.toml"
    run "$dir/remount.toml" erofs
fi
note "pjdfstest: $((SECONDS - begun)) s"
