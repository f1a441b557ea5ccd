#!/usr/bin/env bash
# Runs every test of the workspace, with cargo-nextest where it is installed (its profile is in .config/nextest.toml).
# Arguments go to the runner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --release --workspace "$@"
fi
# Plain cargo test ends each test program with its own line; the sum of them closes the run. Tests that boot machines
# or mount would get in each other's way in great numbers.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
result=0
RUST_TEST_THREADS=${RUST_TEST_THREADS:-2} cargo test --release --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || result=$?
awk '$1 == "test" && $2 == "result:" { passed += $4; failed += $6; ignored += $8 }
     END { printf "\ntest result: %s. %d passed; %d failed; %d ignored, of all test programs\n", failed ? "FAILED" : "ok", passed, failed, ignored }' "$log"
exit "$result"
