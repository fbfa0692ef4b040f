package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/returnurl"
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

	maxSecrets    = 5 // of webhooks
	maxReturnURLs = 100
	maxPrices     = 1000

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
	size := 256 + len(t.config.json) + 2*len(t.config.encoded.all) + 256*len(t.config.groups) + t.config.payments.bytes()
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

// hasRefill reports whether a group of t has a refill.
func (t *tenant) hasRefill() bool { return t.config != nil && t.config.encoded.refilled }

// refillGroups returns the groups for a script that needs them only if one has a refill.
func (t *tenant) refillGroups() *groupTable {
	if t.hasRefill() {
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

// payments is auth.stripe of a tenant's config.
type payments struct {
	apiKey     string
	secrets    []string // of webhooks
	freeGroup  string   // "": the group in which a key was before
	returnURLs returnurl.Bases
	prices     []price // in the config's order

	isBroken bool // a member of a stored config breaks its rule
	named    []namedGroup
}

// A price is one of Stripe's prices, and what is bought for it.
type price struct {
	id     string
	group  string // of a subscription; "" of a pack
	tokens int64  // of one unit: of a subscription, in each period
	reset  bool   // the balance is raised to the tokens; else they are added
}

// A namedGroup is a group that auth.stripe names. user_groups may come after it.
type namedGroup struct{ path, group string }

// isEnabled reports whether tenants' users can pay.
func (p *payments) isEnabled() bool {
	return !p.isBroken && p.apiKey != "" && len(p.secrets) > 0 && len(p.returnURLs) > 0
}

// price returns the price with an ID.
func (p *payments) price(id string) (price, bool) {
	i := slices.IndexFunc(p.prices, func(one price) bool { return one.id == id })
	if i < 0 {
		return price{}, false
	}
	return p.prices[i], true
}

// bytes returns about how much memory the payments take.
func (p *payments) bytes() int {
	size := len(p.apiKey) + len(p.freeGroup) + p.returnURLs.Bytes()
	for _, secret := range p.secrets {
		size += 16 + len(secret)
	}
	for _, one := range p.prices {
		size += 56 + len(one.id) + len(one.group)
	}
	return size
}

// stripeRule returns the rule for auth.stripe. old has the rules that it shares with other members of auth, and that
// are as old as configs.
func (c *tenantConfig) stripeRule(old strict.Rules) strict.Rule {
	p, hasGroup := &c.payments, false
	rules := strict.Rules{
		"webhook_secret": c.forPayments(p.readSecrets),
		"free_group": c.forPayments(func(wrong *strict.Problems, value []byte) bool {
			hasGroup = strict.String(&p.freeGroup)(wrong, value)
			return hasGroup
		}),
		"return_urls": c.forPayments(p.readReturnURLs),
		"prices":      c.forPayments(c.readPrices),
	}
	maps.Copy(rules, old)
	checkKey := c.forPayments(func(wrong *strict.Problems, _ []byte) bool {
		return p.apiKey == "" || isVisible(p.apiKey) || wrong.Add("must be printable ASCII without spaces")
	})
	rules["api_key"] = func(wrong *strict.Problems, value []byte) bool {
		return strict.String(&p.apiKey)(wrong, value) && checkKey(wrong, value)
	}
	return func(wrong *strict.Problems, value []byte) bool {
		ok := c.membersOf(rules)(wrong, value)
		if hasGroup {
			p.named = append(p.named, namedGroup{wrong.MemberPath("free_group"), p.freeGroup})
		}
		return ok
	}
}

// isVisible reports whether s is not empty and has only printable ASCII characters, and no spaces.
func isVisible(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// forPayments returns the rule for a member of auth.stripe that is newer than configs that may be in Redis. If one
// there breaks it, nobody can pay.
func (c *tenantConfig) forPayments(rule strict.Rule) strict.Rule {
	newer := c.newer(rule, ": payments are disabled")
	return func(wrong *strict.Problems, value []byte) bool {
		broken := c.broken
		ok := newer(wrong, value)
		c.payments.isBroken = c.payments.isBroken || c.broken > broken
		return ok
	}
}

// readSecrets is the rule for the secrets of webhooks: one, or several while one is replaced.
func (p *payments) readSecrets(wrong *strict.Problems, value []byte) bool {
	add := func(wrong *strict.Problems, value []byte) bool {
		secret, _ := strict.Text(value)
		if secret == "" {
			return wrong.Add("must be a string that is not empty")
		}
		p.secrets = append(p.secrets, secret)
		return true
	}
	switch value[0] {
	case '"':
		return add(wrong, value)
	case '[':
	default:
		return wrong.Add("must be a string or an array of strings")
	}
	ok := strict.ArrayOf(add)(wrong, value)
	return ok && (len(p.secrets) <= maxSecrets || wrong.Add(fmt.Sprintf("must have at most %d secrets", maxSecrets)))
}

// readReturnURLs is the rule for the URLs below which pages may be to which Stripe sends users.
func (p *payments) readReturnURLs(wrong *strict.Problems, value []byte) bool {
	ok := strict.ArrayOf(func(wrong *strict.Problems, value []byte) bool {
		text, _ := strict.Text(value)
		base, ok := returnurl.ParseBase(text)
		if !ok {
			return wrong.Add("must be an absolute https URL with a path, such as https://app.example.com/, " +
				"or http for localhost")
		}
		p.returnURLs = append(p.returnURLs, base)
		return true
	})(wrong, value)
	few := len(p.returnURLs) <= maxReturnURLs
	return ok && (few || wrong.Add(fmt.Sprintf("must have at most %d URLs", maxReturnURLs)))
}

// readPrices is the rule for the prices.
func (c *tenantConfig) readPrices(wrong *strict.Problems, value []byte) bool {
	ok := strict.MapOf(c.priceRule)(wrong, value)
	few := len(c.payments.prices) <= maxPrices
	return ok && (few || wrong.Add(fmt.Sprintf("must have at most %d prices", maxPrices)))
}

const groupsTokens = -1 // of a price, until the groups are known

// priceRule returns the rule for the price with an ID. A pack with "reset" would sell nothing to those who have more.
func (c *tenantConfig) priceRule(id string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		if len(id) > 255 || !isVisible(id) {
			return wrong.Add("must be named by a price's ID of 1 to 255 characters")
		}
		one := price{id: id, tokens: groupsTokens}
		seen, ok := c.readKnown(wrong, value, strict.Rules{
			"group": strict.String(&one.group), "tokens": strict.Int(&one.tokens, 0, maxAmount),
			"reset": strict.Bool(&one.reset),
		})
		switch {
		case !ok:
			return false
		case seen["group"]:
			c.payments.named = append(c.payments.named, namedGroup{wrong.MemberPath("group"), one.group})
		case !seen["tokens"]:
			ok = wrong.Add("must have a group or tokens")
		case seen["reset"]:
			ok = wrong.AddMember("reset", "must have a group beside it")
		case one.tokens == 0:
			ok = wrong.AddMember("tokens", "must be ≥ 1 without a group")
		}
		c.payments.prices = append(c.payments.prices, one)
		return ok
	}
}

// completePayments is a rule for the whole config, once it is read: the groups that auth.stripe names must be there. It
// warns if nothing can be bought.
func (c *tenantConfig) completePayments(wrong *strict.Problems, _ []byte) bool {
	p, ok := &c.payments, true
	for _, name := range p.named {
		if _, known := c.groups[name.group]; !known {
			ok = wrong.Add(name.path + " must name a group of user_groups")
		}
	}
	p.named = nil
	if p.isBroken || !ok && c.check == nil {
		*p = payments{isBroken: true}
	}
	for i := range p.prices {
		if one := &p.prices[i]; one.tokens == groupsTokens {
			one.tokens = c.groups[one.group].tokens
		}
	}
	if len(p.prices) > 0 && !p.isEnabled() {
		c.warn("auth.stripe.prices are not sold: payments need api_key, webhook_secret and return_urls")
	}
	return ok
}
