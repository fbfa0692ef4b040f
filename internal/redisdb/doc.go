// Package redisdb runs commands and Lua scripts on Redis: on one server, on the master that Sentinels name, or on the
// masters of a Redis Cluster. The [URL] says which. A caller sees a difference only in [Client.OneSlot]: all keys of
// one script must be in one slot of a cluster. The package knows nothing of what is stored, but its warnings speak of
// charges and balances.
//
// Commands and scripts that are small in both directions share one connection to each server. What callers send at the
// same time travels in one write. Small reads of what can be done without share another. Large ones take a connection
// of a pool, so that nobody waits behind them.
//
// # Guarantees
//
// A command that may have been executed is never sent twice. If there are several servers, one that was certainly not
// executed is sent again until its deadline, each time to the server that has its key then: a failover or a slot that
// moves costs time, not errors. On one server nothing is sent again, except a script that Redis did not know. After an
// error, [MayHaveRun] reports whether Redis may have executed the command all the same.
//
// With [Options].Replicas, a write succeeds only when that number of replicas have it.
//
// A server that fails is logged once, and once more when it works again, which is found out even if nobody calls.
//
// # Deadlines
//
// Methods take a deadline and no context, and return soon after it. To cancel a command that was sent would close its
// connection, but Redis would still execute it, and nobody would learn the outcome. So each command is waited for until
// its deadline, whether or not the request that it is for has gone away.
//
// # What is missing, and why there is no library
//
// There are no transactions (scripts take their place), no blocking commands, no subscriptions, and no reads from
// replicas. The only library below is redigo, which speaks the protocol. The one for clusters on redigo, mna/redisc,
// has not changed since 2023, does not follow ASK on a pipelined connection, and notices a dead master only when
// another node redirects to the next. Clients that do more, such as rueidis and go-redis, retry by rules of their own.
// Here that rule decides whether a write happens twice, so it must be in sight.
package redisdb
