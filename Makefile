# Godwit: what to type. `make help` lists it; scripts/setup.sh installs what is missing on Debian.
SHELL := /bin/bash
# rustup's cargo goes before a distribution's older one.
export PATH := $(HOME)/.cargo/bin:$(PATH)
export GODWIT_GUEST ?= $(CURDIR)/target/guest

.PHONY: help setup build guest test demo bench clean

help:
	@echo "make setup    install what is missing (Debian packages, Rust)"
	@echo "make build    dsserver, dshost, dsmove, dsctl into target/release"
	@echo "make demo     a running VM's disk moves from one datastore to another (KEEP=1 leaves it running)"
	@echo "make test     every test, with all that it needs"
	@echo "make bench    the benchmarks"
	@echo "make guest    the small Linux guest of tests and demo"
	@echo "make clean    remove target/"

setup:
	@scripts/setup.sh build guest test

build:
	@scripts/setup.sh build
	cargo build --release

guest:
	@scripts/setup.sh guest
	@guest/build.sh "$(GODWIT_GUEST)"

# All targets at once: tests asked for alone would build the dependencies again, with their own set of features.
test: setup
	cargo build --release --workspace --all-targets
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	@guest/build.sh "$(GODWIT_GUEST)"
	@scripts/conformance-tools.sh
	@scripts/run-tests.sh

demo:
	@scripts/setup.sh build guest
	cargo build --release
	@guest/build.sh "$(GODWIT_GUEST)"
	@scripts/demo.sh

bench:
	@scripts/setup.sh build
	cargo bench --package godwit-benches

clean:
	rm -rf target
