# shellcheck shell=bash
# The faults of the trial. Within so many seconds of each the database must take a change of every gateway; from
# then within as many all gateways must have it, and follow hints. No client may lose a ping. Source this file.

declare -A within=([switchover]=30 [crash]=60 [broker]=15 [bell]=15 [pool]=15 [partition]=30)

trial() {
	local fault=$1 number
	[[ -n ${within[$fault]-} ]] || fail "unknown fault '$fault': must be one of ${!within[*]}"
	scene "$fault"
	for ((number = 1; number <= gateways; number++)); do
		# Without in_host: a function in the background is a shell of its own, and the pid shall be ping's.
		ip netns exec "$tag-c$number" ping -n -i 0.2 "10.99.$number.1" >"$work/c$number/ping" 2>&1 &
		echo $! >"$work/c$number/ping.pid"
	done
	await 10 grep -q 'bytes from' "$work/c$gateways/ping" || fail "no ping is answered"
	clock
	"fault_$fault"
	# As soon as the database takes it: the control plane tries again, too.
	await "${within[$fault]}" change_all || fail "the database took no write within ${within[$fault]} s"
	good "the database took a change of all gateways" "$(elapsed) ms after the fault"
	await "${within[$fault]}" all_equal || fail "not every gateway equals the database within ${within[$fault]} s"
	good "all gateways equal the database" "$(elapsed) ms after the fault"
	await "${within[$fault]}" all_follow_hints || fail "not every gateway follows hints within ${within[$fault]} s"
	good "all follow hints" "$(elapsed) ms after the fault"
	[[ $(type -t "mend_$fault") != function ]] || "mend_$fault"
	for ((number = 1; number <= gateways; number++)); do ping_held "$number"; done
	good "no client lost a ping"
}

# The spare device of each client comes or goes.
change_all() {
	sql "update devices set status = case status when 'active' then 'revoked' else 'active' end
		where name = 'spare'" 2>/dev/null
}

# Up to the last answer, there is one for each ping.
ping_held() {
	local pid received last
	received=$(grep -c 'bytes from' "$work/c$1/ping")
	await 5 ping_goes_on "$1" "$received" || fail "client $1: pings are no longer answered"
	pid=$(<"$work/c$1/ping.pid")
	{ kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || :
	received=$(grep -c 'bytes from' "$work/c$1/ping")
	last=$(sed -n 's/.*icmp_seq=\([0-9]*\) .*/\1/p' "$work/c$1/ping" | tail -n 1)
	[[ $received -eq $last ]] || fail "client $1: of $last pings $received were answered"
}
ping_goes_on() { [[ $(grep -c 'bytes from' "$work/c$1/ping") -gt $2 ]]; }

fault_switchover() {
	local from
	from=$(primary)
	in_host hub patronictl -c "$work/$from/patroni.yml" switchover --master "$from" \
		--candidate "$(other "$from")" --force vpn >"$work/switchover.log"
}
mend_switchover() { await 60 has_standby || fail "no standby after the switchover"; }

# The whole host of the primary: server, Patroni, PgBouncer, bell.
fault_crash() {
	local pids
	crashed=$(primary)
	pids=$(ip netns pids "$tag-$crashed")
	# shellcheck disable=SC2086  # one word per process
	{ kill -KILL $pids && wait $pids; } 2>/dev/null || :
}
mend_crash() {
	patroni_start "$crashed"
	pooler_start "$crashed"
	bell_start "$crashed"
	await 60 has_standby || fail "no standby after the crash"
}

fault_broker() {
	{ kill -KILL "$broker_pid" && wait "$broker_pid"; } 2>/dev/null || :
	broker_start
}

# The one that rings. The other takes over.
fault_bell() {
	local pid host
	pid=$(sql "select split_part(split_part(holder, '/', 2), '-', 1) from gatepost.bell")
	for host in db1 db2; do
		[[ $(<"$work/$host/bell.pid") != "$pid" ]] || rung=$host
	done
	{ kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || :
}
mend_bell() { bell_start "$rung"; }

fault_pool() {
	local host pid
	host=$(primary)
	pid=$(<"$work/$host/pgbouncer.pid")
	{ kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || :
	pooler_start "$host"
}

# The last gateway reaches neither the database nor NATS for a while; its clients reach it.
fault_partition() {
	ip -n "$tag-gw$gateways" route add blackhole 10.77.0.0/29
	change_all
	gateways=$((gateways - 1))
	await 15 all_equal || fail "the other gateways do not equal the database"
	gateways=$((gateways + 1))
	! all_equal || fail "the gateway that is cut off cannot know of the change, and has it"
	ip -n "$tag-gw$gateways" route delete blackhole 10.77.0.0/29
	clock
	# The next change takes this one back: a gateway that missed both would look equal.
	await "${within[partition]}" all_equal || fail "the gateway that was cut off missed the change"
}
