#!/usr/bin/env bash
# Makes the guest that tests and the demo boot, in OUTDIR:
#   vmlinux       Debian's cloud kernel, uncompressed; QEMU boots it by PVH (-kernel), which saves the unpacking in the guest
#   initrd.img    busybox, the virtio drivers, the recorder
#   recorder      the same static program for the host: asks a guest, checks a records file
# Each is made again only when its inputs changed; a second run does nothing. Several runs at once are fine.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(realpath -m "${1:-$here/../target/guest}")
mkdir -p "$out"
exec 9>"$out/.lock"
flock 9

drivers="virtio_pci virtio_mmio virtio_blk virtio_net button evdev"
cflags="-static -O2 -s -std=c11 -Wall -Wextra -Werror -pthread"

"$here/fetch-kernel.sh" "$out" 9>&-

kernel_key=$({ stat -c '%s %Y %i' "$out/kernel.deb"; cat "$here/build.sh"; } | sha256sum | cut -d ' ' -f 1)
guest_key=$({ echo "$kernel_key"; cat "$here/init" "$here"/recorder/*.[ch]; stat -Lc '%s %Y' "$(command -v busybox)"; } | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$out/.key" 2>/dev/null)" = "$guest_key" ] && [ -s "$out/vmlinux" ] && [ -s "$out/initrd.img" ] && [ -x "$out/recorder" ]; then
    exit 0
fi
rm -f "$out/.key"

work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Field of the kernel's boot header (Documentation/x86/boot.rst): offset, size in bytes.
boot_field() {
    od -An -v -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '
}

# The payload of a bzImage, unpacked: its place stands in the boot header; its last four bytes are the unpacked length.
unpack_kernel() {
    local image=$1 start length magic
    start=$((($(boot_field "$image" $((0x1f1)) 1) + 1) * 512 + $(boot_field "$image" $((0x248)) 4)))
    length=$(($(boot_field "$image" $((0x24c)) 4) - 4))
    # Whole at once into a file: a reader that ends early would break the pipe.
    tail -c +$((start + 1)) "$image" >"$work/tail"
    head -c "$length" "$work/tail" >"$work/payload"
    rm "$work/tail"
    magic=$(od -An -v -t x1 -N 4 "$work/payload" | tr -d ' ')
    case $magic in
        02214c18) lz4 -qdc "$work/payload" ;;
        28b52ffd) zstd -qdc "$work/payload" ;;
        fd377a58) xz -qdc "$work/payload" ;;
        1f8b*) gzip -qdc "$work/payload" ;;
        *) echo "guest: the kernel is packed in an unknown way ($magic)" >&2; return 1 ;;
    esac
}

if [ "$(cat "$out/.kernel-key" 2>/dev/null)" != "$kernel_key" ]; then
    echo "guest: unpacking the kernel"
    rm -rf "$out/.kernel-key" "$out/modules"
    dpkg -x "$out/kernel.deb" "$work/kernel"
    unpack_kernel "$work"/kernel/boot/vmlinuz-* >"$work/vmlinux"
    [ "$(head -c 4 "$work/vmlinux" | od -An -t x1 | tr -d ' ')" = 7f454c46 ] || { echo "guest: what was unpacked is no kernel" >&2; exit 1; }

    version=$(basename "$work"/kernel/lib/modules/*)
    depmod -b "$work/kernel" "$version"
    mkdir "$work/modules"
    for driver in $drivers; do
        modprobe -d "$work/kernel" -S "$version" --show-depends "$driver"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/paths"
    while read -r path; do
        cp "$path" "$work/modules/"
        basename "$path"
    done <"$work/paths" >"$work/modules/order"
    # Debian 13 packs its modules; busybox's insmod doesn't unpack them.
    if compgen -G "$work/modules/*.ko.xz" >/dev/null; then
        xz -d "$work"/modules/*.ko.xz
        sed -i 's/\.xz$//' "$work/modules/order"
    fi
    mv "$work/modules" "$out/modules"
    mv "$work/vmlinux" "$out/vmlinux"
    echo "$kernel_key" >"$out/.kernel-key"
fi

echo "guest: building the recorder and the initrd"
# shellcheck disable=SC2086
gcc $cflags "$here"/recorder/*.c -o "$work/recorder"

root=$work/root
mkdir -p "$root"/{bin,dev,proc,data,modules}
cp "$here/init" "$root/init"
chmod 755 "$root/init"
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$work/recorder" "$root/bin/recorder"
cp "$out"/modules/* "$root/modules/"
# Not packed: unpacking under emulation takes longer than reading three megabytes.
(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --owner 0:0) >"$work/initrd.img"

mv "$work/recorder" "$out/recorder"
mv "$work/initrd.img" "$out/initrd.img"
echo "$guest_key" >"$out/.key"
echo "guest: ready in $out"
