#!/usr/bin/env bash
# The demo: two datastore servers, a host, a running VM; its disk moves from one datastore to the other.
#   scripts/demo.sh            runs it and cleans up          (`make demo` builds what it needs first)
#   KEEP=1 scripts/demo.sh     leaves all of it running and says how to play on
#   scripts/demo.sh stop DIR   ends what KEEP=1 left and removes DIR
# DEMO_FILL (512M) is how much the disk holds, DEMO_LOAD (8) the MiB/s that the guest overwrites besides its records.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guest=${GODWIT_GUEST:-$here/target/guest}
bin=${GODWIT_BIN:-$here/target/release}
# shellcheck source=scripts/guest.sh
. "$here/scripts/guest.sh"

dir=
step_number=0
step() {
    step_number=$((step_number + 1))
    printf '\n%s== %d. %s%s\n' "$bold" "$step_number" "$*" "$plain"
}
bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi

# Shows a command as it could be typed.
show() {
    local word line='$'
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=,@%+-]*) line+=" '$word'" ;;
            *) line+=" $word" ;;
        esac
    done
    echo "$line"
}

run() {
    show "$@"
    "$@"
}

die() {
    echo "demo: $*" >&2
    exit 1
}

# Until COMMAND succeeds, at most SECONDS.
wait_until() {
    local seconds=$1 what=$2 tries=0
    shift 2
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $((tries / 10)) -lt "$seconds" ] || die "waited $seconds s in vain for: $what"
        sleep 0.1
    done
}

ended() {
    ! kill -0 "$1" 2>/dev/null
}

# daemon NAME COMMAND…: runs it in a session of its own (so that Ctrl-C is ours), log and pid in the scratch directory.
daemon() {
    local name=$1
    shift
    show "$@"
    setsid "$@" >"$dir/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}

# stop_process NAME: asks it to end, and makes it after a while.
stop_process() {
    local file=$dir/$1.pid pid tries=0
    [ -s "$file" ] || return 0
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || { rm -f "$file"; return 0; }
    until ended "$pid"; do
        tries=$((tries + 1))
        [ $tries -ne 100 ] || { echo "demo: $1 (pid $pid) does not end, killing it" >&2; kill -9 "$pid" 2>/dev/null || true; }
        sleep 0.1
    done
    rm -f "$file"
}

clean_up() {
    trap - EXIT INT TERM
    [ -n "$dir" ] && [ -d "$dir" ] || return 0
    stop_process qemu
    stop_process hostA
    if mountpoint -q "$dir/vmfs" 2>/dev/null; then umount -l "$dir/vmfs" || fusermount3 -uz "$dir/vmfs" || true; fi
    stop_process ds1
    stop_process ds2
    rm -rf --one-file-system "$dir"
}

# When the demo ends before its time: what the programs last said.
on_exit() {
    local result=$?
    if [ $result -ne 0 ] && [ $result -lt 128 ] && [ -n "$dir" ] && [ -d "$dir" ]; then
        echo >&2
        echo "demo: failed; the last words of each program:" >&2
        tail -n 8 "$dir"/*.log "$dir"/vmfs/*/vm42/console.log 2>/dev/null >&2 || true
    fi
    clean_up
    exit $result
}

# json KEY: the first value of that key on standard input.
json() {
    tr -d '\n' | grep -o "\"$1\": *\(\"[^\"]*\"\|[^,}]*\)" | head -n 1 | sed 's/^"[^"]*": *//; s/^"//; s/"$//'
}

human() {
    awk -v bytes="$1" 'BEGIN { if (bytes >= 2^30) printf "%.2f GiB", bytes / 2^30; else printf "%.1f MiB", bytes / 2^20 }'
}

ms() {
    awk -v us="$1" 'BEGIN { printf "%.1f ms", us / 1000 }'
}

seconds() {
    awk -v s="$1" 'BEGIN { printf "%.1f s", s }'
}

failures=0
# report TEXT COMMAND…: a line that says whether COMMAND holds.
report() {
    local text=$1
    shift
    if "$@" >/dev/null 2>&1; then
        echo "  ok      $text"
    else
        echo "  FAILED  $text"
        failures=$((failures + 1))
    fi
}

# The VM's disk as QEMU has it open now.
open_disk() {
    find "/proc/$1/fd" -type l -exec readlink {} + 2>/dev/null | grep '\.raw$' | sort -u | head -n 1
}

server_address() {
    cat "$dir/$1/address"
}

start_servers() {
    local name
    for name in ds1 ds2; do
        mkdir "$dir/$name"
        daemon "$name" dsserver run --name "$name" --path "$dir/$name" --listen 127.0.0.1:0
    done
    for name in ds1 ds2; do wait_until 30 "dsserver $name (see its log)" test -s "$dir/$name/address"; done
}

start_host() {
    mkdir "$dir/vmfs"
    daemon hostA dshost run --name hostA --mount "$dir/vmfs" --run "$dir/run" \
        --datastore "ds1=$(server_address ds1)" --datastore "ds2=$(server_address ds2)"
    export GODWIT_RUN=$dir/run
    wait_until 30 "dshost (see its log)" dsctl status
    run dsctl status
}

start_vm() {
    "$here/guest/mkdisk.sh" "$dir/disk.raw" "${DEMO_SIZE:-2G}" "${DEMO_FILL:-512M}"
    run dsctl vm create vm42 --datastore ds1 --memory 256MiB --disk-from "$dir/disk.raw" --serial-socket \
        --kernel "$guest/vmlinux" --initrd "$guest/initrd.img" --append "$guest_append"
    rm "$dir/disk.raw"
    run dsctl vm start vm42
    dsctl --json vm show vm42 >"$dir/vm.json"
    pid=$(json pid <"$dir/vm.json")
    socket=$(json serial_socket <"$dir/vm.json")
    echo "$pid" >"$dir/qemu.pid"
    guest_ask "$socket" ping >/dev/null
    echo "the guest is up: it writes numbered, checksummed records, each with fsync; QEMU (pid $pid) has $(open_disk "$pid") open"
}

# Longest gap between two acknowledged records in three quiet seconds, for comparison.
measure_before() {
    if [ "${DEMO_LOAD:-8}" != 0 ]; then guest_ask "$socket" load "${DEMO_LOAD:-8}" >/dev/null; fi
    sleep 2
    guest_ask "$socket" reset >/dev/null
    sleep 3
    local status
    status=$(guest_ask "$socket" status)
    gap_before=$(guest_value gap_us <<<"$status")
    acked_before=$(guest_value acked <<<"$status")
    guest_ask "$socket" reset >/dev/null
}

show_report() {
    local move now=$1 gap_after acked_after verified
    move=$(dsctl --json move show vm42)
    gap_after=$(guest_value gap_us <<<"$now")
    acked_after=$(guest_value acked <<<"$now")
    echo "  move time                          $(seconds "$(json seconds <<<"$move")")"
    echo "  copied                             $(human "$(json bytes_copied <<<"$move")")"
    echo "  written to both sides meanwhile    $(human "$(json bytes_mirrored <<<"$move")")"
    echo "  guest I/O held at the switchover   $(json pause_ms <<<"$move" | awk '{ printf "%.1f ms", $1 }')"
    echo "  longest gap between two records    $(ms "$gap_after") during the move; $(ms "$gap_before") in 3 s before it"
    echo "  records acknowledged meanwhile     $((acked_after - acked_before))"
    echo
    verified=$(guest_ask "$socket" verify) || true
    report "the guest reread $(guest_value checked <<<"$verified" | grep . || echo "?") records: none missing, none changed" test -n "$verified"
    report "the guest reread $(guest_value load_checked <<<"$verified" | grep . || echo "?") blocks of its other writes: all as written last" test -n "$verified"
    report "QEMU is the same process as before (pid $pid)" kill -0 "$pid"
    report "QEMU has $(open_disk "$pid") open" test "$(dirname "$(open_disk "$pid")")" = "$dir/vmfs/ds2/vm42"
    report "the old path $dir/vmfs/ds1/vm42 is gone" test ! -e "$dir/vmfs/ds1/vm42"
}

shut_down_and_check() {
    local disk last acked result=0
    disk=$(open_disk "$pid")
    last=$(guest_ask "$socket" poweroff) || true
    acked=$(guest_value acked <<<"$last")
    wait_until 60 "QEMU to end" ended "$pid"
    rm -f "$dir/qemu.pid"
    guest_check_disk "$disk" "${acked:-0}" >"$dir/check.log" 2>&1 || result=1
    report "after its shutdown: e2fsck clean, all records on the disk up to the last acknowledged one (${acked:-?})" test $result = 0
    [ $result = 0 ] || cat "$dir/check.log"
}

say_how_to_play_on() {
    trap - EXIT INT TERM
    cat <<END

It is all still running. To play on:
  export GODWIT_RUN=$dir/run PATH=$bin:\$PATH
  dsctl status; dsctl vm show vm42
  dsmove vm42 --to ds1
  $guest/recorder --ask $socket status        (help lists what the guest understands)
To end it:
  scripts/demo.sh stop $dir
END
}

if [ "${1:-}" = stop ]; then
    dir=$(realpath "${2:?usage: scripts/demo.sh stop DIR}")
    [ -e "$dir/.godwit-demo" ] || die "$dir is no demo's directory"
    clean_up
    exit 0
fi

for program in dsserver dshost dsmove dsctl; do
    [ -x "$bin/$program" ] || die "$bin/$program is missing (make build)"
done
[ -s "$guest/vmlinux" ] || die "no guest in $guest (make guest)"
export PATH=$bin:$PATH

dir=$(mktemp -d "${TMPDIR:-/tmp}/godwit-demo.XXXXXX")
touch "$dir/.godwit-demo"
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
pid='' socket='' gap_before=0 acked_before=0

step "Two datastore servers"
start_servers
step "A host that mounts both, below $dir/vmfs"
start_host
step "A VM on ds1"
start_vm
measure_before
step "Its disk moves to ds2 while it runs"
run dsmove vm42 --to ds2
now=$(guest_ask "$socket" status)
step "Report"
show_report "$now"
if [ -n "${KEEP:-}" ]; then
    say_how_to_play_on
else
    shut_down_and_check
fi
[ "$failures" = 0 ] || die "$failures checks failed"
