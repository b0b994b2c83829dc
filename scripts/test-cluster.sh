#!/usr/bin/env bash
# shellcheck disable=SC2016 # the scripts in single quotes run in the client container
# The cluster in containers, end to end: start, write and read through the client's mount, lose a storage container and a
# metadata container, and end. Needs a Docker engine and /dev/fuse.
. "$(dirname "$0")/lib.sh"

need_docker || die "no Docker engine"
trap 'scripts/run-cluster.sh down -v >/dev/null 2>&1 || true' EXIT

client() { docker exec dfs-client "$@"; }
meta() { docker exec dfs-client dfsctl "$@"; }

scripts/run-cluster.sh -m 3 -s 4 -c up -d --build

say "Writing and reading through the client's mount"
client sh -c 'head -c 20000000 /dev/urandom >/tmp/in && cp /tmp/in /mnt/dfs/random && cmp /tmp/in /mnt/dfs/random'
client sh -c 'cp -a /usr/bin /mnt/dfs/bin && diff -r --no-dereference /usr/bin /mnt/dfs/bin'
client sh -c 'test "$(sha256sum </tmp/in)" = "$(dfsctl cat /random | sha256sum)"'

say "Restarting a storage container while files are written and read"
client sh -c 'i=0; while [ $i -lt 1000 ]; do cp /tmp/in /mnt/dfs/busy && cmp /tmp/in /mnt/dfs/busy || exit 1; i=$((i+1)); [ ! -e /tmp/enough ] || exit 0; done' &
busy=$!
docker restart -t 5 dfs-storage-2 >/dev/null
docker kill dfs-storage-3 >/dev/null
docker start dfs-storage-3 >/dev/null
client touch /tmp/enough
wait "$busy" || die "a program on the mount saw an error while storage containers restarted"

say "Killing the metadata leader's container"
# Repair is still at work, which status says by its exit code.
leader=$({ meta status --json 2>/dev/null || true; } | grep -oE '"leader": ?"meta-[0-9]+"' | head -1 | grep -oE 'meta-[0-9]+')
docker kill "dfs-$leader" >/dev/null
client sh -c 'cp /tmp/in /mnt/dfs/after && cmp /tmp/in /mnt/dfs/after'
docker start "dfs-$leader" >/dev/null

say "A client that starts anew finds everything, complete"
meta wait healthy --timeout 60s
docker restart -t 10 dfs-client >/dev/null
for _ in $(seq 100); do
    ! client mountpoint -q /mnt/dfs 2>/dev/null || break
    sleep 0.2
done
client sh -c 'cmp /tmp/in /mnt/dfs/random && cmp /tmp/in /mnt/dfs/after && diff -r --no-dereference /usr/bin /mnt/dfs/bin' ||
    die "files differ after the restart of the client"

say "Ending"
scripts/run-cluster.sh down -v
trap - EXIT
! docker ps -a --format '{{.Names}}' | grep -E '^dfs-(meta|storage|client)' || die "containers are left behind"
note "the cluster in containers works"
