package main

import (
	"fmt"
	"time"

	"tollgate/internal/strict"
)

// maxAmount is the largest balance, charge and count of tokens.
const maxAmount = strict.MaxInt

const (
	defaultTenant  = "default"
	seedTenant     = "abc"
	anonymousGroup = "anonymous"

	maxTenantIDBytes = 64
	maxGroupBytes    = 64 // of a group's name, which is sent with each charge
	maxRateLimit     = 100_000

	minRefillPeriod = 60                 // seconds
	maxRefillPeriod = 366 * 24 * 60 * 60 // seconds
)

// validTenantID reports whether id is 1-64 of A-Z a-z 0-9 _ - and starts with a letter or digit. Only such an ID may
// become part of a Redis key.
func validTenantID(id string) bool {
	return isIdentifier(id, maxTenantIDBytes) && id[0] != '_' && id[0] != '-'
}

// isIdentifier reports whether s is 1 to maxBytes of A-Z a-z 0-9 _ -.
func isIdentifier(s string, maxBytes int) bool {
	for i := range len(s) {
		if !strict.IsWord(s[i]) {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= maxBytes
}

// actor is who changes something as an admin.
type actor struct {
	tokenHash string // SHA-256 of a tenant's admin token, in hex; "" is the operator
	name      string // in a config's history; "" is the usual one
}

// String returns the actor's name in a config's history.
func (a actor) String() string {
	switch {
	case a.name != "":
		return a.name
	case a.tokenHash == "":
		return "operator"
	}
	return a.tokenHash[:8]
}

// A tenant is a tenant as Redis held it when it was read. It is never changed.
type tenant struct {
	id         string
	generation string        // "" unless the ID was another tenant's before
	etag       string        // of the config: SHA-1 of the bytes in Redis, in hex
	config     *tenantConfig // nil if it is broken
}

// bytes returns about how much memory the tenant takes.
func (t *tenant) bytes() int {
	if t.config == nil {
		return 256
	}
	endpoints := 0
	for _, e := range t.config.text {
		endpoints += e.Bytes()
	}
	return 256 + len(t.config.json) + 2*len(t.config.encoded.all) + 256*len(t.config.groups) + endpoints
}

// A userGroup is what the holders of a group's API keys get.
type userGroup struct {
	tokens int64      // the balance of a new key
	limit  *rateLimit // nil: unlimited
	refill *refill    // nil: none
}

// A refill raises a balance below tokens to tokens, whenever another period of seconds has passed since the key was
// created.
type refill struct{ tokens, seconds int64 }

// next returns when a key is due for its next refill. last is when it was last found due, zero if it never was.
func (r *refill) next(created, last time.Time) time.Time {
	period := time.Duration(r.seconds) * time.Second
	if last.Before(created) {
		last = created
	}
	return created.Add((last.Sub(created)/period + 1) * period)
}

// A rateLimit allows that many requests in any window of that many seconds.
type rateLimit struct{ requests, seconds int64 }

// A groupTable is a config's groups as the scripts in lua/ read them:
//
//	table   = { group }
//	group   = \xff name \xfe [ limit ] [ \xfd refill ]
//	limit   = requests " " seconds
//	refill  = tokens " " seconds
//
// Numbers are decimal. The bytes \xfd, \xfe and \xff occur in no UTF-8, so in no name.
type groupTable struct {
	all      string            // the table; cut after maxSentGroups bytes or more, as it is not sent then
	groups   map[string]string // each group of the table by its name
	limited  bool              // a group has a rate limit
	refilled bool              // a group has a refill
}

// maxSentGroups bounds the groups that each charge sends, in bytes, since only Redis knows the group of its key. Beyond
// it a charge sends one group, and is repeated if its key is in another.
const maxSentGroups = 4 << 10

// add adds a group, whose name the table must not have yet.
func (g *groupTable) add(name string, group userGroup) {
	one := "\xff" + name + "\xfe"
	if limit := group.limit; limit != nil {
		one = fmt.Sprintf("%s%d %d", one, limit.requests, limit.seconds)
		g.limited = true
	}
	if refill := group.refill; refill != nil {
		one = fmt.Sprintf("%s\xfd%d %d", one, refill.tokens, refill.seconds)
		g.refilled = true
	}
	if g.groups == nil {
		g.groups = make(map[string]string)
	}
	g.groups[name] = one
	if len(g.all) <= maxSentGroups {
		g.all += one
	}
}

// noGroups is the table of a tenant without groups.
var noGroups groupTable

// refillGroups returns the groups for a script that needs them only if one has a refill.
func (t *tenant) refillGroups() *groupTable {
	if t.config != nil && t.config.encoded.refilled {
		return &t.config.encoded
	}
	return &noGroups
}

// argument returns the groups that a script gets: all, or only the group of that name; only is "" or the name.
func (g *groupTable) argument(name string) (groups, only string) {
	if len(g.all) <= maxSentGroups {
		return g.all, ""
	}
	return g.groups[name], name
}
