# shellcheck shell=bash
# A private PostgreSQL for the demo, the guest's tests and the benchmarks: source this file.
#
#   postgres_start DIR [SETTING=VALUE...]   initdb and start in DIR, which must not exist yet
#   postgres_listen DIR ADDRESS             also accept ADDRESS by password; prints a superuser's URL
#   postgres_stop DIR                       stop at once; DIR stays
#
# Its socket is in DIR/socket, which only root and the server's own user may enter, so trust there is
# no gift to others. As root the server runs as user postgres, else as the caller.

postgres_start() {
	local dir=$1 bin
	shift
	bin=$(postgres_bin)
	mkdir -p "$dir"
	if [[ $EUID -eq 0 ]]; then chown postgres: "$dir"; fi
	postgres_as "$dir" "$bin/initdb" --pgdata="$dir/data" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
		--auth-local=trust --auth-host=scram-sha-256 >"$dir.log" 2>&1 || postgres_failed "$dir" initdb
	postgres_as "$dir" mkdir -m 700 "$dir/socket"
	postgres_as "$dir" tee -a "$dir/data/postgresql.conf" >/dev/null <<-END
		listen_addresses = ''
		unix_socket_directories = '$dir/socket'
		max_connections = 200
		$(printf '%s\n' "$@")
	END
	postgres_as "$dir" "$bin/pg_ctl" --pgdata="$dir/data" --log="$dir/server.log" --wait --timeout=60 start \
		>>"$dir.log" 2>&1 || postgres_failed "$dir" start
}

postgres_listen() {
	local dir=$1 address=$2 bin password port
	bin=$(postgres_bin)
	password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	port=$(postgres_free_port "$address")
	postgres_as "$dir" tee -a "$dir/data/postgresql.conf" >/dev/null <<-END
		listen_addresses = '$address'
		port = $port
	END
	PGOPTIONS='' "$bin/psql" -qX -h "$dir/socket" -U postgres -c "alter role postgres password '$password'" >&2
	postgres_as "$dir" "$bin/pg_ctl" --pgdata="$dir/data" --log="$dir/server.log" --wait --timeout=60 -m fast restart \
		>>"$dir.log" 2>&1 || postgres_failed "$dir" restart
	echo "postgres://postgres:$password@$address:$port/postgres"
}

postgres_stop() {
	local dir=$1
	[[ ! -e $dir/data/postmaster.pid ]] ||
		postgres_as "$dir" "$(postgres_bin)/pg_ctl" --pgdata="$dir/data" -m immediate stop >>"$dir.log" 2>&1 || :
}

# The newest installed server's programs, which distributions keep off the PATH.
postgres_bin() {
	local initdb
	initdb=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)
	[[ -n $initdb ]] || { echo "no PostgreSQL server here: run tests/install-deps.sh demo" >&2; return 1; }
	dirname "$initdb"
}

postgres_as() {
	local dir=$1
	shift
	(
		cd "$dir"
		if [[ $EUID -eq 0 ]]; then runuser -u postgres -- "$@"; else "$@"; fi
	)
}

# A port nobody listens on now; the server's own bind is what decides.
postgres_free_port() {
	local address=$1 port
	while :; do
		port=$((20000 + RANDOM))
		(exec 3<>"/dev/tcp/$address/$port") 2>/dev/null || break
	done
	echo "$port"
}

postgres_failed() {
	echo "private PostgreSQL: $2 failed:" >&2
	tail -n 20 "$1.log" "$1/server.log" >&2 2>/dev/null
	return 1
}
