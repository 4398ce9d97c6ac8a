# shellcheck shell=bash
# The hosts of the fleet, each a network namespace on one bridge, and what runs on them. Source this file.
#
#   db1 10.77.0.1, db2 10.77.0.2    Patroni and its server, PgBouncer, a bell
#   hub 10.77.0.3                   etcd, nats-server
#   gw1 10.77.0.11 ...              an agent; its tunnel is 10.99.1.0/24 ...
#   c1 10.77.0.101 ...              a client of each gateway, 10.99.1.2

in_host() { ip netns exec "$tag-$1" "${@:2}"; }

hosts_build() {
	local number
	ip netns add "$tag-hub"
	ip -n "$tag-hub" link set lo up
	ip -n "$tag-hub" link add br0 type bridge
	ip -n "$tag-hub" link set br0 up
	ip -n "$tag-hub" address add 10.77.0.3/24 dev br0
	host_build db1 10.77.0.1
	host_build db2 10.77.0.2
	for ((number = 1; number <= gateways; number++)); do
		host_build "gw$number" "10.77.0.$((10 + number))"
		in_host "gw$number" sysctl -qw net.ipv4.ip_forward=1
		host_build "c$number" "10.77.0.$((100 + number))"
	done
}

host_build() {
	mkdir -m 700 "$work/$1"
	[[ $1 != db* ]] || chown postgres: "$work/$1"
	ip netns add "$tag-$1"
	ip -n "$tag-$1" link set lo up
	ip -n "$tag-hub" link add "$1" type veth peer name eth0 netns "$tag-$1"
	ip -n "$tag-hub" link set "$1" master br0 up
	ip -n "$tag-$1" address add "$2/24" dev eth0
	ip -n "$tag-$1" link set eth0 up
}

# What every server shows, signed by an authority of our own.
certificates() {
	mkdir -m 711 "$tls"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fleet \
		-keyout "$tls/ca.key" -out "$tls/ca.crt" 2>/dev/null
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server \
		-keyout "$tls/server.key" -out "$tls/server.csr" 2>/dev/null
	openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial -days 2 \
		-extfile <(echo "subjectAltName=IP:10.77.0.1,IP:10.77.0.2,IP:10.77.0.3
			basicConstraints=CA:FALSE" | sed 's/^\t*//') -out "$tls/server.crt" 2>/dev/null
	chown postgres: "$tls/server.key"
	chmod 600 "$tls/server.key"
}

# configure HOST FILE TARGET: one of the files beside this one, for a host.
configure() {
	local folder=$work/$1 address
	address=$(ip -n "$tag-$1" -4 -o address show dev eth0 | awk '{sub("/.*", "", $4); print $4}')
	sed -e "s|@name@|$1|g; s|@address@|$address|g; s|@folder@|$folder|g; s|@tls@|$tls|g; s|@password@|$password|g" \
		-e "s|@link@|$tag$1|g; s|@bin@|$(postgres_bin)|g" "$here/$2" >"$folder/$3"
}

# --- the database -------------------------------------------------------------------------------------------

patroni_start() {
	configure "$1" patroni.yml patroni.yml
	ip netns exec "$tag-$1" setpriv --reuid=postgres --regid=postgres --clear-groups --reset-env \
		patroni "$work/$1/patroni.yml" >>"$work/$1/patroni.log" 2>&1 &
}

is_primary() { in_host "$1" curl -sf -o /dev/null "http://$(address_of "$1"):8008/primary"; }
has_standby() { in_host hub curl -sf -o /dev/null "http://$(address_of "$(other "$(primary)")"):8008/synchronous"; }
address_of() { if [[ $1 == db1 ]]; then echo 10.77.0.1; else echo 10.77.0.2; fi; }
other() { if [[ $1 == db1 ]]; then echo db2; else echo db1; fi; }
primary() { if is_primary db2; then echo db2; else echo db1; fi; }

# sql_on DATABASE STATEMENTS: on whichever server is the primary.
sql_on() {
	PGPASSWORD=$password in_host hub psql -XqAt -v ON_ERROR_STOP=1 -c "$2" \
		"host=10.77.0.1,10.77.0.2 user=postgres dbname=$1 target_session_attrs=read-write connect_timeout=2
		sslmode=verify-full sslrootcert=$tls/ca.crt"
}
sql() { sql_on vpn "$1"; }

as_owner() {
	GATEPOST_CONFIG=$work/owner.toml \
	GATEPOST_DATABASE_URL="postgres://postgres:$password@10.77.0.1,10.77.0.2/vpn?target_session_attrs=read-write" \
		GATEPOST_DATABASE_TLS_CA_FILE=$tls/ca.crt in_host hub "$gatepost" "$@"
}

# --- what stands between the database and the gateways ------------------------------------------------------

pooler_start() {
	configure "$1" pgbouncer.ini pgbouncer.ini
	echo "\"gatepost_pool\" \"$password\"" >"$work/$1/userlist.txt"
	ip netns exec "$tag-$1" setpriv --reuid=postgres --regid=postgres --clear-groups --reset-env \
		"$(command -v pgbouncer)" "$work/$1/pgbouncer.ini" >>"$work/$1/pgbouncer.log" 2>&1 &
	echo $! >"$work/$1/pgbouncer.pid"
}

# The example's configuration with a user for each gateway.
broker_start() {
	local number id example=$root/deploy/nats-server.conf
	if [[ ! -e $work/nats.conf ]]; then
		sed -n '1,/# One for each gateway/p' "$example" | sed "s|/etc/nats/|$tls/|" >"$work/nats.conf"
		for ((number = 1; number <= gateways; number++)); do
			id=$(sql "select id from gateways where name = 'gw$number'")
			sed -n '/user: "fra-1"/,/^    }/p' "$example" | sed -e '1i\    {' \
				-e "s/fra-1/gw$number/g; s/00000000-0000-0000-0000-000000000001/$id/" >>"$work/nats.conf"
		done
		printf '  ]\n}\n' >>"$work/nats.conf"
	fi
	ip netns exec "$tag-hub" nats-server --config "$work/nats.conf" >>"$work/nats.log" 2>&1 &
	broker_pid=$!
}

bell_start() {
	configure "$1" bell.toml bell.toml
	(umask 077; echo "$password" >"$work/$1/bell.password"; echo bell:a-password-of-the-bell >"$work/$1/hints.login")
	ip netns exec "$tag-$1" "$gatepost" --config "$work/$1/bell.toml" bell >>"$work/$1/bell.log" 2>&1 &
	echo $! >"$work/$1/bell.pid"
}

# --- gateways and clients -----------------------------------------------------------------------------------

of_gateway() { in_host "gw$1" "$gatepost" --config "$work/gw$1/gatepost.toml" "${@:2}"; }

gateway_enroll() {
	local folder=$work/gw$1
	configure "gw$1" gateway.toml gatepost.toml
	(
		umask 077
		cp "$work/pool.password" "$folder/pool.password"
		echo "gw$1:a-password-of-gw$1" >"$folder/hints.login"
		GATEPOST_GATEWAY_NAME=gw$1 GATEPOST_GATEWAY_PRIVATE_KEY_FILE=$folder/private.key \
			as_owner enroll --endpoint "10.77.0.$((10 + $1)):51820" \
			--listen-port 51820 --vpn-cidr "10.99.$1.0/24" >"$folder/enroll.log"
		as_owner grant --token "gw$1" --pool-role gatepost_pool --create --role-password-file "$work/pool.password" \
			>"$folder/db.token"
	)
}

agent_start() {
	ip netns exec "$tag-gw$1" "$gatepost" --config "$work/gw$1/gatepost.toml" run >>"$work/gw$1/agent.log" 2>&1 &
}

all_follow_hints() {
	local number
	for ((number = 1; number <= gateways; number++)); do
		[[ $(of_gateway "$number" status --json 2>/dev/null | jq -r '"\(.state) \(.sync.mode)"') == "ready hints" ]] || return 1
	done
}

# A client with a row, and beside it a device that comes and goes.
client_start() {
	local link=${tag}c$1 folder=$work/c$1 key gateway
	in_host "c$1" "$gatepost" device "$link" >>"$folder/device.log" 2>&1 &
	await 10 in_host "c$1" wg show "$link" >/dev/null 2>&1 || fail "no userspace WireGuard: $(tail -n 3 "$folder/device.log")"
	(umask 077; wg genkey >"$folder/key")
	key=$(wg pubkey <"$folder/key")
	gateway=$(sql "with r as (insert into roles (name) values ('client$1') returning id),
			u as (insert into users (role_id, username, display_name, password_hash)
				select id, 'client$1', 'client', '!' from r returning id),
			d as (insert into devices (user_id, name, platform, device_fingerprint, public_key)
				select u.id, k.name, 'linux', 'client$1-' || k.name, k.key from u,
					(values ('laptop', '$key'), ('spare', '$(wg genkey | wg pubkey)')) k (name, key)
				returning id, name, public_key),
			p as (insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
				select d.id, g.id, d.public_key, ('10.99.$1.' || case d.name when 'laptop' then 2 else 3 end)::inet
				from d, gateways g where g.name = 'gw$1'
				returning gateway_id, device_id, assigned_ip)
		insert into ip_allocations (gateway_id, device_id, address) select * from p;
		select public_key from gateways where name = 'gw$1'")
	in_host "c$1" wg set "$link" private-key "$folder/key" peer "$gateway" \
		endpoint "10.77.0.$((10 + $1)):51820" allowed-ips "10.99.$1.0/24"
	ip -n "$tag-c$1" address add "10.99.$1.2/24" dev "$link"
	ip -n "$tag-c$1" link set "$link" up
}

client_answers() { in_host "c$1" ping -nq -c 1 -W 1 "10.99.$1.1" >/dev/null; }

# Whether each gateway has the peers that the database wants, and no other.
all_equal() {
	local number wanted
	wanted=$(sql "select g.name || ' ' || p.public_key from wireguard_peers p join devices d on d.id = p.device_id
		join gateways g on g.id = p.gateway_id where d.status = 'active' order by 1") || return 1
	for ((number = 1; number <= gateways; number++)); do
		diff -q <(sed -n "s/^gw$number //p" <<<"$wanted" | sort) \
			<(in_host "gw$number" wg show "${tag}gw$number" peers 2>/dev/null | sort) >/dev/null || return 1
	done
}
