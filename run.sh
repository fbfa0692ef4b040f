#!/usr/bin/env bash
# Builds tollgate and serves. `make run` calls it.
#
# If nobody listens at REDIS_URL, and that is a port of this machine without a password, it starts a Redis there. That
# Redis keeps its data in .redis/<port>, a directory per port, because two servers must not share an append-only file.
# It stops when tollgate has stopped: after Ctrl-C (SIGINT), SIGTERM, or SIGHUP, which a closing terminal sends. If
# others are connected to it then, such as the tollgate of another run.sh, it goes on, and the last run.sh stops it.
#
# The exit status is that of tollgate: 0 after a signal, 1 if it fails, 2 if a setting is wrong.
set -u
cd "$(dirname "$0")" || exit 1
export REDIS_URL="${REDIS_URL:-redis://localhost:6379}"
export GOGC="${GOGC:-400}" GOMEMLIMIT="${GOMEMLIMIT:-256MiB}" # docs/operations.md, "Memory", says why

echo "Building tollgate (the first time this takes up to half a minute) ..." >&2
go build -o .bin/tollgate . || exit 1

signals=0 port= redis=

# From here on the first signal stops tollgate cleanly, and a second one ends it immediately.
stop() {
	signals=$((signals + 1))
	[ -z "${tollgate:-}" ] || kill -TERM "$tollgate" 2>/dev/null
}
trap stop INT TERM HUP
trap : PIPE # a Redis that has gone is no reason to end

# join connects this script to the Redis at $port, and stays connected, so that others see that it is in use. It returns
# 1 if nobody listens there, and 2 if what listens is not a Redis that is ready, or is silent for 2 s.
join() {
	local reply= probe try
	# If the queue of a port is full, a connection waits for minutes, so another process tries it first.
	{ : 4<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null &
	probe=$!
	for try in {1..20}; do
		kill -0 "$probe" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL "$probe" 2>/dev/null && return 2
	wait "$probe" && { exec 4<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || return 1
	printf 'PING\r\n' >&4 2>/dev/null
	read -r -t 2 reply <&4
	[ "$reply" != $'+PONG\r' ] || return 0
	exec 4>&-
	return 2
}

# ask prints what the Redis at $port replies to commands, each of which is an argument. It waits 2 s for each line.
ask() {
	local line
	{
		printf '%s\r\n' "$@" QUIT >&5
		while read -r -t 2 line <&5; do printf '%s\n' "${line%$'\r'}"; done
	} 5<>"/dev/tcp/127.0.0.1/$port"
} 2>/dev/null

# pid_in prints the ID of Redis's process, which is in the reply to INFO.
pid_in() { sed -n 's/^process_id://p' <<<"$1"; }

# leave stops the Redis at $port if a run.sh, perhaps of another clone, has started it and nobody else is connected to
# it, and waits until its data is written. Others that leave do not count: of several that end together the last one
# stops it.
leave() {
	[ -n "$port" ] || return 0
	exec 4>&-
	local reply pid dir others=0 try before=$signals
	for try in 1 2 3 4 5; do # Redis may not yet have noticed that tollgate has gone
		reply=$(ask 'CLIENT SETNAME leaving' 'INFO server' 'CONFIG GET dir' 'CLIENT LIST')
		pid=$(pid_in "$reply")
		dir=$(sed -n '/^dir$/{n;n;p;}' <<<"$reply")
		if [ -z "$pid" ]; then
			pid=$redis # it does not reply, or does not listen yet
			break
		fi
		[ "$pid" = "$redis" ] || [ "$pid" = "$(cat "$dir/run.pid" 2>/dev/null)" ] || return 0
		others=$(grep '^id=' <<<"$reply" | grep -vc ' name=leaving ')
		[ "$others" != 0 ] || break
		sleep 0.1
	done
	if [ "$others" != 0 ]; then
		echo "Redis on port $port goes on: others are connected to it" >&2
		return 0
	fi
	[ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null || return 0
	while kill -0 "$pid" 2>/dev/null && [ "$signals" = "$before" ]; do wait "$pid" 2>/dev/null || sleep 0.1; done
}
trap leave EXIT

# background starts a command in a process group of its own. A signal from the terminal then reaches only this script,
# which stops one process after the other.
background() {
	set -m
	"$@" 4>&- &
	set +m
}

# check_data ends the script if Redis would ignore the data in a directory: with an append-only file it reads no
# dump.rdb, and of appendonlydir only what its manifest names. It would start empty, and overwrite the dump.rdb.
check_data() {
	local dir=$1
	if compgen -G "$dir/appendonlydir/*.manifest" >/dev/null || [ -e "$dir/appendonly.aof" ]; then
		return 0
	elif compgen -G "$dir/appendonlydir/*" >/dev/null; then
		echo "$dir/appendonlydir lacks its manifest, without which Redis would start empty: copy the whole directory" >&2
		exit 1
	elif [ -e "$dir/dump.rdb" ]; then
		sed "s#PORT#$port#g; s#DIR#$dir#g" >&2 <<'EOT'
DIR has a dump.rdb, but no appendonlydir: Redis would start empty, and overwrite the dump.rdb.
Keep a copy of it elsewhere. Then let Redis read it, and write appendonlydir:

    redis-server --port PORT --bind 127.0.0.1 --dir DIR --appendonly no --save '' --daemonize yes
    until redis-cli -p PORT ping | grep -q PONG; do sleep 1; done
    redis-cli -p PORT config set appendonly yes
    until redis-cli -p PORT info persistence | grep -q aof_rewrite_in_progress:0; do sleep 1; done
    redis-cli -p PORT info persistence | grep aof_last_bgrewrite_status:ok && redis-cli -p PORT shutdown

After that, start again. To begin empty instead, move the dump.rdb away.
EOT
		exit 1
	fi
}

start_redis() {
	local dir=.redis/$port
	mkdir -p "$dir" || exit 1
	check_data "$dir"
	echo "Starting Redis on port $port, with its data in $dir" >&2
	# Nothing of it may keep the terminal or a pipe open: it may outlive this script.
	background redis-server --port "$port" --bind 127.0.0.1 --dir "$dir" --logfile redis.log \
		--appendonly yes --maxmemory-policy noeviction </dev/null >>"$dir/redis.log" 2>&1
	redis=$!
	until join; do # it may have to load its data first
		if ! kill -0 "$redis" 2>/dev/null && ! join; then
			echo "Redis did not start: $dir/redis.log says why" >&2
			exit 1
		fi
		[ "$signals" = 0 ] || exit 0
		sleep 0.1
	done
	[ "$(pid_in "$(ask 'INFO server')")" = "$redis" ] || return 0 # another run.sh was faster
	echo "$redis" >"$dir/run.pid"
}

port=$(echo "$REDIS_URL" | sed -nE 's#^[[:space:]]*redis://(localhost|127\.0\.0\.1)(:([0-9]+))?/?[0-9]*[[:space:]]*$#:\3#p')
if [ -n "$port" ]; then
	port=${port#:}
	port=${port:-6379}
	join
	case $? in
	1) [ "$signals" != 0 ] || start_redis ;;
	2) port= ;; # tollgate says what is wrong with it, and nobody has to leave it
	esac
fi
[ "$signals" = 0 ] || exit 0

background .bin/tollgate
tollgate=$!
[ "$signals" = 0 ] || kill -TERM "$tollgate" # it came just before tollgate was set
# A signal ends a wait early, with a status that is not tollgate's: then wait again.
seen=-1
while [ "$seen" != "$signals" ]; do
	seen=$signals
	wait "$tollgate"
	code=$?
done
exit "$code"
