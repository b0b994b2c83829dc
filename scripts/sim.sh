#!/usr/bin/env bash
# The deterministic simulation: whole clusters with faults, in virtual time, everything following from a number.
#
#   scripts/sim.sh [N=500] [--from SEED] [--jobs J]     seeds SEED to SEED+N-1, J at a time (one for each processor)
#   scripts/sim.sh --reproduce SEED                     one seed again, with everything that happened
#
# Exit code 0: every promise was kept. 3: some were not; each is named with its seed.
. "$(dirname "$0")/lib.sh"

need_toolchain
# All programs, so that the dependencies are the ones that are built already.
cargo build --release --workspace --bins --quiet
case " $* " in
*" --reproduce "* | *" --only "* | *" --jobs "*) exec "$BIN/sim" "$@" ;;
*) exec "$BIN/sim" --jobs "$(nproc)" "$@" ;;
esac
