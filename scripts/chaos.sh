#!/usr/bin/env bash
# Real clusters, each process on a machine of its own (network namespaces), under load while everything goes wrong; afterwards
# everything must come right, and nothing that was acknowledged may be missing or different. Needs root and FUSE.
#
#   scripts/chaos.sh MINUTES [--seed S] [--round SECONDS] [--rounds PER_CLUSTER] [--quiet]
#
# The schedule of faults of the first round follows from S, that of the next one from S+1, and so on; it is printed.
# Exit code 0: every promise was kept. 3: some were not; logs and data are kept, and how to repeat it is printed.
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || die "how many minutes? scripts/chaos.sh MINUTES [--seed S]"
[ "$(id -u)" = 0 ] || die "network namespaces and loop mounts need root: sudo scripts/chaos.sh $*"
can_mount || die "the mounts need FUSE"
need_toolchain
need_pkg ip iproute2
need_pkg mkfs.ext4 e2fsprogs
need_pkg mount mount
build --quiet
exec "$BIN/dfs-chaos" run "$@"
