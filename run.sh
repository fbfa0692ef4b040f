#!/usr/bin/env bash
# Builds tollgate and serves. `make run` calls it.
#
# If nothing responds at REDIS_URL, and that is a port of this machine without a password, it starts a Redis there. That
# Redis keeps its data in .redis/<port>, a directory per port, because two servers must not share an append-only file.
# It stops when tollgate has stopped: after Ctrl-C (SIGINT), SIGTERM, or SIGHUP, which a closing terminal sends.
#
# The exit status is that of tollgate: 0 after a signal, 1 if it fails, 2 if a setting is wrong.
set -u
cd "$(dirname "$0")" || exit 1
export REDIS_URL="${REDIS_URL:-redis://localhost:6379}"
export GOGC="${GOGC:-400}" GOMEMLIMIT="${GOMEMLIMIT:-256MiB}" # docs/operations.md, "Memory", says why

echo "Building tollgate (the first time this takes up to half a minute) ..." >&2
go build -o .bin/tollgate . || exit 1

signals=0 redis=

# From here on the first signal stops tollgate cleanly, and a second one ends it immediately.
stop() {
	signals=$((signals + 1))
	[ -z "${tollgate:-}" ] || kill -TERM "$tollgate" 2>/dev/null
}
trap stop INT TERM HUP

# stop_redis stops the Redis that start_redis started, if any, and waits until its data is written.
stop_redis() {
	[ -n "$redis" ] || return 0
	kill -TERM "$redis" 2>/dev/null
	while kill -0 "$redis" 2>/dev/null; do wait "$redis"; done
}
trap stop_redis EXIT

# background starts a command in a process group of its own. A signal from the terminal then reaches only this script,
# which stops one process after the other.
background() {
	set -m
	"$@" &
	set +m
}

responds() { [ "$(redis-cli -h 127.0.0.1 -p "$1" ping 2>/dev/null)" = PONG ]; }

start_redis() {
	local port=$1 dir=.redis/$1
	mkdir -p "$dir" || exit 1
	echo "Starting Redis on port $port, with its data in $dir" >&2
	background redis-server --port "$port" --bind 127.0.0.1 --dir "$dir" --logfile redis.log \
		--appendonly yes --maxmemory-policy noeviction >/dev/null
	redis=$!
	until responds "$port"; do # it may have to load its data first
		if ! kill -0 "$redis" 2>/dev/null; then
			redis=
			echo "Redis did not start: $dir/redis.log says why" >&2
			exit 1
		fi
		[ "$signals" = 0 ] || exit 0
		sleep 0.1
	done
}

port=$(echo "$REDIS_URL" | sed -nE 's#^redis://(localhost|127\.0\.0\.1)(:([0-9]+))?/?[0-9]*$#:\3#p')
if [ -n "$port" ]; then
	port=${port#:}
	port=${port:-6379}
	[ -n "$(redis-cli -h 127.0.0.1 -p "$port" ping 2>/dev/null)" ] || start_redis "$port"
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
