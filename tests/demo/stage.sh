# shellcheck shell=bash
# The demo's stage: where it lives, what it prints, how it ends. Source this file.

stage_open() {
	tag=gpd$$ work=
	trap 'stage_abort' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 129' HUP
	# Without a trap, bash dies at once when the reader of its output is gone, and leaves the stage.
	trap 'exit 141' PIPE
	work=$(mktemp -d /tmp/gatepost-demo.XXXXXX)
	chmod 711 "$work"
	trap 'failed_line=$LINENO failed_file=${BASH_SOURCE[0]##*/}' ERR
	scenes=0
	if [[ -t 1 ]]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' green='' red='' dim='' plain=''; fi
	export GATEPOST_CONFIG=$work/gatepost.toml
	declare -p work tag >"$work/stage"
}

# Everything held: take it all away, or leave it and say how to play.
stage_close() {
	trap - ERR
	local secs=$SECONDS
	if [[ $1 == yes ]]; then
		trap - EXIT INT TERM HUP PIPE
		stage_kept
	else
		stage_strike "$work" "$tag"
		trap - EXIT
		printf '\n%sAll of it held%s, in %s s. Nothing was left behind. Next: `make demo-keep`, README.md.\n' "$bold" "$plain" "$secs"
	fi
}

stage_kept() {
	cat <<-END

		${bold}It runs.${plain} Play with it, as root:

		  export GATEPOST_CONFIG=$GATEPOST_CONFIG
		  psql -h $work/postgres/socket -U postgres vpn     change anything: users, devices, policies
		  $gatepost status --watch
		  ip netns exec $tag-gw $gatepost plan              what a pass would change
		  ip netns exec $tag-bob ping 10.99.0.1             be Bob; his policy is yours to write
		  ip netns exec $tag-gw nft list table inet gatepost
		  tail -f $work/agent.log

		End it with:  tests/demo.sh --stop $work
	END
}

stage_stop() {
	[[ -r $1/stage ]] || { echo "demo: no demo in $1" >&2; exit 1; }
	# shellcheck disable=SC1091
	. "$1/stage"
	stage_strike "$work" "$tag"
	echo "The demo in $work is gone."
}

# Strikes the stage before it prints anything: the terminal or the pipe may be gone.
stage_abort() {
	local status=$? words=
	[[ $status -ne 1 || ! -s $work/agent.log ]] || words=$(tail -n 20 "$work/agent.log")
	stage_strike "$work" "$tag"
	[[ -z $words ]] || printf -- "--- the end of the agent's log\n%s\n" "$words" >&2 || :
	[[ -z ${failed_line-} ]] || echo "--- stopped at $failed_file:$failed_line" >&2 || :
	exit "$status"
}

# Ends what runs in our namespaces, then the namespaces, the database and the directory. From here on
# no signal and no failed command keeps it from the rest.
stage_strike() {
	local work=$1 tag=$2 space pids
	trap '' INT TERM HUP PIPE
	trap - ERR
	set +e
	[[ -n $work ]] || return 0
	for space in $(ip netns list 2>/dev/null | awk -v tag="$tag-" 'index($1, tag) == 1 {print $1}'); do
		pids=$(ip netns pids "$space")
		# Grouped: bash would say "Killed" of its own ones as soon as it notices.
		# shellcheck disable=SC2086  # one word per process
		[[ -z $pids ]] || { kill -KILL $pids && wait $pids; } 2>/dev/null
		ip netns delete "$space"
	done
	rm -f "/var/run/wireguard/$tag"?.sock
	postgres_stop "$work/postgres"
	# A server that was only about to start, and sessions with it.
	pids=$(pgrep -f "$work/postgres")
	# shellcheck disable=SC2086
	[[ -z $pids ]] || { kill -KILL $pids && wait $pids; } 2>/dev/null
	rm -rf "$work"
}

# --- what it prints -------------------------------------------------------------------------------------

scene() {
	scenes=$((scenes + 1))
	printf '\n%s%d. %s%s\n' "$bold" "$scenes" "$1" "$plain"
}

# good WHAT [FIGURE]: WHAT was seen to hold.
good() { printf '   %s✓%s %-64s %s\n' "$green" "$plain" "$1" "${2-}"; }

say() { printf '     %s\n' "$1"; }

fail() {
	printf '   %s✗ %s%s\n' "$red" "$1" "$plain" >&2
	exit 1
}

# show COMMAND...: runs it and prints it with its output.
show() {
	printf '\n   %s$ %s%s\n' "$dim" "$*" "$plain"
	local output status=0
	output=$(in_space gw "$gatepost" "${@:2}") || status=$?
	sed 's/^/   /' <<<"$output"
	[[ $status -eq 0 ]] || fail "$* ended with $status"
}

show_sql() {
	printf '\n   %svpn=# %s%s\n' "$dim" "$1" "$plain"
	psql -X -h "$work/postgres/socket" -U postgres -P footer=off -c "$1" vpn | sed 's/^/   /'
}

# explained WHO WHERE EXIT: prints `gatepost explain`, whose exit must be EXIT (0 allows, 2 denies).
explained() {
	local output status=0
	output=$(in_space gw "$gatepost" explain "$1" "$2") || status=$?
	printf '\n   %s$ gatepost explain %s %s%s\n' "$dim" "$1" "$2" "$plain"
	sed 's/^/   /' <<<"$output"
	[[ $status -eq $3 ]] || fail "gatepost explain $1 $2 ended with $status, not $3"
}

# --- time -----------------------------------------------------------------------------------------------

clock() { started=$EPOCHREALTIME; }
elapsed() { ms_between "$started" "$EPOCHREALTIME"; }
after_commit() {
	local ms
	ms=$(ms_between "$committed" "$1")
	if [[ $ms -ge 0 ]]; then echo "$ms ms after the commit"; else echo "$((-ms)) ms before the commit returned"; fi
}
ms_between() { echo $(((${2/./} - ${1/./}) / 1000)); }

# await SECS COMMAND...: tries until it succeeds; fails after SECS.
await() {
	local deadline=$((${EPOCHREALTIME/./} + $1 * 1000000))
	shift
	until "$@"; do
		[[ ${EPOCHREALTIME/./} -lt $deadline ]] || return 1
		read -rt 0.005 <> <(:) || :
	done
}

# --- SQL ------------------------------------------------------------------------------------------------

# One session for the whole demo, so that a commit's time is not a process's start.
database_open() {
	coproc DATABASE { exec psql -XqAt -v ON_ERROR_STOP=1 -h "$work/postgres/socket" -U postgres vpn 2>&1; }
	sql_in=${DATABASE[1]} sql_out=${DATABASE[0]}
}

# sql STATEMENTS: prints what they answer.
sql() {
	local line
	printf '%s;\nselect %s;\n' "$1" "'end of answer'" >&"$sql_in" || fail "psql is gone"
	while IFS= read -r line <&"$sql_out"; do
		[[ $line != 'end of answer' ]] || return 0
		echo "$line"
	done
	fail "SQL failed: $1"
}

# commit STATEMENTS: shows and runs them in one transaction; `committed` is when psql had the answer.
commit() {
	local answer
	# shellcheck disable=SC2001
	sed -e "s/.*/   $dim&$plain/" <<<"$1;"
	printf 'begin; %s; commit;\nselect %s;\n' "$1" "'committed'" >&"$sql_in" || fail "psql is gone"
	IFS= read -r answer <&"$sql_out" || fail "psql is gone"
	committed=$EPOCHREALTIME
	[[ $answer == committed ]] || fail "SQL failed: $answer"
}
