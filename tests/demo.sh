#!/usr/bin/env bash
# Shows Gatepost at work on this machine: a gateway, two clients and a LAN server in network
# namespaces, a private PostgreSQL, plain SQL. Every figure is measured while you watch; the demo
# fails if anything it shows is not true. Nothing stays behind.
#
#   tests/demo.sh [--keep]          --keep: leave it running, and say how to play with it
#   tests/demo.sh --stop DIR        end one that was kept
#
# GATEPOST_TEST_BINARY names a built gatepost to use instead of building one.
set -Eeuo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/support/postgres.sh"
. "$root/tests/demo/stage.sh"
. "$root/tests/demo/network.sh"

main() {
	local keep=no
	case ${1-} in
	'') ;;
	--keep) keep=yes ;;
	--stop) stage_stop "${2:?--stop needs the directory the demo named}"; return ;;
	*) sed -n '6,7s/^# *//p' "$0" >&2; exit 2 ;;
	esac
	[[ $EUID -eq 0 ]] || { echo "demo: needs root, for network namespaces" >&2; exit 1; }
	prepare
	stage_open
	scene_gateway
	scene_add
	scene_policy
	scene_kill
	scene_revoke
	scene_truth
	stage_close "$keep"
}

prepare() {
	"$root/tests/install-deps.sh" demo
	gatepost=${GATEPOST_TEST_BINARY-}
	if [[ -z $gatepost ]]; then
		echo "Building the release binary: a few minutes the first time."
		cargo build --release --locked --manifest-path "$root/Cargo.toml" -p gatepost-agent
		gatepost=$root/target/release/gatepost
	fi
	gatepost=$(realpath -e "$gatepost")
}

scene_gateway() {
	scene "A database, a gateway, an agent"
	clock
	postgres_start "$work/postgres"
	postgres_as "$work/postgres" "$(postgres_bin)/createdb" -h "$work/postgres/socket" -U postgres vpn
	database_open
	good "private PostgreSQL, its data in $work" "$(elapsed) ms"
	network_build
	write_config
	clock
	as_admin migrate >"$work/migrate.log" 2>&1 || fail "gatepost migrate: $(tail -n 5 "$work/migrate.log")"
	good "gatepost migrate: the schema, and our change feed beside it" "$(elapsed) ms"
	as_admin enroll --endpoint "$gateway_wan:51820" --listen-port 51820 --vpn-cidr 10.99.0.0/24 >"$work/enroll.log"
	as_admin grant "$gateway_name" "$gateway_role" --create >"$work/grant.log"
	good "gatepost enroll, gatepost grant: its key, its row, its database role"
	gateway_key=$(sql "select public_key from gateways where name = '$gateway_name'")
	clock
	agent_start
	await 20 agent_ready || fail "the agent was not ready within 20 s"
	good "gatepost run: interface up, firewall loaded, ready" "$(elapsed) ms"
	backend=$(wireguard_kind gw "$gateway_link")
	say "WireGuard runs in $backend here"
}

scene_add() {
	scene "Alice's laptop is added by SQL"
	client_build alice
	client_build bob
	! ping_once alice 10.99.0.1 || fail "the gateway answered a peer that is not in the database"
	good "before: no answer from the gateway"
	sql "insert into roles (name) values ('staff');
		insert into users (role_id, username, display_name, password_hash)
			select id, person, initcap(person), '!' from roles, unnest(array['alice', 'bob']) as person"
	commit "$(device_rows alice 10.99.0.11)"
	await 5 gateway_has "${public_key[alice]}" || fail "the peer did not reach the interface within 5 s"
	good "in the gateway's WireGuard device" "$(after_commit "$EPOCHREALTIME")"
	await 10 first_ping alice 10.99.0.1 || fail "no encrypted ping within 10 s"
	good "first encrypted ping, handshake included" "$(after_commit "$EPOCHREALTIME")"
	sql "$(device_rows bob 10.99.0.12)"
	await 10 first_ping bob 10.99.0.1 || fail "no encrypted ping from bob within 10 s"
}

# SQL for a user's laptop: the device, its peer on our gateway, its address.
device_rows() {
	cat <<-END
		insert into devices (user_id, name, platform, device_fingerprint, public_key)
		  select id, 'laptop', 'linux', '$1-laptop', '${public_key[$1]}' from users where username = '$1';
		insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
		  select devices.id, gateways.id, devices.public_key, '$2'
		  from devices, gateways where device_fingerprint = '$1-laptop';
		insert into ip_allocations (gateway_id, device_id, address)
		  select gateway_id, device_id, assigned_ip from wireguard_peers where assigned_ip = '$2'
	END
}

scene_policy() {
	scene "A policy: allowed, denied, narrowed under a live TCP stream"
	! ping_once alice "$lan_server" || fail "a packet reached the LAN although no policy allows it"
	good "no policy yet: the LAN server does not answer"
	commit "insert into policies (name) values ('office');
insert into policy_destinations (policy_id, destination)
  select id, '10.20.0.0/24' from policies where name = 'office';
insert into policy_targets (policy_id, target_type, target_id)
  select policies.id, 'user', users.id from policies, users where username = 'alice'"
	await 5 ping_once alice "$lan_server" || fail "the LAN server did not answer although the policy allows it"
	good "allowed: the LAN server answers Alice" "$(after_commit "$EPOCHREALTIME")"
	! ping_once bob "$lan_server" || fail "Bob reached the LAN: the policy is Alice's alone"
	good "denied: it does not answer Bob, whom no policy names"
	stream_start alice "$lan_server"
	commit "update policy_destinations set destination = '10.20.0.128/25'"
	stream_stopped || fail "the TCP stream went on after the policy was narrowed"
	good "narrowed: the live TCP stream from $lan_server stopped" "$(after_commit "$stream_last")"
	ping_once alice "$lan_other" || fail "$lan_other is in the narrowed policy and did not answer"
	good "$lan_other, which the policy still allows, answers"
	explained alice "$lan_other" 0
	explained alice "$lan_server" 2
}

scene_kill() {
	scene "The agent is killed with -9 under traffic, and started again"
	local before after sent received
	before=$(sessions)
	ping_start alice "$lan_other" 0.05 120 kill
	await 5 ping_answers kill 10 || fail "no traffic to kill the agent under"
	agent_kill
	good "killed under a ping every 50 ms; nobody serves the control socket now"
	await 5 ping_answers kill 40 || fail "packets stopped when the agent died"
	clock
	agent_start
	await 20 agent_ready || fail "the agent was not ready again within 20 s"
	good "started again: ready" "$(elapsed) ms"
	ping_wait kill
	after=$(sessions)
	read -r sent received < <(ping_totals kill)
	[[ $sent -eq 120 && $received -eq $sent ]] || fail "of $sent pings $received were answered"
	good "$sent pings sent, $received answered: no packet lost"
	[[ $before == "$after" ]] || fail "a handshake was forgotten: '$before' became '$after'"
	good "the peers' sessions are the same ones: no new handshake"
}

scene_revoke() {
	scene "Alice's laptop is revoked"
	local sent received
	ping_start alice "$lan_other" 0.02 200 alice
	ping_start bob 10.99.0.1 0.02 200 bob
	await 5 ping_answers alice 20 || fail "no traffic to revoke"
	commit "update devices set status = 'revoked', revoked_at = now() where device_fingerprint = 'alice-laptop'"
	ping_wait alice
	ping_wait bob
	! gateway_has "${public_key[alice]}" || fail "the revoked peer is still in the device"
	read -r sent received < <(ping_totals alice)
	[[ $received -lt $sent ]] || fail "every ping of a revoked peer was answered"
	good "her pings every 20 ms stopped: the last answer" "$(after_commit "$(ping_last alice)")"
	! ping_once alice 10.99.0.1 || fail "the gateway answers a revoked peer"
	read -r sent received < <(ping_totals bob)
	[[ $received -eq $sent ]] || fail "Bob lost $((sent - received)) of $sent pings to Alice's revocation"
	good "Bob meanwhile: $sent pings sent, $received answered"
}

scene_truth() {
	scene "What the agent says, and what it wrote back"
	await 40 written_back || fail "no last_sync_at or last_seen_at came back within 40 s"
	show gatepost status
	show gatepost peers
	show_sql "select name, last_sync_at, now() - last_sync_at as age from gateways"
	show_sql "select username, devices.name, status, last_seen_at from devices join users on users.id = user_id order by 1"
	show_sql "select created_at::time(3) as time, event_type, message from audit_logs order by created_at"
}

main "$@"
