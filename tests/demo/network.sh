# shellcheck shell=bash
# The demo's network: namespaces, the gateway's agent, the clients, their traffic. Source this file.
#
#   alice 198.51.100.11 ─┐                                        ┌─ 10.20.0.10
#                        ├─ wan (a bridge) ─ gw 198.51.100.1 ─ lan ┤
#   bob   198.51.100.12 ─┘                    tunnel 10.99.0.1    └─ 10.20.0.200

gateway_name=fra-1 gateway_role=gatepost_fra_1 gateway_wan=198.51.100.1
lan_server=10.20.0.10 lan_other=10.20.0.200
declare -A public_key=() wan_address=([alice]=198.51.100.11 [bob]=198.51.100.12) tunnel_address=([alice]=10.99.0.11 [bob]=10.99.0.12)

in_space() { ip netns exec "$tag-$1" "${@:2}"; }

network_build() {
	local space
	gateway_link=${tag}g
	for space in wan gw lan alice bob; do
		ip netns add "$tag-$space"
		ip -n "$tag-$space" link set lo up
	done
	ip -n "$tag-wan" link add br0 type bridge
	ip -n "$tag-wan" link set br0 up
	plug gw "$gateway_wan"
	plug alice "${wan_address[alice]}"
	plug bob "${wan_address[bob]}"
	ip -n "$tag-gw" link add lan0 type veth peer name eth0 netns "$tag-lan"
	ip -n "$tag-gw" address add 10.20.0.1/24 dev lan0
	ip -n "$tag-gw" link set lan0 up
	ip -n "$tag-lan" address add "$lan_server/24" dev eth0
	ip -n "$tag-lan" address add "$lan_other/24" dev eth0
	ip -n "$tag-lan" link set eth0 up
	in_space gw sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
	# The LAN's server: a line every 10 ms for whoever connects.
	in_space lan socat TCP-LISTEN:7000,bind="$lan_server",reuseaddr,fork SYSTEM:'while echo tick; do sleep 0.01; done' 2>/dev/null &
}

plug() {
	ip -n "$tag-wan" link add "$1" type veth peer name eth0 netns "$tag-$1"
	ip -n "$tag-wan" link set "$1" master br0 up
	ip -n "$tag-$1" address add "$2/24" dev eth0
	ip -n "$tag-$1" link set eth0 up
}

# --- the gateway ----------------------------------------------------------------------------------------

write_config() {
	local socket
	socket=$(sed 's|/|%2F|g' <<<"$work/postgres/socket")
	admin_url=postgres://postgres@$socket/vpn
	cat >"$GATEPOST_CONFIG" <<-END
		[gateway]
		name = "$gateway_name"
		private_key_file = "private.key"
		[database]
		url = "postgres://$gateway_role@$socket/vpn"
		[interface]
		name = "$gateway_link"
		[report]
		heartbeat = "1s"
		interval = "1s"
		[control]
		socket = "$work/control.sock"
		[cache]
		file = "$work/last-good"
	END
}

as_admin() { GATEPOST_DATABASE_URL=$admin_url "$gatepost" "$@"; }

# Without in_space: a function in the background is a shell of its own, and the pid shall be the agent's.
agent_start() {
	ip netns exec "$tag-gw" "$gatepost" run >>"$work/agent.log" 2>&1 &
	agent_pid=$!
}

agent_ready() {
	kill -0 "$agent_pid" 2>/dev/null || fail "the agent ended"
	"$gatepost" status >/dev/null 2>&1
}

agent_kill() {
	local status=0
	# Grouped: bash would say "Killed" as soon as it notices.
	{ kill -KILL "$agent_pid" && wait "$agent_pid"; } 2>/dev/null || :
	"$gatepost" status >/dev/null 2>&1 || status=$?
	[[ $status -eq 4 ]] || fail "gatepost status ended with $status after the agent was killed, not with 4"
}

gateway_has() { in_space gw wg show "$gateway_link" peers 2>/dev/null | grep -qF "$1"; }

# When each peer last shook hands: a session that is kept shows the same time.
sessions() { in_space gw wg show "$gateway_link" latest-handshakes | sort | tr '\n' ' '; }

# "the kernel" or "userspace", by what the link says of itself.
wireguard_kind() {
	if ip -n "$tag-$1" -d link show "$2" | grep -qw wireguard; then echo "the kernel"; else echo "userspace"; fi
}

written_back() {
	[[ $(sql "select exists (select from gateways where last_sync_at is not null)
		and exists (select from devices where last_seen_at is not null and device_fingerprint = 'bob-laptop')") == t ]]
}

# --- the clients ----------------------------------------------------------------------------------------

# In the kernel where it can, else in a userspace device of our own binary.
client_build() {
	local name=$1 link=$tag${1:0:1}
	if ! ip -n "$tag-$name" link add "$link" type wireguard 2>/dev/null; then
		in_space "$name" "$gatepost" device "$link" >>"$work/$name.log" 2>&1 &
		await 10 in_space "$name" wg show "$link" >/dev/null 2>&1 || fail "no userspace WireGuard for $name: $(tail -n 3 "$work/$name.log")"
	fi
	(umask 077 && wg genkey >"$work/$name.key")
	public_key[$name]=$(wg pubkey <"$work/$name.key")
	in_space "$name" wg set "$link" private-key "$work/$name.key"
	client_dial "$name"
	ip -n "$tag-$name" address add "${tunnel_address[$name]}/32" dev "$link"
	ip -n "$tag-$name" link set "$link" up
	ip -n "$tag-$name" route add 10.99.0.0/24 dev "$link"
	ip -n "$tag-$name" route add 10.20.0.0/24 dev "$link"
}

# Forgets the gateway and learns it anew: WireGuard itself would wait 5 s before it tries again.
client_dial() {
	local link=$tag${1:0:1}
	in_space "$1" wg set "$link" peer "$gateway_key" remove
	in_space "$1" wg set "$link" peer "$gateway_key" endpoint "$gateway_wan:51820" allowed-ips 10.99.0.0/24,10.20.0.0/24
}

ping_once() { in_space "$1" ping -nq -c 1 -W 0.5 "$2" >/dev/null; }
first_ping() { client_dial "$1" && ping_once "$1" "$2"; }

# ping_start CLIENT ADDRESS INTERVAL_SECS COUNT NAME: pings in the background; NAME for the functions below.
ping_start() {
	in_space "$1" ping -nD -i "$3" -c "$4" -W 1 "$2" >"$work/ping-$5" 2>&1 &
	ping_pid[$5]=$!
}
declare -A ping_pid=()

ping_answers() { [[ $(grep -c 'bytes from' "$work/ping-$1") -ge $2 ]]; }
ping_wait() { wait "${ping_pid[$1]}" || :; }
ping_totals() { sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' "$work/ping-$1"; }
ping_last() { sed -n 's/^\[\([0-9.]*\)\] .*bytes from.*/\1/p' "$work/ping-$1" | tail -n 1; }

# A TCP stream from the LAN's server to a client: every line that arrives is noted with its time.
stream_start() {
	: >"$work/stream"
	# shellcheck disable=SC2016
	in_space "$1" bash -c 'exec 3<>"/dev/tcp/$1/7000"; while read -r <&3; do echo "$EPOCHREALTIME"; done' stream "$2" >>"$work/stream" 2>&1 &
	await 10 stream_flows || fail "no TCP stream from $2 to $1"
}

stream_flows() { [[ $(wc -l <"$work/stream") -ge 50 ]]; }

# Watches until nothing came for a second; `stream_last` is when the last line came.
stream_stopped() {
	await 5 stream_silent
}

stream_silent() {
	stream_last=$(tail -n 1 "$work/stream")
	[[ $(ms_between "$stream_last" "$EPOCHREALTIME") -ge 1000 ]]
}
