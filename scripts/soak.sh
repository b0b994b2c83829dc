#!/usr/bin/env bash
# The long versions of tests, too long for every change: a file of 5 GiB with the memory of every process watched, a copy
# of all of /usr/share, and the tests of failures again and again.
#
#   scripts/soak.sh [ROUNDS=5]
. "$(dirname "$0")/lib.sh"

rounds=${1:-5}
need_toolchain
need_cargo_tool cargo-nextest cargo-nextest
can_mount || die "the tests need FUSE"
build

say "A file of ${DFS_TEST_BIG_GIB:=5} GiB"
export DFS_TEST_BIG_GIB
cargo nextest run --release --profile soak --workspace --no-capture -E 'package(dfs-tests) and test(memory::)'

say "A tree: ${DFS_TEST_TREE:=/usr/share}"
export DFS_TEST_TREE
cargo nextest run --release --profile soak --workspace --no-capture -E 'package(dfs-tests) and test(cp_tree::a_real_tree)'

for round in $(seq "$rounds"); do
    say "Failures, round $round of $rounds"
    cargo nextest run --release --workspace -E 'package(dfs-tests) and test(/^(failures|restart|dev|full)::/)'
done
