#!/usr/bin/env bash
# Ten gateways on one database that fails over: Patroni with two servers and etcd, a PgBouncer and a bell
# beside each server, nats-server, and a client for each gateway. All of it runs in network namespaces of this
# machine, from the distribution's packages and the files beside this one, and goes away at the end.
#
#   deploy/fleet/fleet.sh [--trial [FAULT...]]    start it; with --trial, cause faults (all, or those named:
#                                                 switchover crash broker bell pool partition) and end
#   deploy/fleet/fleet.sh --stop [DIR...]         end those that were started, or all of them
#
# GATEPOST_TEST_BINARY names a built gatepost to use instead of building one.
set -Eeuo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/deploy/fleet
. "$root/tests/support/postgres.sh"
. "$root/tests/demo/stage.sh"
. "$here/hosts.sh"
. "$here/faults.sh"

gateways=10
faults=(switchover crash broker bell pool partition)

main() {
	local what=keep
	case ${1-} in
	'') ;;
	--trial) what=trial; shift; [[ $# -eq 0 ]] || faults=("$@") ;;
	--stop) shift; stop "$@"; return ;;
	*) sed -n '6,8s/^# *//p' "$0" >&2; exit 2 ;;
	esac
	[[ $EUID -eq 0 ]] || { echo "fleet: needs root, for network namespaces" >&2; exit 1; }
	prepare
	fleet_open
	fleet_start
	if [[ $what == keep ]]; then fleet_keep; return; fi
	local fault
	for fault in "${faults[@]}"; do trial "$fault"; done
	fleet_strike
	trap - EXIT
	printf '\nAll of it held, in %s s. Nothing was left behind.\n' "$SECONDS"
}

prepare() {
	"$root/tests/install-deps.sh" fleet
	gatepost=${GATEPOST_TEST_BINARY-}
	if [[ -z $gatepost ]]; then
		cargo build --release --locked --manifest-path "$root/Cargo.toml" -p gatepost-agent
		gatepost=$root/target/release/gatepost
	fi
	gatepost=$(realpath -e "$gatepost")
}

fleet_open() {
	tag=gpf$$ work='' green='' red='' bold='' dim='' plain='' scenes=0
	trap 'fleet_abort' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 129' HUP
	# Without a trap, bash dies at once when the reader of its output is gone.
	trap 'exit 141' PIPE
	work=$(mktemp -d /tmp/gatepost-fleet.XXXXXX)
	chmod 711 "$work"
	trap 'failed_line=$LINENO failed_file=${BASH_SOURCE[0]##*/}' ERR
	tls=$work/tls password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	: >"$work/owner.toml"
	declare -p work tag >"$work/stage"
}

fleet_start() {
	scene "Two database servers, etcd, PgBouncer, NATS, two bells, $gateways gateways"
	clock
	certificates
	hosts_build
	in_host hub etcd --data-dir "$work/etcd" --listen-client-urls http://10.77.0.3:2379 \
		--advertise-client-urls http://10.77.0.3:2379 --listen-peer-urls http://127.0.0.1:2380 >"$work/etcd.log" 2>&1 &
	patroni_start db1
	await 60 is_primary db1 || fail "no primary: $(tail -n 3 "$work/db1/patroni.log")"
	patroni_start db2
	await 60 has_standby || fail "no standby: $(tail -n 3 "$work/db2/patroni.log")"
	good "Patroni: a primary and a synchronous standby" "$(elapsed) ms"
	sql_on postgres "create database vpn"
	as_owner migrate >"$work/migrate.log"
	(umask 077; echo "$password" >"$work/pool.password")
	as_owner grant --bell gatepost_bell_a --create --role-password-file "$work/pool.password" >"$work/bell.log"
	local number
	for ((number = 1; number <= gateways; number++)); do gateway_enroll "$number"; done
	for number in db1 db2; do pooler_start "$number"; done
	broker_start
	for number in db1 db2; do bell_start "$number"; done
	for ((number = 1; number <= gateways; number++)); do agent_start "$number"; done
	await 60 all_follow_hints || fail "not every gateway follows hints: $(tail -n 3 "$work"/gw*/agent.log)"
	good "every gateway is ready and follows hints" "$(elapsed) ms"
	for ((number = 1; number <= gateways; number++)); do client_start "$number"; done
	await 30 all_equal || fail "not every gateway equals the database"
	for ((number = 1; number <= gateways; number++)); do
		await 20 client_answers "$number" || fail "client $number gets no answer"
	done
	good "a client of each gateway pings through its tunnel" "$(elapsed) ms"
}

fleet_keep() {
	trap - EXIT INT TERM HUP PIPE
	cat <<-END

		It runs. As root:

		  ip netns exec $tag-gw1 $gatepost --config $work/gw1/gatepost.toml status
		  ip netns exec $tag-db1 $gatepost --config $work/db1/bell.toml bell --check
		  ip netns exec $tag-hub patronictl -c $work/db1/patroni.yml list
		  ip netns exec $tag-c1 ping 10.99.1.1

		End it with:  make fleet-stop  (or $here/fleet.sh --stop $work)
	END
}

stop() {
	local folder found=0
	[[ $# -gt 0 ]] || set -- /tmp/gatepost-fleet.*
	for folder in "$@"; do
		[[ -r $folder/stage || $folder != '/tmp/gatepost-fleet.*' ]] || continue
		(fleet_stop "$folder") && found=1
	done
	[[ $found -eq 1 ]] || { echo "fleet: none runs" >&2; exit 1; }
}

fleet_stop() {
	[[ -r $1/stage ]] || { echo "fleet: there is none in $1" >&2; exit 1; }
	# shellcheck disable=SC1091
	. "$1/stage"
	fleet_strike
	echo "The fleet in $work is gone."
}

fleet_strike() {
	stage_strike "$work" "$tag"
	[[ -z $tag ]] || rm -f "/var/run/wireguard/$tag"*.sock
}

fleet_abort() {
	local status=$?
	[[ $status -ne 1 || ! -d $work ]] || tail -n 5 "$work"/*/*.log >&2 || :
	fleet_strike
	[[ -z ${failed_line-} ]] || echo "--- stopped at $failed_file:$failed_line" >&2 || :
	exit "$status"
}

main "$@"
