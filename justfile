# Short names for the usual work; `just` lists them. Every recipe works as well by the command it runs.

default:
    @just --list

# The gate, read-only: format, lints, licences, documentation, all tests
verify:
    scripts/test.sh

# What can be mended by a machine
fix:
    cargo fmt --all
    cargo clippy --release --all-targets --fix --allow-dirty --allow-staged

# Tests only; `just test -E 'test(rename::)'` picks some
test *ARGS: build
    cargo nextest run --release --workspace {{ARGS}}

# The programs, and the link that mount(8) looks for
build:
    cargo build --release --workspace --bins
    ln -sfn mount-dfs target/release/mount.dfs

# A cluster of three metadata and four storage nodes with a mount, all on this machine, below ./.dfs
cluster *ARGS: build
    target/release/dfsctl dev up -m 3 -s 4 --dir .dfs --mount .dfs/mnt {{ARGS}}

# The same in containers, with a client container
containers *ARGS: build
    scripts/run-cluster.sh -m 3 -s 4 -c up -d --build {{ARGS}}

# Figures; `just bench --peer moosefs` sets them beside MooseFS
bench *ARGS:
    scripts/bench.sh {{ARGS}}

# Compile the protocol and nothing else
proto:
    cargo check --release -p dfs-proto

# The documentation of the code
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Every test but those that kill processes: for a quick look at a slow machine
chaos-free: build
    cargo nextest run --release --workspace -E 'not test(/^(failures|dev|memory)::/)'
