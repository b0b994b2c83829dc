#!/usr/bin/env bash
# A cluster in containers, from the programs built here.
#
#   scripts/run-cluster.sh [-m METAS] [-s STORAGES] [-c] up [-d] [--build]
#   scripts/run-cluster.sh down [-v] | logs [-f] [NAME...] | status
#
#   -m N      metadata nodes dfs-meta-1.. (default 3)         up       start, wait until the cluster is healthy
#   -s N      storage nodes dfs-storage-1.. (default 3)       -d       leave it running in the background
#   -c        a container dfs-client with a mount             --build  build the programs and the image first
#             at /mnt/dfs                                     down -v  remove the volumes with the data as well
#
# The base image is debian or ubuntu of this machine's release, so that the programs find the C library that they were built
# with: an image that is here already, else one that can be pulled, else one made with debootstrap.
. "$(dirname "$0")/lib.sh"

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0"; }

metas=3
storages=3
client=
while getopts m:s:ch flag; do
    case $flag in
    m) metas=$OPTARG ;;
    s) storages=$OPTARG ;;
    c) client=1 ;;
    h) usage && exit ;;
    *) usage >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))
verb=${1:-}
[ -n "$verb" ] || { usage >&2 && exit 2; }
shift
for number in "$metas" "$storages"; do
    [[ $number =~ ^[1-9][0-9]?$ ]] || die "-m and -s take a number from 1 to 99, not $number"
done

case $metas in
1 | 3 | 5) ;;
*) die "-m takes 1, 3 or 5, not $metas: that many metadata nodes form a cluster" ;;
esac
replication=$((storages < 3 ? storages : 3))

work=${DFS_CLUSTER_DIR:-$TARGET/cluster}
image=dfs:local
project=dfs
mount_in_client=/mnt/dfs

compose() { "${COMPOSE[@]}" --project-name "$project" --file "$work/docker-compose.yml" "$@"; }

meta_addresses() {
    local i list=
    for i in $(seq "$metas"); do list+=,dfs-meta-$i:4001; done
    printf %s "${list#,}"
}

peers() {
    local i list=
    for i in $(seq "$metas"); do list+=,meta-$i=dfs-meta-$i:4001; done
    printf %s "${list#,}"
}

# ---- the base image

release() { (. /etc/os-release && printf '%s %s' "$ID" "${VERSION_CODENAME:-}"); }

find_base() {
    local id codename name
    read -r id codename <<<"$(release)"
    case $id in
    debian | ubuntu) [ -n "$codename" ] || die "/etc/os-release names no release" ;;
    *) die "this machine runs $id: images are made on Debian or Ubuntu only, whose C library the image then has" ;;
    esac
    for name in "$id:$codename-slim" "$id:$codename" "dfs-base:$codename"; do
        ! docker image inspect "$name" >/dev/null 2>&1 || { base=$name && return; }
    done
    for name in "$id:$codename-slim" "$id:$codename"; do
        ! timeout 90 docker pull -q "$name" >/dev/null 2>&1 || { base=$name && return; }
    done
    base=dfs-base:$codename
    make_base "$codename"
}

# The mirror that apt uses here, for the main archive of this release.
# shellcheck disable=SC2016 # the dollars are for apt-get
mirror() {
    apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -v codename="$1" '$2 == codename && $3 == "main" { print $1; exit }'
}

make_base() {
    local codename=$1 tarball=$TARGET/cache/base-$1.tar root url
    say "No $codename image here and none to be pulled: making one with debootstrap (once)"
    if [ ! -s "$tarball" ]; then
        need_pkg debootstrap debootstrap
        url=$(mirror "$codename")
        mkdir -p "$(dirname "$tarball")"
        root=$(mktemp -d)
        as_root debootstrap --variant=minbase "$codename" "$root" ${url:+"$url"} >"$work/debootstrap.log" 2>&1 ||
            die "debootstrap failed: $(tail -n 3 "$work/debootstrap.log")"
        as_root rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists" "$root/usr/share/doc" "$root/usr/share/man"
        as_root tar -C "$root" -c . >"$tarball.new"
        mv "$tarball.new" "$tarball"
        as_root rm -rf "$root"
    fi
    docker import "$tarball" "$base" >/dev/null
}

# ---- the image of the programs

make_image() {
    say "Building the programs"
    need_toolchain
    build
    find_base
    say "Building the image $image from $base"
    local context=$work/image program
    rm -rf "$context"
    mkdir -p "$context/bin"
    for program in dfs-meta dfs-storage mount-dfs dfsctl; do
        # The copy goes without debug information: a fifth of the size.
        if have strip; then strip -o "$context/bin/$program" "$BIN/$program"; else cp "$BIN/$program" "$context/bin/"; fi
    done
    ln -s mount-dfs "$context/bin/mount.dfs"
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM $base
COPY bin/ /usr/local/bin/
DOCKERFILE
    docker build --quiet --tag "$image" "$context" >"$work/build.log" 2>&1 || die "docker build failed: $(tail -n 5 "$work/build.log")"
    docker run --rm --network none "$image" dfsctl --version >/dev/null ||
        die "programs built here do not run in $base: is its C library older than this machine's?"
}

# ---- the compose file

# service NAME: the beginning that every service has.
service() {
    cat <<YAML
  $1:
    image: $image
    container_name: $1
    hostname: $1
    restart: unless-stopped
    stop_grace_period: 15s
    networks: [dfs]
YAML
}

write_compose() {
    local i
    {
        printf 'services:\n'
        for i in $(seq "$metas"); do
            service "dfs-meta-$i"
            cat <<YAML
    command: [dfs-meta, --name, meta-$i, --listen, "0.0.0.0:4001", --advertise, "dfs-meta-$i:4001",
              --data-dir, /data, --peers, "$(peers)", --replication, "$replication"]
    volumes: ["meta-$i:/data"]
YAML
        done
        for i in $(seq "$storages"); do
            service "dfs-storage-$i"
            cat <<YAML
    command: [dfs-storage, --name, storage-$i, --listen, "0.0.0.0:4000", --advertise, "dfs-storage-$i:4000",
              --data-dir, /data, --meta, "$(meta_addresses)", --rack, rack-$i]
    volumes: ["storage-$i:/data"]
YAML
        done
        if [ -n "$client" ]; then
            service dfs-client
            cat <<YAML
    command: [sh, -c, "mkdir -p $mount_in_client && exec mount.dfs $(meta_addresses) $mount_in_client -f -o allow_other"]
    environment: {DFS_META_ADDRS: "$(meta_addresses)"}
    devices: ["/dev/fuse:/dev/fuse"]
    cap_add: [SYS_ADMIN]
    security_opt: ["apparmor:unconfined"]
YAML
        fi
        printf 'networks:\n  dfs: {}\nvolumes:\n'
        for i in $(seq "$metas"); do printf '  meta-%s: {}\n' "$i"; done
        for i in $(seq "$storages"); do printf '  storage-%s: {}\n' "$i"; done
    } >"$work/docker-compose.yml"
}

# ---- waiting

in_cluster() { docker exec dfs-meta-1 dfsctl --meta "$(meta_addresses)" "$@"; }

alive() { in_cluster nodes --json 2>/dev/null | grep -oE '"state": ?"alive"' | wc -l || true; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        if [ $SECONDS -ge $limit ]; then
            compose ps >&2 || true
            compose logs --tail=15 >&2 || true
            die "$what: not in time; see scripts/run-cluster.sh logs"
        fi
        sleep 0.3
    done
}

all_alive() { [ "$(alive)" -ge "$storages" ]; }
mount_answers() { docker exec dfs-client timeout 5 sh -c "mountpoint -q $mount_in_client && ls $mount_in_client" >/dev/null 2>&1; }

up() {
    local detach='' make=''
    while [ $# -gt 0 ]; do
        case $1 in
        -d) detach=1 ;;
        --build) make=1 ;;
        *) die "up takes -d and --build, not $1" ;;
        esac
        shift
    done
    mkdir -p "$work"
    if [ -n "$make" ] || ! docker image inspect "$image" >/dev/null 2>&1; then make_image; fi
    [ -z "$client" ] || [ -c /dev/fuse ] || die "a client container needs /dev/fuse: modprobe fuse"
    write_compose
    ((replication == 3)) || note "$storages storage nodes cannot hold 3 copies: replication is $replication"
    say "Starting $metas metadata and $storages storage containers${client:+ and a client}"
    compose up -d --remove-orphans
    wait_for 60 "$storages storage nodes are alive" all_alive
    in_cluster wait healthy --timeout 60s
    [ -z "$client" ] || wait_for 30 "the client's mount answers" mount_answers
    in_cluster status
    say "The cluster runs"
    [ -z "$client" ] || note "its files          docker exec -it dfs-client ls $mount_in_client"
    note "its health         docker exec dfs-meta-1 dfsctl --meta $(meta_addresses) status"
    note "its end            scripts/run-cluster.sh down"
    [ -n "$detach" ] || exec "${COMPOSE[@]}" --project-name "$project" --file "$work/docker-compose.yml" logs -f
}

need_docker || die "no Docker engine"
case $verb in
up) up "$@" ;;
down | logs)
    [ -f "$work/docker-compose.yml" ] || die "no cluster was started from here ($work is empty)"
    compose "$verb" "$@"
    ;;
status) docker exec dfs-meta-1 dfsctl --meta dfs-meta-1:4001 status "$@" ;;
*) usage >&2 && exit 2 ;;
esac
