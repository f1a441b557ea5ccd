# Sourced: talking to the guest of guest/ and checking its disk. Needs $guest, the directory that guest/build.sh filled.
# shellcheck shell=bash disable=SC2034,SC2154

# The kernel's arguments: console for the log, and how many records per second.
guest_append="console=ttyS0 quiet"

# guest_ask SOCKET COMMAND…: prints the answer, without its `ok`; ends with 1 when it begins with `err`.
guest_ask() {
    local socket=$1 answer
    shift
    answer=$("$guest/recorder" --ask "$socket" --timeout "${GUEST_TIMEOUT:-120}" "$@") || {
        echo "guest: '$*' was answered: $answer" >&2
        return 1
    }
    echo "${answer#ok}"
}

# guest_value KEY: of an answer `key=value …` on standard input.
guest_value() {
    sed -n "s/.* $1=\([^ ]*\).*/\1/p" | head -n 1
}

# guest_check_disk DISK ACKED: the disk of a guest that is off: e2fsck finds nothing, all records are there, ACKED among them.
# Prints what it found; the figures of the records come last.
guest_check_disk() {
    local disk=$1 acked=$2 work result=0
    work=$(mktemp -d)
    # The directory of the sbin tools is not in everybody's path.
    local PATH=$PATH:/usr/sbin:/sbin
    if ! e2fsck -fn "$disk" >"$work/e2fsck" 2>&1; then
        cat "$work/e2fsck"
        result=1
    fi
    debugfs -R "dump records $work/records" "$disk" 2>"$work/debugfs"
    "$guest/recorder" --check "$work/records" --acked "$acked" || { cat "$work/debugfs"; result=1; }
    rm -rf "$work"
    return "$result"
}
