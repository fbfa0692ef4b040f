package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/gateway"
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
	maxGroupModels   = 1000
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
	size := 256 + len(t.config.json) + 2*len(t.config.encoded.all) + 256*len(t.config.groups)
	for _, group := range t.config.groups {
		size += 32 * len(group.models)
	}
	for _, e := range t.config.all() {
		size += e.Bytes()
	}
	return size
}

// A userGroup is what the holders of a group's API keys get.
type userGroup struct {
	tokens int64      // the balance of a new key
	limit  *rateLimit // nil: unlimited
	refill *refill    // nil: none

	// What the gateway serves.
	models        gateway.ModelNames // nil: every model
	maxConcurrent int64              // requests of a key under way at a time; 0: any number
}

// A refill raises a balance below tokens to tokens, whenever another period has passed: of seconds since the key was
// created, or of the calendar in UTC.
type refill struct {
	tokens, seconds int64
	calendar        string // everyDay or everyMonth; "" is a period of seconds
}

// The periods of the calendar that a refill may have.
const (
	everyDay   = "day"   // which begins at 00:00 UTC
	everyMonth = "month" // which begins at 00:00 UTC of its first day
)

// next returns when a key is due for its next refill. last is when it was last found due, zero if it never was.
// nextRefill in lua/refill.lua is the same.
func (r *refill) next(created, last time.Time) time.Time {
	if last.Before(created) {
		last = created
	}
	last = last.UTC()
	switch r.calendar {
	case everyDay:
		return time.Date(last.Year(), last.Month(), last.Day()+1, 0, 0, 0, 0, time.UTC)
	case everyMonth:
		return time.Date(last.Year(), last.Month()+1, 1, 0, 0, 0, 0, time.UTC)
	}
	period := time.Duration(r.seconds) * time.Second
	return created.Add((last.Sub(created)/period + 1) * period)
}

// every returns the period as the scripts read it.
func (r *refill) every() string { return cmp.Or(r.calendar, strconv.FormatInt(r.seconds, 10)) }

// A rateLimit allows that many requests in any window of that many seconds.
type rateLimit struct{ requests, seconds int64 }

// A groupTable is a config's groups as the scripts in lua/ read them:
//
//	table   = { group }
//	group   = \xff name \xfe [ limit ] [ \xfd refill ] [ \xfc requests ]
//	limit   = requests " " seconds
//	refill  = tokens " " ( seconds | "day" | "month" )
//
// Numbers are decimal. The bytes \xfc to \xff occur in no UTF-8, so in no name.
type groupTable struct {
	all        string            // the table; cut after maxSentGroups bytes or more, as it is not sent then
	groups     map[string]string // each group of the table by its name
	limited    bool              // a group has a rate limit
	refilled   bool              // a group has a refill
	restricted []modelGroup      // the groups that have not all models
}

// A modelGroup is a group that has only some models.
type modelGroup struct {
	name   string
	models gateway.ModelNames
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
		one = fmt.Sprintf("%s\xfd%d %s", one, refill.tokens, refill.every())
		g.refilled = true
	}
	if group.maxConcurrent > 0 {
		one = fmt.Sprintf("%s\xfc%d", one, group.maxConcurrent)
	}
	if group.models != nil {
		g.restricted = append(g.restricted, modelGroup{name, group.models})
	}
	if g.groups == nil {
		g.groups = make(map[string]string)
	}
	g.groups[name] = one
	if len(g.all) <= maxSentGroups {
		g.all += one
	}
}

// denying returns those of the groups that have not all of models, as the scripts read them. only is "" or the name of
// the one group that is asked for.
func (g *groupTable) denying(models []string, only string) string {
	if len(g.restricted) == 0 || len(models) == 0 {
		return ""
	}
	var denying strings.Builder
	for _, group := range g.restricted {
		isDenied := func(model string) bool { return !group.models.Allow(model) }
		if (only == "" || group.name == only) && slices.ContainsFunc(models, isDenied) {
			denying.WriteString("\xff" + group.name + "\xfe")
		}
	}
	return denying.String()
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
