#!/usr/bin/env bash
# Installs what Godwit needs on Debian, in groups: build, guest, test. Without arguments: all three.
# Takes from apt only what is missing, starts no service and makes no database; quick when nothing is to do.
# SETUP_CHECK=1 only says what is missing and ends with 1 if anything is.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin
RUST_WANTED=1.90

# One line each: what must be there (a command, or a path with wildcards), and Debian's package for it.
build_needs="
gcc                                    gcc
/usr/lib/*/libc.a                      libc6-dev
make                                   make
pkg-config                             pkg-config
git                                    git
curl                                   curl
/etc/ssl/certs/ca-certificates.crt     ca-certificates
"
guest_needs="
gcc                                    gcc
/usr/lib/*/libc.a                      libc6-dev
qemu-system-x86_64                     qemu-system-x86
/usr/share/seabios/bios-256k.bin       seabios
/usr/lib/ipxe/qemu/efi-virtio.rom      ipxe-qemu
busybox                                busybox-static
modprobe                               kmod
cpio                                   cpio
mke2fs                                 e2fsprogs
xz                                     xz-utils
zstd                                   zstd
lz4                                    lz4
"
test_needs="
fio                                    fio
fusermount3                            fuse3
ip                                     iproute2
sqlite3                                sqlite3
python3                                python3
qemu-img                               qemu-utils
setfattr                               attr
setfacl                                acl
mount                                  mount
nsenter                                util-linux
ps                                     procps
/usr/lib/postgresql/*/bin/postgres     postgresql
"

say() {
    echo "setup: $*"
}

die() {
    echo "setup: $1" >&2
    [ -z "${2:-}" ] || echo "hint: $2" >&2
    exit 1
}

root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "not root, and there is no sudo, to run: $*" "run scripts/setup.sh as root once"
    fi
}

present() {
    case $1 in
        /*) compgen -G "$1" >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# Packages of the lists on standard input whose thing is not there, each once.
missing_packages() {
    local thing package
    while read -r thing package; do
        if [ -n "$thing" ] && ! present "$thing"; then echo "$package"; fi
    done | sort -u
}

apt() {
    root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@"
}

install_packages() {
    command -v apt-get >/dev/null || die "missing: $*, and no apt-get here" "install what these Debian packages hold by other means"
    say "installing $*"
    apt update || { say "the package lists could not be read, once more"; sleep 3; apt update; } ||
        die "the package lists could not be read" "is the network there? is /etc/apt/sources.list right?"
    forbid_services
    local log result=0
    log=$(mktemp)
    apt install --no-install-recommends -y "$@" >"$log" 2>&1 || result=$?
    allow_services
    [ "$result" = 0 ] || cat "$log" >&2
    rm -f "$log"
    [ "$result" = 0 ] || die "apt-get install ended with $result" "its own words are above"
}

# While packages are installed no service shall start and no database cluster be made: tests run their own servers.
policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.d/godwit-setup.conf
own_policy=
forbid_services() {
    trap allow_services EXIT
    if [ ! -e "$policy" ]; then
        own_policy=1
        printf '#!/bin/sh\nexit 101\n' | root tee "$policy" >/dev/null
        root chmod 755 "$policy"
    fi
    root mkdir -p "$(dirname "$cluster")"
    echo "create_main_cluster = false" | root tee "$cluster" >/dev/null
}
allow_services() {
    root rm -f "$cluster"
    root rmdir --ignore-fail-on-non-empty "$(dirname "$cluster")"
    root rmdir --ignore-fail-on-non-empty "$(dirname "$(dirname "$cluster")")"
    [ -z "$own_policy" ] || root rm -f "$policy"
    trap - EXIT
}

# The version of a cargo is new enough.
rust_is_new() {
    local version
    version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
    [ -n "$version" ] && [ "$(printf '%s\n' "$RUST_WANTED" "$version" | sort -V | head -n 1)" = "$RUST_WANTED" ]
}

need_rust() {
    if rust_is_new; then return; fi
    [ -z "${SETUP_CHECK:-}" ] || { say "missing: cargo $RUST_WANTED or later"; failed=1; return; }
    say "no cargo $RUST_WANTED or later: installing Rust into $HOME/.cargo with rustup"
    # Into a file first: half a script that came through a broken line must not run.
    local script
    script=$(mktemp)
    curl --proto '=https' --tlsv1.2 -sSf --retry 3 https://sh.rustup.rs -o "$script" ||
        die "https://sh.rustup.rs could not be fetched" "install Rust $RUST_WANTED or later by other means, then run this again"
    sh "$script" -y --no-modify-path --profile minimal --component rustfmt --component clippy --default-toolchain stable
    rm -f "$script"
    hash -r
    rust_is_new || die "$(cargo --version 2>&1): older than $RUST_WANTED" "is another cargo before $HOME/.cargo/bin in PATH?"
}

[ $# -gt 0 ] || set -- build guest test
needs=
for group in "$@"; do
    case $group in
        build) needs+=$build_needs ;;
        guest) needs+=$guest_needs ;;
        test) needs+=$test_needs ;;
        *) die "no group '$group'" "groups: build, guest, test" ;;
    esac
done

failed=
mapfile -t missing < <(missing_packages <<<"$needs")
if [ ${#missing[@]} -gt 0 ] && [ -n "${SETUP_CHECK:-}" ]; then
    say "missing: ${missing[*]}"
    failed=1
elif [ ${#missing[@]} -gt 0 ]; then
    # Twice, as a package can push out one of another release that was there: qemu-system-x86 does so with a
    # backported qemu-utils.
    for _ in 1 2; do
        install_packages "${missing[@]}"
        mapfile -t missing < <(missing_packages <<<"$needs")
        [ ${#missing[@]} -gt 0 ] || break
    done
    [ ${#missing[@]} = 0 ] || die "still missing after the installation: ${missing[*]}"
fi

for group in "$@"; do
    case $group in
        build) need_rust ;;
        guest) [ -n "${SETUP_CHECK:-}" ] || "$here/../guest/fetch-kernel.sh" "${GODWIT_GUEST:-$here/../target/guest}" ;;
        test) [ -c /dev/fuse ] || say "there is no /dev/fuse: mounts will fail (in a container: --device /dev/fuse --cap-add SYS_ADMIN)" ;;
    esac
done
[ -z "$failed" ]
