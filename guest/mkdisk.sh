#!/usr/bin/env bash
# Makes FILE a sparse raw disk of SIZE with an empty ext4; with FILL it holds a file of that many bytes that do not
# compress, so that a move has something to copy. Sizes as truncate(1) takes them: 512M, 1G.
set -euo pipefail

usage="usage: guest/mkdisk.sh FILE SIZE [FILL]"
file=${1:?$usage} size=${2:?$usage} fill=${3:-}
PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
if [ -n "$fill" ]; then
    truncate -s "$fill" "$work/size"
    head -c "$(stat -c %s "$work/size")" /dev/urandom >"$work/root/fill"
fi

rm -f "$file"
truncate -s "$size" "$file"
# Everything initialised now, so that no background thread of the guest writes; few inodes, as the guest makes few files.
mke2fs -q -F -t ext4 -m 0 -i 262144 -L godwit -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -d "$work/root" "$file"
