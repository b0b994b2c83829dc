#!/usr/bin/env bash
# Everything that a change must pass; CI runs just this. Each step is announced and timed, what it needs is installed.
# A step that this machine cannot run (no FUSE, no Docker engine) fails with CI=true and is left out aloud otherwise.
#
#   scripts/test.sh [STEP...]     all steps, or only those named: fmt clippy deny doc build test sim posix analytics quickstart containers bench
. "$(dirname "$0")/lib.sh"

steps=(fmt clippy deny doc build test sim posix analytics quickstart containers bench)

step_fmt() { cargo fmt --all --check; }

# One profile everywhere: the dependencies are built once.
step_clippy() { cargo clippy --release --workspace --all-targets --locked -- -D warnings; }

step_deny() {
    need_cargo_tool cargo-deny cargo-deny
    cargo deny --locked check licenses bans sources
    # The list of advisories lives in a Git repository, which a machine without the wide internet cannot fetch.
    if timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
        cargo deny --locked check --disable-fetch advisories
    else
        note "NOT CHECKED: advisories, since their database cannot be fetched from here"
    fi
}

step_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --locked --quiet; }

step_build() { build --locked; }

step_test() {
    need_cargo_tool cargo-nextest cargo-nextest
    can_mount || return 0
    # Programs that the tests use beside the basics.
    have diff || need_pkg diff diffutils
    # Everyday programs that some tests run on a mount: a person's machine may lack them, and the tests say so.
    if in_ci; then
        local program
        for program in rsync git make zip unzip sqlite3 vim python3; do
            have "$program" || need_pkg "$program" "$program"
        done
        have gcc && have ar || need_pkg gcc gcc
    fi
    # Machines of their own for the processes of a cluster, and small disks.
    have ip || need_pkg ip iproute2
    have mkfs.ext4 || need_pkg mkfs.ext4 e2fsprogs
    cargo nextest run --release --workspace --locked
}

step_posix() {
    can_mount || return 0
    [ "$(id -u)" = 0 ] || missing "pjdfstest needs root, who may change users" || return 0
    scripts/pjdfstest.sh
    scripts/fsx.sh 1500 1 2 3 4
}

step_analytics() {
    can_mount || return 0
    scripts/analytics.sh
}

step_sim() { scripts/sim.sh 500; }

step_quickstart() {
    can_mount || return 0
    local dir
    dir=$(mktemp -d)
    # Whatever happens, the cluster does not stay behind.
    trap 'scripts/quickstart.sh --down --dir "'"$dir"'/c" >/dev/null 2>&1 || true; rm -rf "'"$dir"'"' EXIT
    scripts/quickstart.sh "$dir/mnt" --dir "$dir/c"
    scripts/quickstart.sh "$dir/mnt" --dir "$dir/c" >/dev/null # again: nothing changes, nothing fails
    scripts/quickstart.sh --down --dir "$dir/c"
    ! is_mounted "$dir/mnt" || die "the mount is still there after --down"
}

step_containers() {
    need_docker || return 0
    scripts/test-cluster.sh
}

step_bench() {
    can_mount || return 0
    [ "$(id -u)" = 0 ] || missing "the benchmark needs root, who may drop the page cache" || return 0
    scripts/bench.sh --smoke
}

[ $# -eq 0 ] || steps=("$@")
need_toolchain
# A build from nothing gains nothing from the records for the next build, and pays a fifth of its time for them.
! in_ci || export CARGO_INCREMENTAL=0
begun=$SECONDS
for step in "${steps[@]}"; do
    declare -F "step_$step" >/dev/null || die "unknown step $step; known: fmt clippy deny doc build test sim posix quickstart containers bench"
    say "$step"
    at=$SECONDS
    # A shell of its own, so that its traps end with the step. Not before `||`, where `set -e` would have no effect.
    set +e
    (
        set -e
        "step_$step"
    )
    code=$?
    set -e
    [ $code = 0 ] || die "step $step failed after $((SECONDS - at)) s"
    note "$step: $((SECONDS - at)) s"
done
say "All steps passed in $((SECONDS - begun)) s: ${steps[*]}"
