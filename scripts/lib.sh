# shellcheck shell=bash
# What the scripts share. Source it; it sets strict mode and goes to the top of the repository.

set -Eeuo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
BIN=$TARGET/release
cd "$ROOT"

# Prints a headline.
say() { printf '\n==> %s\n' "$*"; }

# Prints a detail.
note() { printf '    %s\n' "$*"; }

# Ends the script with a message that says what to do.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Whether this is the automatic run on a change, where nothing may be left out silently.
in_ci() { [ "${CI:-}" = true ]; }

# Something that a step needs is missing: a failure in CI, said aloud and left out elsewhere.
# Returns 1 so that `can_x || return 0` leaves the step out.
missing() {
    if in_ci; then
        die "$1"
    fi
    printf '    LEFT OUT: %s\n' "$1"
    return 1
}

# Runs a command as root: directly, or by sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root: $* (install sudo, or run the script as root)"
    fi
}

APT_UPDATED=
# need_pkg COMMAND PACKAGE: makes COMMAND available from the Debian or Ubuntu package PACKAGE.
need_pkg() {
    have "$1" && return 0
    install_pkg "$2"
    have "$1" || die "package $2 does not bring the command $1"
}

# install_pkg PACKAGE...: installs packages with apt-get.
install_pkg() {
    have apt-get || die "please install: $* (this is no Debian or Ubuntu, so the script cannot)"
    note "installing $*"
    if [ -z "$APT_UPDATED" ]; then
        as_root apt-get update -qq >/dev/null || die "apt-get update failed"
        APT_UPDATED=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "apt-get install $* failed"
}

# What a build needs.
need_toolchain() {
    # shellcheck disable=SC1091 # written by rustup, if at all
    have cargo || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    have cargo || die "no Rust toolchain: install one from https://rustup.rs (rustc 1.90 or newer)"
    # The linker; everything else is Rust.
    have cc || need_pkg cc build-essential
}

# need_cargo_tool COMMAND CRATE: makes a cargo subcommand available.
need_cargo_tool() {
    have "$1" && return 0
    note "building $2 (once)"
    cargo install --locked --quiet "$2"
}

# Builds the programs and the link that mount(8) and people use.
build() {
    cargo build --release --workspace --bins "$@"
    ln -sfn mount-dfs "$BIN/mount.dfs"
}

# Whether a FUSE mount is possible here.
can_mount() {
    [ -c /dev/fuse ] || {
        missing "/dev/fuse is not there: load the module (modprobe fuse), or give the device to this container"
        return 1
    }
    [ "$(id -u)" = 0 ] || have fusermount3 || need_pkg fusermount3 fuse3
}

# The docker compose command, in COMPOSE, and a running engine.
# shellcheck disable=SC2034 # COMPOSE is for the scripts that source this
need_docker() {
    if ! have docker; then
        missing "no docker command: install docker.io and docker-compose" || return 1
    fi
    timeout 20 docker info >/dev/null 2>&1 || {
        missing "the Docker engine does not answer: start dockerd, and let $(id -un) use it" || return 1
    }
    if docker compose version >/dev/null 2>&1; then
        COMPOSE=(docker compose)
    else
        need_pkg docker-compose docker-compose
        COMPOSE=(docker-compose)
    fi
}

# is_mounted PATH, without touching it.
is_mounted() { awk -v path="$1" '$5 == path { found = 1 } END { exit !found }' /proc/self/mountinfo; }

# A disk for one measurement: fresh_disk DIR SIZE ram|disk puts a new ext4 of SIZE (GiB) at DIR, over a file in memory or below
# /var/tmp, and drops the one before. A new one for each system, because ext4 makes files much more slowly for minutes after many
# were deleted. The loop device goes past the page cache of the file system below, which would hold everything a second time.
FRESH_DIR=
FRESH_FILE=
FRESH_LOOP=
fresh_disk() {
    drop_disk
    local below=/var/tmp free
    if [ "$3" = ram ]; then
        below=/dev/shm
        free=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
        [ "$free" -ge $(($2 + 4)) ] || die "a disk in memory needs $(($2 + 4)) GiB of free memory, this machine has $free"
    fi
    FRESH_DIR=$1
    FRESH_FILE=$(mktemp -p $below --suffix=.dfs-disk)
    truncate -s "$2G" "$FRESH_FILE"
    FRESH_LOOP=$(losetup --find --show --direct-io=on "$FRESH_FILE")
    mkfs.ext4 -q -F -E lazy_itable_init=0,nodiscard "$FRESH_LOOP"
    mkdir -p "$FRESH_DIR"
    mount "$FRESH_LOOP" "$FRESH_DIR"
}

drop_disk() {
    [ -n "$FRESH_FILE" ] || return 0
    ! is_mounted "$FRESH_DIR" || umount "$FRESH_DIR" 2>/dev/null || umount -l "$FRESH_DIR"
    [ -z "$FRESH_LOOP" ] || losetup -d "$FRESH_LOOP"
    rm -f "$FRESH_FILE"
    FRESH_FILE=
    FRESH_LOOP=
}
