# Gatepost: everything a developer or a new user runs. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
comma := ,
skipped := $(subst $(comma), ,$(GATEPOST_SKIP))
# One optimised build for every tier: the guest emulates its processor, and debug code pays for it.
cargo_test := cargo test --workspace --locked --profile ci
# `make test` tries the same cases each time, so that a failure is about the change; nightly searches new ones.
seeded := PROPTEST_RNG_SEED=1 GATEPOST_TEST_SEED=1

# Every [[test]] target belongs to one tier; a target that is not named here is pure and runs in `unit`.
targets := $(shell sed -n '/^\[\[test\]\]/,/^$$/s/^name = "\(.*\)"/\1/p' Cargo.toml agent/Cargo.toml)
postgres_targets := $(filter postgres,$(targets))
netns_targets := $(filter netns dataplane packets,$(targets))
# Needs no WireGuard, but the guest's older kernel acknowledges nftables changes in another way.
firewall_targets := $(filter nft,$(targets))
# Needs a build and a host, as a user has them; the guest would add nothing.
host_targets := $(filter demo,$(targets))
pure_targets := $(filter-out $(postgres_targets) $(netns_targets) $(firewall_targets) $(host_targets),$(targets))

# A tier that GATEPOST_SKIP names is left out, and `make test` says so; nothing else leaves one out.
skip = $(if $(filter $(1),$(skipped)),@echo "==> $(1): SKIPPED (GATEPOST_SKIP names it)",@echo "==> $(1)$(2)"; $(3))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo demo-keep
demo: ## Show Gatepost at work on this machine, in namespaces that go away again (root)
	@tests/demo.sh
demo-keep: ## Show Gatepost at work and leave it running to play with (root)
	@tests/demo.sh --keep

.PHONY: fleet fleet-stop fleet-trial
fleet: ## Start ten gateways on a database that fails over, with NATS, PgBouncer and bells, to play with (root)
	@deploy/fleet/fleet.sh
fleet-stop: ## End the gateways that `make fleet` started (root)
	@deploy/fleet/fleet.sh --stop
fleet-trial: ## Start them, kill what they depend on, and see that nothing is missed and no ping lost (root)
	@deploy/fleet/fleet.sh --trial

.PHONY: install-deps
install-deps: ## Install what demo, tests and benchmarks need from the distribution
	@tests/install-deps.sh demo test guest bench deny deb

.PHONY: check one
check: ## Format, clippy and the core tests: before each commit
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	cargo test --workspace --locked --quiet --lib --bins --test golden --test policy
one: ## Run one test wherever it lives: make one T=part_of_its_name
	@tests/one '$(T)'

.PHONY: test test-unit test-mutations test-postgres test-netns test-guest test-package test-postgres-versions
test: test-build test-unit test-mutations test-native test-guest test-package ## Run every tier: pure, PostgreSQL, namespaces, kernel WireGuard in a guest (root)
	@echo "==> all passed$(if $(strip $(skipped)),; SKIPPED: $(skipped))"

# All at once, so that no processor waits for a program that is linked.
.PHONY: test-build
test-build:
	@tests/install-deps.sh test
	$(cargo_test) --no-run

test-unit: ## Run unit tests, properties, golden plans and commands: no privileges needed, but to install tools
	$(call skip,unit,,tests/install-deps.sh test; $(seeded) $(cargo_test) --lib --bins $(addprefix --test ,$(pure_targets)))

test-mutations: ## See that the simulation finds each of the faults of the product that it lists
	$(call skip,mutations,,$(cargo_test) --quiet --test simulation -- --ignored --exact --nocapture mutations::every_fault_that_is_listed_is_found)

# Tests of packets wait more than they compute, and so do those of the store.
waiting := --test-threads=$(shell expr 3 \* $$(nproc))
waiting_of_store := --test-threads=$(shell expr 2 \* $$(nproc))
.PHONY: test-native
test-native:
	@tests/install-deps.sh test
	@$(MAKE) --no-print-directory test-postgres test-netns

test-postgres: ## Test the store against a private PostgreSQL
	$(call skip,postgres,,tests/install-deps.sh test; $(seeded) $(cargo_test) $(addprefix --test ,$(postgres_targets)) -- $(waiting_of_store))

test-postgres-versions: ## Test the store against PostgreSQL 13 to 18
	@tests/install-deps.sh versions
	tests/postgres-versions $(cargo_test)

test-netns: ## Send real packets through network namespaces with userspace WireGuard (root)
	$(call skip,netns, (backend userspace),tests/install-deps.sh test; $(seeded) GATEPOST_TEST_BACKEND=userspace $(cargo_test) $(addprefix --test ,$(netns_targets) $(firewall_targets) $(host_targets)) -- $(waiting))

test-guest: ## Run what needs kernel WireGuard or an older kernel in a QEMU guest (root)
	$(call skip,guest, (backend kernel),tests/install-deps.sh guest; $(seeded) tests/guest/suite $(netns_targets) $(firewall_targets))

test-package: ## Install, kill and upgrade the Debian package under systemd in the guest (root)
	$(call skip,package,,tests/install-deps.sh guest deb; tests/guest/package)

# Each round of properties and packets begins with new random seeds.
nightly_rounds := 20
.PHONY: nightly
nightly: test-unit test-postgres test-postgres-versions test-netns test-package ## Run every tier, count what a mark costs a writer, all tests in the guest, PostgreSQL 13 to 18, changes from and to the last version, a failover that loses a revocation, the adversary against tables that lack a rule, properties and packets with new seeds (root)
	tests/install-deps.sh deny && tests/advisories
	@$(MAKE) --no-print-directory bench-marks
	deploy/fleet/fleet.sh --trial
	tests/failover target/release/gatepost
	tests/versions
	tests/versions guest
	@# Some tests alone take half an hour where the processor is emulated.
	GATEPOST_GUEST_TIMEOUT_SECS=10800 GATEPOST_TEST_SETS=200 tests/guest/suite --all $(netns_targets) $(firewall_targets)
	GATEPOST_TEST_BACKEND=userspace GATEPOST_TEST_MUTATIONS=1 $(cargo_test) --quiet --test packets -- every_missing_rule
	GATEPOST_SIMULATE_SECS=120 $(cargo_test) --quiet --test simulation every_history_keeps
	for round in $$(seq $(nightly_rounds)); do $(cargo_test) --quiet --test properties --test policy; done
	GATEPOST_TEST_WEEKS=10 $(cargo_test) --quiet --test postgres week
	for round in 1 2 3; do GATEPOST_TEST_BACKEND=userspace GATEPOST_TEST_ROUNDS=200 $(cargo_test) --quiet --test packets; done

.PHONY: simulate
SECS := 60
simulate: ## Simulate lives of an agent from new seeds for so long: make simulate SECS=600
	GATEPOST_SIMULATE_SECS=$(SECS) $(cargo_test) --quiet --test simulation -- --nocapture
.PHONY: fuzz
fuzz: ## Give the decoders of the kernel's, devices' and files' bytes new inputs for so long: make fuzz SECS=600
	@tests/install-deps.sh fuzz
	@tests/fuzz/run $(SECS)
.PHONY: faults
faults: ## Cause every fault that tests know, also in the guest; writes docs/faults.md (root, half an hour)
	@tests/install-deps.sh test guest
	@tests/faults

.PHONY: bench bench-quick bench-latency bench-policy bench-fleet bench-marks
bench: ## Run all benchmarks beside the raw tools; writes docs/scale.md (root, an hour)
	@tests/install-deps.sh bench guest
	@tests/bench/publish
bench-quick: ## Run the benchmarks of scale with 10,000 peers, print only (root)
	@tests/install-deps.sh bench guest
	@tests/bench/publish --quick
bench-fleet: ## Measure what a thousand gateways cost one database: a bell, NATS and PgBouncer (root)
	@tests/install-deps.sh bench
	@cargo bench --locked --workspace --bench fleet
bench-latency: ## Measure commit to kernel, and revocation to the last packet (root)
	@tests/install-deps.sh bench
	@cargo bench --locked --workspace --bench latency
bench-policy: ## Load policies of 100,000 peers beside `nft -f`, and measure a packet's cost (root)
	@tests/install-deps.sh bench
	@cargo bench --locked --workspace --bench policy
bench-marks: ## Count the instructions that a mark costs a writer, beside schema 8
	@tests/install-deps.sh bench
	@tests/bench/marks

.PHONY: lint
lint: ## Check format, clippy, unused dependencies, licences, duplicate versions and known advisories
	@tests/install-deps.sh deny
	cargo fmt --all --check
	@# The profile of the tests, which share its build scripts and procedural macros.
	cargo clippy --workspace --all-targets --locked --profile ci -- -D warnings
	cargo check --locked --profile ci -p gatepost --no-default-features
	@# The fuzzer's own lock file follows the library's dependencies.
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	PATH="$$PWD/target/tools/bin:$$PATH" cargo deny --locked --workspace check bans licenses sources
	@tests/advisories

.PHONY: bless-surface
bless-surface: ## Write tests/golden/surface.txt anew after an intended change of the public surface
	GATEPOST_BLESS=1 cargo test --quiet --locked -p gatepost-agent --bins surface
	GATEPOST_BLESS=1 cargo test --quiet --locked -p gatepost --lib --test postgres surface
	git diff --stat -- tests/golden/surface.txt

.PHONY: deb release
deb: ## Build the Debian package in target/debian, its debug symbols apart
	@tests/install-deps.sh deb
	cargo build --locked --release -p gatepost-agent
	target/release/gatepost manual target/manual
	PATH="$$PWD/target/tools/bin:$$PATH" cargo deb --locked --no-build -p gatepost-agent
	tests/deb 24 target/debian/gatepost_*.deb

# What cross-building needs: a linker and a C compiler for the crates that contain C.
arm64 := aarch64-unknown-linux-gnu
cross := CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
release: deb ## Build the packages for amd64 and arm64 with their checksums, in target/debian
	@tests/install-deps.sh arm64
	$(cross) cargo build --locked --release --target $(arm64) -p gatepost-agent
	qemu-aarch64 -L /usr/aarch64-linux-gnu target/$(arm64)/release/gatepost --version
	$(cross) PATH="$$PWD/target/tools/bin:$$PATH" cargo deb --locked --no-build --target $(arm64) --output target/debian -p gatepost-agent
	cd target/debian && sha256sum *.deb *.ddeb >SHA256SUMS && cat SHA256SUMS
