# Everything runs as root on Debian 12 and installs what it needs. See README.md.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

AGENT_TARGET := x86_64-unknown-linux-gnu
AGENT := target/$(AGENT_TARGET)/release/agent
LAB := tests/lab/lab
REPORTS := target/reports
# What `make bench` measures: the usual subjects, or these of tests/bench/bench.py.
BENCH :=
# The fuzz targets that `make fuzz` runs: all, or these of tests/fuzz/targets.
FUZZ :=
# More runtimes for it, and more virtual machine monitors (tests/bench/vmms.py), each as NAME=PATH.
BENCH_PEERS := runc=/usr/sbin/runc crun=/usr/bin/crun
BENCH_VMMS := qemu=tests/bench/vmm-qemu
# Programs without a C library.
FREESTANDING := gcc -Wall -static -no-pie -fno-pie -nostdlib -ffreestanding -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--build-id=none

.PHONY: build guest tools demo test quick unit verbs e2e counts parity fuzz bench profile lint lab clean

build: guest  ## The one binary, target/release/chiton
	cargo build --locked --release --package runtime

# A file that has not changed keeps its time stamp, so that cargo has nothing to do. The agent is copied into guest memory at every
# start: size is time, so it differs from the release profile in opt-level. It is built in that profile's directory all the same: what
# macros and build scripts are made of is compiled once for it and the runtime.
guest: tools  ## What the binary embeds: the guest's kernel and its initramfs
	mkdir -p target/guest
	kernel=$$(guest-kernel/build.sh); cmp -s "$$kernel" target/guest/vmlinux || cp "$$kernel" target/guest/vmlinux
	CARGO_PROFILE_RELEASE_OPT_LEVEL=s RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
		cargo build --locked --release --package agent --target $(AGENT_TARGET)
	agent/initramfs.sh $(AGENT) target/guest/initramfs

tools:  ## The compilers and libraries of this list, if they are not there
	tests/tools

demo: build  ## Runs a real program in a container, in its own machine
	rootfs=$$(tests/rootfs/build.sh --variant demo); \
	$(LAB) run --timeout 300 -- /usr/bin/python3 tests/demo/demo.py target/release/chiton "$$rootfs"

test: tools  ## Every test
	tests/stages $(REPORTS) $(MAKE) build lint unit e2e counts

quick: tools  ## What a change is tried with: lint, unit tests, and every verb once on a real guest
	tests/stages $(REPORTS) $(MAKE) lint unit verbs

unit: tools  ## What needs no guest: devices, file server, planning, state
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --workspace; else cargo test --locked --workspace; fi

verbs: guest  ## Every verb once, of the binary that the unit tests are built with
	cargo test --locked --workspace --no-run
	rootfs=$$(tests/rootfs/build.sh --variant demo); \
	tests/e2e/run $(CURDIR)/target/debug/chiton "$$rootfs" $(CURDIR)/$(REPORTS) tests/e2e/test_quick.py

e2e: build  ## vCPU exits on a real KVM, then real guests, driven as callers do
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='$(CURDIR)/$(LAB) run --timeout 300 --bind $(CURDIR) --' \
		cargo test --locked --package vmm --test kvm
	rootfs=$$(tests/rootfs/build.sh --variant full); \
	tests/e2e/run $(CURDIR)/target/release/chiton "$$rootfs" $(CURDIR)/$(REPORTS) $(E2E)

counts: build target/bench/fileops target/bench/peer  ## That a start, a file's life, a write and a round trip cost no more than tests/bench/baseline.json says
	mkdir -p $(REPORTS); rootfs=$$(tests/rootfs/build.sh --variant demo); \
	CHITON_LAB=lab $(LAB) run --count --memory 4G --tmp 2G --timeout 400 --out $(CURDIR)/$(REPORTS) -- \
		/usr/bin/python3 -B tests/bench/regression.py tests/bench/baseline.json $(REPORTS)/counts.json "$$rootfs" target/bench target/release/chiton

parity: build  ## The tests that runc has to pass as well, run with Debian's runc in the lab
	rootfs=$$(tests/rootfs/build.sh --variant full); export E2E_RUNTIMES=runc; \
	tests/e2e/run $(CURDIR)/target/release/chiton "$$rootfs" $(CURDIR)/$(REPORTS) tests/e2e -k runc

fuzz: tools  ## Each fuzz target for FUZZ_SECONDS (60), or those of FUZZ='fs vsock'
	tests/fuzz/run $(FUZZ)

target/bench/%: tests/bench/%.c tests/bench/marks.h
	mkdir -p target/bench
	gcc -O2 -Wall -static -o $@ $<

bench: build target/bench/fileops target/bench/load target/bench/peer  ## What containers cost with chiton, runc and crun, in instructions and VM exits; BENCH='files memory' for some subjects
	mkdir -p $(REPORTS) target/bench; rootfs=$$(tests/rootfs/build.sh --variant demo); \
	$(FREESTANDING) -O2 -o target/bench/init tests/bench/init.c; \
	$(FREESTANDING) -O2 -m32 -march=i686 -mgeneral-regs-only -Wl,-Ttext=0x200000,--section-start=.start=0x1ff000 \
		-DKERNEL="\"$$(readelf -h target/guest/vmlinux | sed -n 's/.*Entry point address: *//p')\"" -o target/bench/pvh tests/bench/pvh.c; \
	CHITON_LAB=lab $(LAB) run --count --memory 6G --tmp 3G --timeout 3600 --out $(CURDIR)/$(REPORTS) -- \
		/usr/bin/python3 -B tests/bench/bench.py --only '$(BENCH)' --kernel target/guest/vmlinux $(BENCH_VMMS:%=--vmm %) \
		$(CURDIR)/$(REPORTS)/bench.json "$$rootfs" target/bench target/release/chiton $(BENCH_PEERS)
	@echo 'bytes:'; stat --format '   %s %n' target/guest/vmlinux $(AGENT) target/release/chiton

profile: build  ## Where the instructions of a start go, by function
	mkdir -p $(REPORTS); kernel=$$(guest-kernel/build.sh); map=$${kernel%/*}/System.map; rootfs=$$(tests/rootfs/build.sh --variant demo); \
	gcc -O2 -Wall -fPIC -shared -fvisibility=hidden -o $(REPORTS)/profile.so tests/bench/profile.c; \
	CHITON_LAB=lab $(LAB) run --count --memory 3G --timeout 1200 --out $(CURDIR)/$(REPORTS) \
		--plugin $(CURDIR)/$(REPORTS)/profile.so,out=$(CURDIR)/$(REPORTS)/profile.txt -- \
		/usr/bin/python3 -B tests/bench/profile.py run $(CURDIR)/$(REPORTS) "$$rootfs" target/release/chiton; \
	/usr/bin/python3 -B tests/bench/profile.py show $(REPORTS) "$$map" target/release/chiton $(AGENT)

lint: tools  ## Imports without circles, files and functions of a readable length, format, lints, licences
	tests/structure
	tests/deny
	cargo fmt --all --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	RUSTFLAGS='--cfg fuzzing' cargo check --locked --all-targets --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz-check
	if cargo clippy --version >/dev/null 2>&1; then \
		cargo clippy --locked --workspace --all-targets -- -D warnings; \
	else echo 'lint: this toolchain has no clippy; formatting only'; fi

lab:  ## A shell where KVM works
	$(LAB) shell

clean:
	cargo clean
