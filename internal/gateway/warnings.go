package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const (
	maxUnknownWarnings = 100  // lines of the log on members that endpoints do not allow
	maxUsageWarnings   = 1000 // on endpoints that do not report usage, and on those that do not list their models
	maxPriceChecks     = 1000 // models of an endpoint that are compared with its patterns
	maxSpellings       = 8    // patterns that differ in case or spaces only, and are compared
)

// Warn calls add for each member of a complete endpoint that is accepted, but is probably not meant so: with the name
// of the member and what there is to say about it.
func (e *Endpoint) Warn(add func(member, sentence string)) {
	if e.session != nil {
		e.warnOfSession(add)
	}
	if e.onHangUp == cancelOnHangUp && e.anyMayReason() {
		add("on_hangup", `is "cancel" though reasoning is not false: what a model thinks for a client that has gone is free`)
	}
	if e.limitMember != "" && !e.format.LimitVaries() && e.limitMember != e.format.LimitMember("") {
		add("limit_member", "has no effect: all servers with that path expect the limit in the same member")
	}
	if model := e.withoutCacheWrite(); model != "" {
		add("models", fmt.Sprintf("has %s without cache_write: Anthropic asks 1.25 or 2 times the input price for a write",
			quoteName(model)))
	}
	for _, model := range e.cheaperPatterns() {
		add("models", fmt.Sprintf("has %s cheaper than %s: other spellings of that name cost less",
			quoteName(model.pattern), quoteName(model.name)))
	}
}

// NotUsed says why a Gateway does not use e, which is complete: it returns a member, and what is wrong with it. The
// member is "" if the reason is another.
func (e *Endpoint) NotUsed() (member, sentence string) {
	suffixes := e.URLSuffixes()
	ends := func(suffix string) bool { return e.url != nil && strings.HasSuffix(e.url.Path, suffix) }
	switch {
	case e.kind == llmwire.Realtime && suffixes == nil:
		return "type", `is missing: without "openai" or "ultravox" the endpoint is not used`
	case suffixes == nil:
		return "", "no request is for endpoints of its kind"
	case e.url == nil && !e.HasURL():
		return "url", "is missing"
	case !slices.ContainsFunc(suffixes, ends):
		last := len(suffixes) - 1
		names := suffixes[last]
		if last > 0 {
			names = strings.Join(suffixes[:last], ", ") + " or " + names
		}
		return "url", "is not used: its path should end in " + names
	}
	return "", "a member of it breaks a rule that is newer than the config: save the config to read which"
}

// quoteName quotes the name of a model for a sentence.
func quoteName(name string) string { return strconv.Quote(strict.Shorten(name)) }

// anyMayReason reports whether a model of the endpoint may generate what its responses do not show.
func (e *Endpoint) anyMayReason() (any bool) {
	e.prices.each(func(p *price) { any = any || p.mayReason(e) })
	return any
}

// withoutCacheWrite returns the first model whose input and output have different prices, and whose writes to a cache
// have no price, at an endpoint that writes only what a request asks it to: Anthropic's, who charges more for these. It
// returns "" if there is no such model.
func (e *Endpoint) withoutCacheWrite() string {
	if e.format.CachesUnasked() {
		return ""
	}
	for _, names := range [][]string{e.models, e.patterns} {
		for _, name := range names {
			p := e.prices.find(name)
			if !p.pricesWrites && p.rates[kindInput] != p.rates[kindOutput] {
				return name
			}
		}
	}
	return ""
}

// cheaperPattern is a name that ends in *, and a listed model that costs more.
type cheaperPattern struct{ pattern, name string }

// cheaperPatterns returns the patterns that are cheaper than a listed model that they would stand for if its name were
// spelled with other spaces or in another case, each once.
func (e *Endpoint) cheaperPatterns() (found []cheaperPattern) {
	byPrefix := make(map[string][]string) // patterns, by what they begin with, folded
	for _, pattern := range e.patterns {
		if prefix := fold(strings.TrimSuffix(pattern, "*")); len(byPrefix[prefix]) < maxSpellings {
			byPrefix[prefix] = append(byPrefix[prefix], pattern)
		}
	}
	for _, name := range e.models[:min(len(e.models), maxPriceChecks)] {
		folded, p := fold(name), e.prices.find(name)
		for length := 0; length <= len(folded) && len(byPrefix) > 0; length++ {
			prefix := folded[:length]
			for _, pattern := range byPrefix[prefix] {
				if e.prices.prefixes[strings.TrimSuffix(pattern, "*")].isCheaper(p) {
					found = append(found, cheaperPattern{pattern, name})
					delete(byPrefix, prefix)
					break
				}
			}
		}
	}
	return found
}

// fold returns a name as it is compared with others that differ only in case or spaces.
func fold(name string) string { return strings.ToLower(strings.ReplaceAll(name, " ", "")) }

// A firsts remembers what has been logged, so that it is logged once.
type firsts struct {
	most int // that it remembers: nothing more is new

	mu   sync.Mutex // guards seen
	seen map[string]bool
}

// isNew reports whether it is called with these words for the first time.
func (f *firsts) isNew(words ...string) bool {
	key := fmt.Sprintf("%q", words)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen[key] || len(f.seen) >= f.most {
		return false
	}
	if f.seen == nil {
		f.seen = make(map[string]bool)
	}
	f.seen[key] = true
	return true
}

// NoteRefusal counts and logs that Choose has refused a call for its unknown members, if it has. It is only called for
// users who exist, since the lines of the log are few.
func (g *Gateway) NoteRefusal(c *Call) {
	g.unknownMembers.Add(int64(len(c.refused)))
	for _, e := range c.endpoints {
		for _, name := range e.notAllowed(c.refused) {
			if g.unknownLogged.isNew(c.Tenant, e.label, name) {
				g.log.Warnf("The endpoint %s of tenant %s does not allow %q: requests with this member are refused",
					e.label, c.Tenant, name)
			}
		}
	}
}

// warnOfNoList logs that the provider of an endpoint does not list its models, because of an error of fetchList.
func (g *Gateway) warnOfNoList(e *Endpoint, tenant string, err error) {
	reason, isPlain := errors.AsType[listError](err)
	if !isPlain {
		reason = listError(failureReason(err))
	}
	if g.noListLogged.isNew(tenant, e.label) {
		g.log.Warnf("The endpoint %s of tenant %s does not list its models: %s", e.label, tenant, reason)
	}
}

// warnOfNoUsage logs that the endpoint does not say what its responses have used.
func (x *exchange) warnOfNoUsage() {
	if x.gateway.noUsageLogged.isNew(x.call.Tenant, x.endpoint.label) {
		charged := "charges are estimated"
		if x.endpoint.format.HoldsIfUnreported() {
			charged = "what is held is charged"
		}
		x.gateway.log.Warnf("The endpoint %s of tenant %s does not report usage: %s",
			x.endpoint.label, x.call.Tenant, charged)
	}
}
