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
exec cargo run --quiet --release --locked -p dfs-meta --example memory -- "$@"
