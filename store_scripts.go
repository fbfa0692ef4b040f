package main

import (
	"embed"
	"strconv"
	"strings"

	"tollgate/internal/redisdb"
)

// Each script is one atomic step in Redis. It is made of files in lua/: lib.lua, perhaps more files with functions, and
// last the one whose head says what the script takes and returns.
//
//go:embed lua/*.lua
var luaFiles embed.FS

// A script that needs memory only at times has two forms: one that runs while Redis's memory is full, so that what
// needs none goes on, and a growing one.
var (
	chargeScript        = newBalanceScript("charge", redisdb.AllowOOM, "norefill", "norate", "charge")
	growingChargeScript = newBalanceScript("growing charge", redisdb.DenyOOM, "norefill", "rate", "charge")

	// The same for tenants of which a group has a refill: others do not pay for it.
	refillChargeScript        = newBalanceScript("refill charge", redisdb.AllowOOM, "refill", "norate", "charge")
	growingRefillChargeScript = newBalanceScript("growing refill charge", redisdb.DenyOOM, "refill", "rate", "charge")

	holdScript    = newBalanceScript("hold", redisdb.DenyOOM, "refill", "rate", "holds", "taking", "hold")
	settleScript  = newBalanceScript("settle", redisdb.AllowOOM, "refill", "holds", "visitor", "settling", "settle")
	renewScript   = newBalanceScript("renew", redisdb.AllowOOM, "refill", "holds", "visitor", "renew")
	releaseScript = newScript("release", redisdb.AllowOOM, "balance", "holds", "release")

	// The quick forms of hold and settle, which leave unusual holds to these.
	quickHoldScript        = newScript("quick hold", redisdb.DenyOOM, "taking", "quickhold")
	limitedQuickHoldScript = newScript("limited quick hold", redisdb.DenyOOM, "rate", "taking", "quickhold")
	quickSettleScript      = newScript("quick settle", redisdb.AllowOOM, "quicksettle")

	exchangeScript = newBalanceScript("exchange", redisdb.DenyOOM, "refill", "holds", "visitor", "taking", "settling",
		"exchange")
	checkScript = newBalanceScript("check", redisdb.NoWrites, "visitor", "taking", "check")

	loginScript        = newScript("login", redisdb.AllowOOM, "login") // to refuse
	growingLoginScript = newScript("growing login", redisdb.DenyOOM, "login")

	countScript      = newScript("count", redisdb.DenyOOM, "count")
	issueScript      = newScript("issue", redisdb.DenyOOM, "issued", "issue")
	keyScript        = newBalanceScript("key", redisdb.AllowOOM, "refill", "holds", "key")
	growingKeyScript = newBalanceScript("growing key", redisdb.DenyOOM, "refill", "holds", "key")
	rotateScript     = newScript("rotate", redisdb.DenyOOM, "balance", "rotate")
	revokeScript     = newScript("revoke", redisdb.AllowOOM, "balance", "revoke")

	noteScript   = newScript("note", redisdb.DenyOOM, "issued", "note")
	shareScript  = newScript("share", redisdb.DenyOOM, "balance", "share")
	orphanScript = newScript("orphan", redisdb.AllowOOM, "orphan")

	indexScript   = newScript("index", redisdb.DenyOOM, "index") // to add
	unindexScript = newScript("unindex", redisdb.AllowOOM, "index")
	ownerScript   = newScript("owner", redisdb.NoWrites, "owner")

	signInScript        = newScript("signin", redisdb.AllowOOM, "signin") // to read or delete
	growingSignInScript = newScript("growing signin", redisdb.DenyOOM, "signin")
	userScript          = newScript("user", redisdb.DenyOOM, "user")
	closeScript         = newScript("close", redisdb.DenyOOM, "balance", "refill", "holds", "close")
	receiveScript       = newScript("receive", redisdb.DenyOOM, "balance", "refill", "holds", "receive")
	movedScript         = newScript("moved", redisdb.AllowOOM, "moved")

	configScript    = newScript("config", redisdb.DenyOOM, "config")
	loadScript      = newScript("load", redisdb.NoWrites, "load")
	unchangedScript = newScript("unchanged", redisdb.NoWrites, "unchanged")
	deleteScript    = newScript("delete", redisdb.AllowOOM, "delete")
	tokenScript     = newScript("token", redisdb.DenyOOM, "token")

	keepScript   = newScript("keep", redisdb.DenyOOM, "keep")
	forgetScript = newScript("forget", redisdb.AllowOOM, "forget")

	grantScript        = newScript("grant", redisdb.DenyOOM, "balance", "refill", "holds", "paid", "grant")
	reverseScript      = newScript("reverse", redisdb.DenyOOM, "balance", "refill", "holds", "paid", "reverse")
	subscriptionScript = newScript("subscription", redisdb.DenyOOM, "balance", "paid", "subscription")
	swapScript         = newScript("swap", redisdb.DenyOOM, "swap")
	listScript         = newScript("list", redisdb.DenyOOM, "list")

	usageScript     = newScript("usage", redisdb.DenyOOM, "counts", "usage")
	keyUsageScript  = newScript("key usage", redisdb.DenyOOM, "counts", "keyusage")
	userUsageScript = newScript("user usage", redisdb.DenyOOM, "userusage")
	topUsersScript  = newScript("top users", redisdb.NoWrites, "topusers")
)

// newScript returns the script of that name, for errors and the log, that consists of lib.lua and the files named.
func newScript(name string, mode redisdb.Mode, files ...string) *redisdb.Script {
	return redisdb.NewScript(name, luaSource(files...), mode)
}

// balanceScript is a script on the balance of an API key. If own is called with a key that shares the balance of
// another, it says so, and sharing runs on that: see sharer.lua.
type balanceScript struct{ own, sharing *redisdb.Script }

// newBalanceScript returns the script that consists of lib.lua, balance.lua and the files named.
func newBalanceScript(name string, mode redisdb.Mode, files ...string) balanceScript {
	return balanceScript{
		own:     newScript(name, mode, append([]string{"balance"}, files...)...),
		sharing: newScript("sharing "+name, mode, append([]string{"balance", "sharer"}, files...)...),
	}
}

// luaSource returns lib.lua and the files named, one after the other. It panics if there is no such file.
func luaSource(files ...string) string {
	var source strings.Builder
	for _, file := range append([]string{"lib"}, files...) {
		text, err := luaFiles.ReadFile("lua/" + file + ".lua")
		if err != nil {
			panic(err)
		}
		source.Write(text)
	}
	return source.String()
}

// requiredCommands are the commands that charges, logins, the loading of configs, the revocation of admin tokens, the
// index of users' keys and the gateway need, by prefix of their keys.
var requiredCommands = []redisdb.Requirement{
	{Prefix: "apiKey:", Commands: "DEL HDEL HGET HINCRBY HMGET HSET PERSIST PEXPIRE PEXPIRETIME RENAME TIME UNLINK"},
	{Prefix: "{apiKey:", Commands: "DEL EXISTS GET HDEL HEXISTS HGET HGETALL HLEN HMGET HRANDFIELD HSET LINDEX LLEN " +
		"LRANGE LTRIM PERSIST PEXPIRE PEXPIREAT RENAME RPUSH SET UNLINK ZADD ZCARD ZRANGE ZREM"},
	{Prefix: "login:", Commands: "DEL LINDEX LRANGE LTRIM PEXPIRE RPUSH"},
	{Prefix: "tenant:", Commands: "GET"},
	{Prefix: "{tenant:", Commands: "DEL GET HDEL HGET HGETALL HLEN HMGET HSCAN HSET PEXPIRE UNLINK ZADD " +
		"ZCARD ZRANGE ZREM"},
	{Prefix: "cache:", Commands: "GET GETRANGE SET"},
	{Prefix: "{responses:", Commands: "HDEL HMGET HSET PEXPIRE PEXPIRETIME TIME ZADD ZCARD ZRANGE ZREM"},
	{Prefix: "{userKeys:", Commands: "PERSIST PEXPIREAT TIME ZADD ZCARD ZRANGE ZREM"},
	{Prefix: "checkout:", Commands: "GET PEXPIRE SET"},
	{Prefix: "payments:", Commands: "UNLINK ZADD ZCARD ZRANGE ZREM"},
	{Prefix: "userKeys:", Commands: "SRANDMEMBER SREM"},
	{Prefix: "users:", Commands: "UNLINK ZADD ZRANGE ZREM"},
	{Prefix: deploymentRedisKey, Commands: "GET SET"},
}

// probeKey returns the i-th name of an API key in Redis that never exists: no API key has braces.
func probeKey(i int) string { return apiKeyRedisKey("{" + strconv.Itoa(i) + "}") }
