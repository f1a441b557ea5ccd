#!/usr/bin/env bash
# Boots the guest on a plain local disk and tries everything that tests and the demo count on: records, load, verify, reboot,
# power button, a clean disk afterwards. Also shows that the checks are not blind: damage done on purpose must be found.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest=$(realpath -m "${1:-$here/../target/guest}")
PATH=$PATH:/usr/sbin:/sbin
"$here/build.sh" "$guest"

work=$(mktemp -d)
mkfifo "$work/monitor"
exec 8<>"$work/monitor"
qemu=
finish() {
    if [ -n "$qemu" ]; then
        kill "$qemu" 2>/dev/null || true
        wait "$qemu" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

fail() {
    echo "smoke: FAILED: $*" >&2
    tail -n 20 "$work/console.log" >&2 || true
    exit 1
}

ask() {
    "$guest/recorder" --ask "$work/agent.sock" "$@" || fail "answer to '$*'"
}

# Value of KEY in a reply of the form `ok key=value …`.
value() {
    sed -n "s/.* $1=\([^ ]*\).*/\1/p"
}

boot() {
    : >"$work/console.log"
    qemu-system-x86_64 -accel tcg -M q35 -m 256 -smp 1 -nodefaults -no-user-config -display none \
        -kernel "$guest/vmlinux" -initrd "$guest/initrd.img" -append "console=ttyS0 quiet" \
        -chardev "file,id=console,path=$work/console.log" -serial chardev:console \
        -chardev "socket,id=agent,path=$work/agent.sock,server=on,wait=off" -device isa-serial,chardev=agent,index=1 \
        -monitor stdio <"$work/monitor" >/dev/null \
        -blockdev "driver=file,node-name=file0,filename=$work/disk.raw,discard=unmap" \
        -blockdev driver=raw,node-name=disk0,file=file0,discard=unmap \
        -device virtio-blk-pci,drive=disk0 2>"$work/qemu.log" &
    qemu=$!
}

# QEMU ends by itself within a minute, or the guest did not power off.
wait_off() {
    local tries=0
    while kill -0 "$qemu" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -le 600 ] || fail "the guest did not power off"
        sleep 0.1
    done
    wait "$qemu" || fail "QEMU ended with $?: $(cat "$work/qemu.log")"
    qemu=
}

wait_console() {
    local tries=0
    until grep -q "$1" "$work/console.log"; do
        tries=$((tries + 1))
        [ $tries -le 1200 ] || fail "no '$1' on the console"
        sleep 0.05
    done
}

check_disk() {
    e2fsck -fn "$work/disk.raw" >"$work/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$work/e2fsck.log")"
    rm -f "$work/records"
    debugfs -R "dump records $work/records" "$work/disk.raw" 2>/dev/null
    "$guest/recorder" --check "$work/records" --acked "$1" || fail "records on the disk"
}

# Saves, damages or restores one byte in each of the first 16 blocks of 64 KiB of a file of the guest, on the disk itself.
# Where they lie is on the disk only once the guest's journal was written back, as after a clean unmount.
disk_bytes() {
    local action=$1 file=$2 block place
    for block in {0..15}; do
        place=$(debugfs -R "bmap $file $((block * 16))" "$work/disk.raw" 2>/dev/null | cut -d " " -f 1)
        [ "$place" -gt 0 ] || fail "$file has no block $block"
        case $action in
            save) dd if="$work/disk.raw" of="$work/saved.$block" bs=1 skip=$((place * 4096 + 300)) count=1 status=none ;;
            damage) printf '\125' | dd of="$work/disk.raw" bs=1 seek=$((place * 4096 + 300)) conv=notrunc status=none ;;
            restore) dd if="$work/saved.$block" of="$work/disk.raw" bs=1 seek=$((place * 4096 + 300)) conv=notrunc status=none ;;
        esac
    done
}

"$here/mkdisk.sh" "$work/disk.raw" 512M 16M

echo "smoke: boot"
begun=$(date +%s%N)
boot
wait_console READY
echo "smoke: READY after $((($(date +%s%N) - begun) / 1000000)) ms"
ask ping
ask load 20 64
sleep 2
ask reset
ask load max
sleep 1
ask status
ask verify
ask load off
ask trim
if "$guest/recorder" --ask "$work/agent.sock" nonsense; then fail "an unknown command was taken"; fi
before=$(ask status | value acked)

echo "smoke: reboot goes on after the old records"
ask reboot
wait_console "READY [1-9]"
sleep 0.5
after=$(ask status | value acked)
[ "$after" -gt "$before" ] || fail "records went from $before to $after"
ask verify
acked=$(ask poweroff | value acked)
wait_off
check_disk "$acked"

echo "smoke: third boot"
boot
wait_console READY
ask ping
ask load max
sleep 1
ask load off
echo "smoke: verify sees damage on the disk under it"
for file in records load; do
    disk_bytes save "$file"
    disk_bytes damage "$file"
    if "$guest/recorder" --ask "$work/agent.sock" verify; then fail "damage in $file was not noticed"; fi
    disk_bytes restore "$file"
done
ask verify

echo "smoke: power button"
echo system_powerdown >&8
wait_off
grep -q "power button: ok" "$work/console.log" || fail "the power button was not noticed"
check_disk "$acked"

echo "smoke: the checks see damage"
if "$guest/recorder" --check "$work/records" --acked 999999999; then fail "lost records were not noticed"; fi
cp "$work/records" "$work/damaged"
printf 'x' | dd of="$work/damaged" bs=1 seek=$((99 * 512 + 300)) conv=notrunc status=none
if "$guest/recorder" --check "$work/damaged"; then fail "a changed byte was not noticed"; fi
cp "$work/records" "$work/damaged"
dd if="$work/records" of="$work/damaged" bs=512 skip=10 seek=20 count=1 conv=notrunc status=none
if "$guest/recorder" --check "$work/damaged"; then fail "a misplaced record was not noticed"; fi
echo "smoke: all good"
