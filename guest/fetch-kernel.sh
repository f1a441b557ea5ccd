#!/usr/bin/env bash
# Puts the Debian package of the cloud kernel at OUTDIR/kernel.deb, by download only: nothing is installed. Does nothing
# when it is there. GODWIT_KERNEL_DEB=FILE takes that package instead of the network's.
set -euo pipefail

out=$(realpath -m "${1:?usage: guest/fetch-kernel.sh OUTDIR}")
mkdir -p "$out"
[ -s "$out/kernel.deb" ] && exit 0

work=$(mktemp -d "$out/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

if [ -n "${GODWIT_KERNEL_DEB:-}" ]; then
    cp "$GODWIT_KERNEL_DEB" kernel.deb
    mv kernel.deb "$out/kernel.deb"
    exit 0
fi

download() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || return 1
    echo "guest: downloading $package"
    # As root, apt wants to download as another user, who can't write here; it says so at length and does without.
    apt-get download -q "$package" >apt.log 2>&1
}

if ! download; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    echo "guest: reading the package lists"
    "${as_root[@]}" apt-get update -qq || "${as_root[@]}" apt-get update -qq
    download || {
        cat apt.log >&2 || true
        echo "guest: no package linux-image-cloud-amd64 to be had here (it is Debian's)" >&2
        echo "hint: download the package on another machine and set GODWIT_KERNEL_DEB=FILE" >&2
        exit 1
    }
fi
mv ./linux-image-*.deb "$out/kernel.deb"
