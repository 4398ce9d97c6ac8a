# shellcheck shell=bash
# Two PostgreSQL servers under Patroni, with one etcd: source this file after postgres.sh.
#
#   patroni_start DIR      etcd, then server `a` as the leader and `b` as its asynchronous standby
#   patroni_leader DIR     the name of the leader
#   patroni_lag DIR NAME   a standby gets nothing more from its leader
#   patroni_kill DIR NAME  ends a server and its Patroni at once
#   patroni_url DIR USER DATABASE  a URL of whichever server is the leader
#   patroni_stop DIR       ends all of it; DIR stays
#
# Each server's socket is in DIR/NAME, which only root and the servers' own user may enter.

patroni_start() {
	local dir=$1 name
	mkdir -p "$dir"
	chown postgres: "$dir"
	chmod 700 "$dir"
	patroni_port etcd "$dir" >/dev/null
	local client peer
	client=$(patroni_port etcd "$dir") peer=$(patroni_port etcd-peer "$dir")
	runuser -u postgres -- etcd --data-dir "$dir/etcd" --listen-client-urls "http://127.0.0.1:$client" \
		--advertise-client-urls "http://127.0.0.1:$client" --listen-peer-urls "http://127.0.0.1:$peer" \
		--initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" \
		>"$dir/etcd.log" 2>&1 &
	echo $! >"$dir/etcd.pid"
	for name in a b; do
		patroni_config "$dir" "$name" | runuser -u postgres -- tee "$dir/$name.yml" >/dev/null
		runuser -u postgres -- mkdir -m 700 "$dir/$name"
		runuser -u postgres -- patroni "$dir/$name.yml" >"$dir/$name.log" 2>&1 &
		echo $! >"$dir/$name.pid"
		patroni_await 60 patroni_serves "$dir" "$name" || { tail -n 20 "$dir/$name.log" >&2; return 1; }
	done
	patroni_await 60 patroni_streams "$dir"
}

patroni_config() {
	local dir=$1 name=$2
	cat <<-END
		scope: vpn
		name: $name
		restapi: {listen: "127.0.0.1:$(patroni_port "$name-api" "$dir")", connect_address: "127.0.0.1:$(patroni_port "$name-api" "$dir")"}
		etcd3: {hosts: "127.0.0.1:$(patroni_port etcd "$dir")"}
		bootstrap:
		  # Asynchronous: the last commits of a leader that is lost may be lost with it.
		  dcs: {ttl: 20, loop_wait: 2, retry_timeout: 5, maximum_lag_on_failover: 1048576}
		  initdb: [encoding: UTF8, locale: C.UTF-8]
		postgresql:
		  listen: "127.0.0.1:$(patroni_port "$name" "$dir")"
		  connect_address: "127.0.0.1:$(patroni_port "$name" "$dir")"
		  data_dir: $dir/$name/data
		  bin_dir: $(postgres_bin)
		  authentication:
		    superuser: {username: postgres}
		    replication: {username: replicator, password: $(patroni_secret "$dir")}
		  parameters: {unix_socket_directories: $dir/$name}
		  pg_hba: [local all all trust, host replication replicator 127.0.0.1/32 scram-sha-256]
		  use_unix_socket: true
	END
}

# A free port for each purpose, the same each time.
patroni_port() {
	local file=$2/port.$1
	[[ -e $file ]] || postgres_free_port 127.0.0.1 >"$file"
	cat "$file"
}

patroni_secret() {
	[[ -e $1/secret ]] || (umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$1/secret")
	cat "$1/secret"
}

patroni_psql() {
	local dir=$1 name=$2
	shift 2
	"$(postgres_bin)/psql" -qAtX -v ON_ERROR_STOP=1 -h "$dir/$name" -p "$(patroni_port "$name" "$dir")" -U postgres "$@"
}

patroni_serves() { patroni_psql "$1" "$2" -c 'select 1' >/dev/null 2>&1; }

patroni_streams() { [[ $(patroni_psql "$1" a -c "select count(*) from pg_stat_replication where state = 'streaming'") == 1 ]]; }

patroni_leader() {
	local name
	for name in a b; do
		[[ $(patroni_psql "$1" "$name" -c 'select not pg_is_in_recovery()' 2>/dev/null) != t ]] || echo "$name"
	done
}

# What it has received and not read is lost when its leader is killed.
patroni_lag() {
	patroni_psql "$1" "$2" -c 'select pid from pg_stat_wal_receiver' >"$1/lags.pid"
	kill -STOP "$(<"$1/lags.pid")"
}

# Patroni first, so that it starts nothing again.
patroni_kill() {
	local dir=$1 name=$2 pid
	pkill -KILL -P "$(<"$dir/$name.pid")" || :
	for pid in $(cat "$dir/$name/data/postmaster.pid" 2>/dev/null | head -n 1); do
		# shellcheck disable=SC2046
		kill -KILL $(cat "/proc/$pid/task/$pid/children") "$pid" || :
	done
	if [[ -e $dir/lags.pid ]]; then
		kill -KILL "$(<"$dir/lags.pid")" || :
		rm "$dir/lags.pid"
	fi
}

patroni_url() {
	local dir=$1 host
	host=$(printf '%s' "$dir" | sed 's|/|%2F|g')
	echo "postgres://$2@$host%2Fa:$(patroni_port a "$dir"),$host%2Fb:$(patroni_port b "$dir")/$3?target_session_attrs=read-write"
}

# patroni_await SECONDS COMMAND...
patroni_await() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < deadline)) || return 1
		sleep 0.2
	done
}

patroni_stop() {
	local dir=$1 name
	for name in a b; do patroni_kill "$dir" "$name" 2>/dev/null; done
	kill "$(<"$dir/etcd.pid")" 2>/dev/null || :
}
