#!/usr/bin/env bash
# How fast lost copies are replaced: one metadata node, four storage nodes, three copies of everything, and one of the storage
# nodes dies. Counted from the moment it is found dead until every chunk has three copies again.
#
#   scripts/bench-repair.sh [--peer moosefs] [--ram] [--warm] [--files N] [--small N] [--hang] [--runs N]
#
#   --peer moosefs   also MooseFS, set to repair as fast as it can (needs root and Debian's packages)
#   --ram            on a disk in memory (16 GiB of it): what the systems cost, not what the one disk can sync
#   --warm           what is to be copied is in the page cache
#   --files N        large files, of 64 MiB (16)
#   --small N        small files beside them, of 4 to 64 KiB (0)
#   --hang           the node hangs (SIGSTOP) instead of being killed: no connection breaks
#   --runs N         repeat everything (1)
. "$(dirname "$0")/lib.sh"

peer=
files=16
small=0
signal=KILL
runs=1
place=disk
warm=
while [ $# -gt 0 ]; do
    case $1 in
    --peer) peer=${2:?--peer needs a name} && shift ;;
    --files) files=${2:?--files needs a number} && shift ;;
    --small) small=${2:?--small needs a number} && shift ;;
    --runs) runs=${2:?--runs needs a number} && shift ;;
    --hang) signal=STOP ;;
    --ram) place=ram ;;
    --warm) warm=1 ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0" && exit ;;
    *) die "unknown option $1; see $0 --help" ;;
    esac
    shift
done
[ -z "$peer" ] || [ "$peer" = moosefs ] || die "known peers: moosefs"
[ "$(id -u)" = 0 ] || die "cold figures need root, who may drop the page cache"
need_toolchain
need_pkg python3 python3
need_pkg mkfs.ext4 e2fsprogs
can_mount || die "the benchmark needs FUSE"
[ -n "${NO_BUILD:-}" ] || build

base=$(mktemp -d -p /var/tmp --suffix=.dfs-repair)
ctl="$BIN/dfsctl"
hung=
cleanup() {
    [ -z "$hung" ] || kill -KILL "$hung" 2>/dev/null || true
    "$ctl" dev down --dir "$base/fs/dfs" >/dev/null 2>&1 || true
    [ -z "$peer" ] || scripts/peers/moosefs.sh stop "$base/fs/peer" || true
    drop_disk || true
    rm -rf "$base"
}
trap cleanup EXIT

# Room for three copies and a fourth of what is copied, and half as much again that the servers keep free.
fresh() { fresh_disk "$base/fs" $((8 + files / 2)) "$place"; }

# What was written is on the disk, and in memory if that is asked for, however the system has written it: one that goes past the
# page cache would otherwise read everything from the disk that it writes to.
settle() {
    sync
    if [ -n "$warm" ]; then
        # What a running system renames or removes meanwhile cannot be read.
        find "$base/fs" -xdev -type f -size +0 -exec cat {} + >/dev/null || note "not all is in the page cache"
    else
        echo 3 >/proc/sys/vm/drop_caches
    fi
}

# fill DIR: the same bytes for each system.
fill() {
    python3 - "$1" "$files" "$small" <<'P'
import os, random, sys
root, files, small = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
noise = random.Random(1).randbytes(64 << 20)
def put(path, data):
    with open(path, "wb") as f:
        f.write(data)
        os.fsync(f.fileno())
for i in range(files):
    put(f"{root}/large-{i}", noise[i:] + noise[:i])
sizes = random.Random(2)
for i in range(small):
    at = sizes.randrange(60 << 20)
    if i % 500 == 0:
        os.mkdir(f"{root}/d{i // 500}")
    put(f"{root}/d{i // 500}/small-{i}", noise[at : at + sizes.randrange(4 << 10, 64 << 10)])
P
    sync
}

dfs() {
    fresh
    "$ctl" dev up -m 1 -s 4 --heartbeat 1s --suspect 2s --dead 5s --dir "$base/fs/dfs" --mount "$base/fs/mnt" >/dev/null
    # shellcheck disable=SC1091 # written by dev up
    . "$base/fs/dfs/env"
    fill "$base/fs/mnt"
    "$ctl" wait healthy --quiet --timeout 5m >/dev/null
    settle
    local killed=$EPOCHREALTIME
    if [ $signal = KILL ]; then
        "$ctl" dev kill storage-1 --dir "$base/fs/dfs" >/dev/null
    else
        "$ctl" dev pause storage-1 --dir "$base/fs/dfs" >/dev/null
    fi
    python3 - "$ctl" "$base/fs/dfs" "$signal" "$killed" <<'P'
import datetime, glob, json, re, subprocess, sys, time
ctl, home, signal, killed = sys.argv[1:]
logs = glob.glob(home + "/**/meta-1*.log", recursive=True) or sys.exit("no log of meta-1 below " + home)
def at(text):
    found = None
    for line in open(logs[0], errors="replace"):
        line = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if text in line:
            found = line
    if found is None:
        return None, ""
    stamp = re.match(r"\S+", found).group(0).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(stamp).timestamp(), found
begun, samples = float(killed), []
while True:
    dead, _ = at("storage node is dead")
    done, line = at("every chunk has all its copies again")
    if dead and done and done > dead:
        break
    if time.time() - begun > 600:
        sys.exit("no full replication within 10 minutes")
    if dead:
        asked = time.time()
        status = json.loads(subprocess.run([ctl, "repair", "status", "--json"], capture_output=True, text=True).stdout)
        samples.append(((asked + time.time()) / 2, status["eta_ms"], status["lacking"]["copies"]))
    time.sleep(0.05)
copies, bytes_ = (int(re.search(key + r"=(\d+)", line).group(1)) for key in ("copies", "bytes"))
took = done - dead
worst = 0.0
for when, eta, left in samples:
    rest = done - when
    if eta is not None and left and rest > 0.2 and rest < took / 2:
        worst = max(worst, abs(eta / 1000 - rest) / rest)
print(json.dumps(dict(fs="dfs", signal=signal, copies=copies, mb=round(bytes_ / 1e6, 1), seconds=round(took, 2),
                      mb_s=round(bytes_ / 1e6 / took, 1), copies_s=round(copies / took, 1), from_failure_s=round(done - begun, 2), eta_error=round(worst, 2))))
P
    "$ctl" dev down --dir "$base/fs/dfs" >/dev/null 2>&1 || true
}

moosefs() {
    fresh
    PEER_SERVERS=4 PEER_FAST=1 scripts/peers/moosefs.sh start "$base/fs/peer"
    fill "$base/fs/peer/mnt"
    sleep 5
    settle
    local pid
    pid=$(pgrep -f "mfschunkserver -c $base/fs/peer/etc/server1.cfg" | head -n 1)
    [ $signal = KILL ] || hung=$pid
    python3 - "$pid" "$signal" "$base/fs/peer" <<'P'
import json, os, re, signal, sys, time
pid, name, base = int(sys.argv[1]), sys.argv[2], sys.argv[3]
# A copy under way has the version 0.
file = re.compile(r"chunk_([0-9A-F]{16})_([0-9A-F]{8})\.mfs$")
def chunks(server):
    for i in range(256):
        folder = f"{base}/server{server}/chunks/{i:02X}"
        if os.path.isdir(folder):
            for entry in os.scandir(folder):
                found = file.match(entry.name)
                if found and found.group(2) != "00000000":
                    yield found.group(1), entry.path
lost = dict(chunks(1))
size = sum(os.path.getsize(path) for path in lost.values())
# Three servers are left for three copies.
def whole():
    return all(lost.keys() <= {chunk for chunk, _ in chunks(server)} for server in (2, 3, 4))
log = open(f"{base}/master.log", errors="replace")
log.seek(0, os.SEEK_END)
start = time.monotonic()
os.kill(pid, getattr(signal, "SIG" + name))
begun, said = None, ""
while True:
    said += log.read()
    t = time.monotonic() - start
    if begun is None and "chunkserver disconnected" in said:
        begun = t
    if begun is not None and whole():
        break
    if t > 600:
        sys.exit("no full replication within 10 minutes")
    time.sleep(0.05)
took = t - begun
print(json.dumps(dict(fs="moosefs", signal=name, copies=len(lost), mb=round(size / 1e6, 1), seconds=round(took, 2),
                      mb_s=round(size / 1e6 / took, 1), copies_s=round(len(lost) / took, 1), from_failure_s=round(t, 2))))
P
    [ -z "$hung" ] || kill -KILL "$hung" 2>/dev/null || true
    hung=
    scripts/peers/moosefs.sh stop "$base/fs/peer"
}

for run in $(seq "$runs"); do
    say "run $run: $files files of 64 MiB, $small of 4 to 64 KiB, SIG$signal"
    dfs
    [ -z "$peer" ] || moosefs
done
