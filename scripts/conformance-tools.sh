#!/usr/bin/env bash
# Installs the programs that judge the mount in tests/tests/conformance.rs, from crates.io into target/tools.
# Quick when they are there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$HOME/.cargo/bin:$PATH

# name version
tools="
fsx 0.3.2
pjdfstest 0.2.2
"
root=$PWD/target/tools

say() {
    echo "conformance-tools: $*"
}

# Their own speed matters little, and compiled without optimisation they are there in about half the time.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=true
while read -r name version; do
    [ -n "$name" ] || continue
    if [ "$("$root/bin/$name" --version 2>/dev/null)" = "$name $version" ]; then continue; fi
    say "installing $name $version into target/tools"
    CARGO_TARGET_DIR=$root/build cargo install --quiet --locked --force --root "$root" "$name@$version" </dev/null || {
        say "$name $version could not be installed" >&2
        echo "hint: the words of cargo are above; crates.io must be reachable once" >&2
        exit 1
    }
done <<<"$tools"
rm -rf "$root/build"
