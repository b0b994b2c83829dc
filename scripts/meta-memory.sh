#!/usr/bin/env bash
# What a file costs a metadata node: memory for each file of one chunk, rates of commands, and how long a start from a snapshot
# takes.
#
#   scripts/meta-memory.sh [FILES]     default: 1,000,000 files, about a minute
. "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit ;;
esac
need_toolchain
# With the whole workspace, so that the dependencies are the ones that are built already.
cargo build --quiet --release --locked --workspace --example memory
exec "$BIN/examples/memory" "$@"
