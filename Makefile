# Gatepost: everything a developer or a new user runs. `make` alone says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
comma := ,
skipped := $(subst $(comma), ,$(GATEPOST_SKIP))
cargo_test := cargo test --workspace --locked

# Every [[test]] target belongs to one tier; what is not named here is pure and runs in `unit`.
targets := $(shell sed -n '/^\[\[test\]\]/,/^$$/s/^name = "\(.*\)"/\1/p' Cargo.toml agent/Cargo.toml)
postgres_targets := $(filter postgres,$(targets))
netns_targets := $(filter netns dataplane packets,$(targets))
# Without WireGuard; but the guest's older kernel answers changes in its own way.
firewall_targets := $(filter nft,$(targets))
pure_targets := $(filter-out $(postgres_targets) $(netns_targets) $(firewall_targets),$(targets))

# A tier named in GATEPOST_SKIP is left out, and says so; nothing else leaves one out.
skip = $(if $(filter $(1),$(skipped)),@echo "==> $(1): SKIPPED (GATEPOST_SKIP names it)",@echo "==> $(1)$(2)"; $(3))

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo demo-keep
demo: ## Watch it work on this machine, in namespaces that go away again (root)
	@tests/demo.sh
demo-keep: ## The same, and leave it running to play with
	@tests/demo.sh --keep

.PHONY: install-deps
install-deps: ## Install what demo, tests and benchmarks need from the distribution
	@tests/install-deps.sh demo test guest bench deny deb

.PHONY: test test-unit test-postgres test-netns test-guest test-package
test: test-unit test-postgres test-netns test-guest test-package ## Everything: pure, PostgreSQL, namespaces, kernel WireGuard in a guest (root)
	@echo "==> all passed$(if $(strip $(skipped)),; SKIPPED: $(skipped))"

test-unit: ## Unit tests, properties, golden plans: no privileges needed
	$(call skip,unit,,$(cargo_test) --lib --bins $(addprefix --test ,$(pure_targets)))

test-postgres: ## The store against a private PostgreSQL
	$(call skip,postgres,,tests/install-deps.sh test; $(cargo_test) $(addprefix --test ,$(postgres_targets)))

test-netns: ## Real packets in network namespaces, userspace WireGuard (root)
	$(call skip,netns, (backend userspace),tests/install-deps.sh test; GATEPOST_TEST_BACKEND=userspace $(cargo_test) $(addprefix --test ,$(netns_targets) $(firewall_targets)))

test-guest: ## The same programs on kernel WireGuard in a QEMU guest (root)
	$(call skip,guest, (backend kernel),tests/install-deps.sh guest; tests/guest/suite $(netns_targets) $(firewall_targets))

test-package: ## The Debian package under systemd in the guest: install, kill, upgrade (root)
	$(call skip,package,,tests/install-deps.sh guest deb; tests/guest/package)

.PHONY: bench bench-quick bench-latency bench-policy
bench: ## All benchmarks, beside the raw tools; writes docs/scale.md (root, an hour)
	@tests/install-deps.sh bench guest
	@tests/bench/publish
bench-quick: ## Those of scale with 10,000 peers, only printed (root)
	@tests/install-deps.sh bench guest
	@tests/bench/publish --quick
bench-latency: ## Commit to kernel, revocation to the last packet (root)
	@tests/install-deps.sh bench
	@cargo bench --locked -p gatepost-agent --bench latency
bench-policy: ## Policies of 100,000 peers beside `nft -f`, and the cost per packet (root)
	@tests/install-deps.sh bench
	@cargo bench --locked -p gatepost --bench policy

.PHONY: lint
lint: ## Format, clippy, licences and duplicate versions
	@tests/install-deps.sh deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo check --locked -p gatepost --no-default-features
	PATH="$$PWD/target/tools/bin:$$PATH" cargo deny --locked check bans licenses sources

.PHONY: bless-surface
bless-surface: ## Write tests/golden/surface.txt anew after an intended change of the public surface
	GATEPOST_BLESS=1 cargo test --quiet --locked -p gatepost-agent --bins surface
	GATEPOST_BLESS=1 cargo test --quiet --locked -p gatepost --lib --test postgres surface
	git diff --stat -- tests/golden/surface.txt

.PHONY: deb
deb: ## The Debian package, in target/debian
	@tests/install-deps.sh deb
	cargo build --locked --release -p gatepost-agent
	target/release/gatepost manual target/manual
	PATH="$$PWD/target/tools/bin:$$PATH" cargo deb --locked --no-build -p gatepost-agent
