package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"tollgate/internal/cors"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// seedConfig is the config of seedTenant, which is written at start if it does not exist.
//
//go:embed seed-config.json
var seedConfig []byte

// A tenantConfig is a config as tollgate uses it. It is never changed once parsed.
type tenantConfig struct {
	json     []byte // the response of GET …/admin/config
	compact  []byte // the config within json: as it was put, but for white space
	groups   map[string]userGroup
	encoded  groupTable
	busiest  int64    // the largest max_concurrent of the groups; 0 if none has one
	warnings []string // sentences on members that are probably misspelled or have no effect
	compared int      // unknown members that were compared with known ones for warnings
	caching  gateway.Caching
	ignored  []string // sentences for the log whenever the config is loaded, on what has no effect or is switched off
	broken   int      // such values

	// endpoints are those that the gateway can use: of each kind the default one first, then in the config's order.
	endpoints gateway.Endpoints
	realtime  gateway.Endpoints // the same for sessions, which no other request uses

	// check is called for each endpoint of a config that is put, and says whether it may be saved: rules that are newer
	// than configs in Redis. It is nil for those, which are served all the same. So are those with newMembers.
	check func(e *gateway.Endpoint, wrong *strict.Problems) bool

	clientIDs map[string][]string // by member of auth, for which ID tokens may be issued
	payments  payments
	origins   cors.Origins // whose pages may call tollgate
}

// What is done about a member of a stored config that breaks a newer rule.
const (
	noEffect = ", and has no effect"
	notUsed  = ": its endpoint is not used"
)

// newMembers are the members of endpoints, their models and groups whose rules are newer than configs that may be in
// Redis, where they had no effect, whatever their values. They have what is done if these break the rules.
var newMembers = map[string]string{
	"cached_input": notUsed, "cache_write": notUsed, "cache_write_1h": notUsed, "audio_input": notUsed,
	"image_input": notUsed, "cached_audio_input": notUsed, "audio_output": notUsed, "image_output": notUsed,
	"search": notUsed, "request": notUsed, "second": notUsed, "character": notUsed, "above": notUsed,
	"reasoning": notUsed, "allow": notUsed, "limit": notUsed,
	"limit_member": notUsed, "min_output_tokens": notUsed, "file_tokens": notUsed, "stream_usage": notUsed,
	"user_ids": notUsed, "state_ttl": notUsed, "image_tokens": notUsed, "max_concurrent": noEffect,
}

// maxCompared bounds the unknown members of a config that are compared with known ones; of a map, its members.
const maxCompared = 1000

// A configError lists what is wrong with a config, in the config's order. It names members by their paths, and never
// quotes a value: configs contain secrets.
type configError struct{ problems strict.Problems }

func (e *configError) Error() string { return e.sentences()[0] }

// sentences returns a sentence for each problem, and one for all that strict does not put into words.
func (e *configError) sentences() []string {
	var all []string
	for _, problem := range e.problems.Sentences {
		all = append(all, "Invalid config: "+problem)
	}
	if e.problems.More > 0 {
		all = append(all, fmt.Sprintf("Invalid config: %d more members are wrong", e.problems.More))
	}
	return all
}

// checkJSON returns a *configError if data is not valid JSON.
func checkJSON(data []byte) error {
	if err := strict.Check(data); err != nil {
		return &configError{strict.Problems{Sentences: []string{"it is not valid JSON: " + err.Error()}}}
	}
	return nil
}

// parseConfig checks data, which is or was in Redis, against the rules for configs. Unknown members are kept byte for
// byte, except white space. The error is a *configError.
func parseConfig(data []byte) (*tenantConfig, error) { return parseConfigWith(data, nil) }

// parseConfigWith does what parseConfig does, and calls check, unless it is nil, for each endpoint.
func parseConfigWith(data []byte, check func(*gateway.Endpoint, *strict.Problems) bool) (*tenantConfig, error) {
	if err := checkJSON(data); err != nil {
		return nil, err
	}
	response := bytes.NewBufferString(`{"config":`)
	start := response.Len()
	_ = json.Compact(response, data) // cannot fail: data is valid
	end := response.Len()
	response.WriteString("}\n")
	c := &tenantConfig{
		json:      response.Bytes(),
		compact:   response.Bytes()[start:end:end],
		groups:    make(map[string]userGroup),
		clientIDs: make(map[string][]string),
		check:     check,
	}
	var wrong strict.Problems
	ok := c.compact[0] == '{' || wrong.Add("it must be an object")
	ok = ok && c.membersOf(c.rules())(&wrong, c.compact)
	ok = c.forPayments(c.completePayments)(&wrong, c.compact) && ok
	if !ok {
		return nil, &configError{wrong}
	}
	c.all().TellApart()
	return c, nil
}

// endpoint returns the endpoint of a kind and a name, or nil if the config has none. If the gateway does not use it,
// unused is a sentence that says why.
func (c *tenantConfig) endpoint(kind llmwire.Kind, name string) (found *gateway.Endpoint, unused string) {
	isIt := func(e *gateway.Endpoint) bool { return e.Kind() == kind && e.Name == name }
	all := c.all()
	if i := slices.IndexFunc(all, isIt); i >= 0 {
		return all[i], ""
	}
	// Those that are not used are not kept, since a config may have very many of them.
	_, _ = parseConfigWith(c.compact, func(e *gateway.Endpoint, _ *strict.Problems) bool {
		if isIt(e) {
			found = e
		}
		return true
	})
	if found == nil {
		return nil, ""
	}
	member, sentence := found.NotUsed()
	if member == "" {
		return found, "The endpoint is not used: " + sentence
	}
	return found, "The endpoint's " + member + " " + sentence
}

// all returns the endpoints that the gateway can use, those for sessions last.
func (c *tenantConfig) all() gateway.Endpoints { return slices.Concat(c.endpoints, c.realtime) }

// membersOf returns the rule for an object whose members keep rules. It accepts unknown members, and warns of those
// that are probably misspelled.
func (c *tenantConfig) membersOf(rules strict.Rules) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		_, ok := c.readMembers(wrong, value, rules)
		return ok
	}
}

// readMembers reads an object as strict.ReadObject does. It warns of each unknown member whose name is within two
// letters of a known one that is missing, if it is among the first maxCompared unknown members of the config.
func (c *tenantConfig) readMembers(wrong *strict.Problems, value []byte, rules strict.Rules) (
	seen map[string]bool, ok bool,
) {
	return c.readWarning(wrong, value, rules, "")
}

// readKnown does what readMembers does, and warns of all other unknown members, too, as of an object that bounds what
// somebody may do: max_requests, for example, looks as if it did.
func (c *tenantConfig) readKnown(wrong *strict.Problems, value []byte, rules strict.Rules) (
	seen map[string]bool, ok bool,
) {
	return c.readWarning(wrong, value, rules, "is not known: it has no effect")
}

// newer returns the rule for a member that a stored config may have with any value. effect says what one that breaks
// rule does.
func (c *tenantConfig) newer(rule strict.Rule, effect string) strict.Rule {
	if c.check != nil {
		return rule
	}
	return strict.Lenient(rule, func(sentence string) {
		c.broken++
		if len(c.ignored) < strict.MaxProblems {
			c.ignored = append(c.ignored, sentence+effect)
		}
	})
}

// knownMembersOf returns readKnown as a rule.
func (c *tenantConfig) knownMembersOf(rules strict.Rules) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		_, ok := c.readKnown(wrong, value, rules)
		return ok
	}
}

// readWarning does what readMembers does, and warns of all other unknown members with the sentence warning, unless it
// is "".
func (c *tenantConfig) readWarning(wrong *strict.Problems, value []byte, rules strict.Rules, warning string) (
	seen map[string]bool, ok bool,
) {
	var unknown []string
	seen, ok = strict.ReadObject(wrong, value, func(name string) strict.Rule {
		rule := rules[name]
		if effect := newMembers[name]; rule != nil && effect != "" {
			return c.newer(rule, effect)
		}
		if rule == nil && c.compared < maxCompared && len(name) <= strict.MaxNearestBytes {
			unknown = append(unknown, name)
			c.compared++
		}
		return rule
	})
	if len(unknown) == 0 {
		return seen, ok
	}
	c.warnOfMisspelled(wrong, unknown, slices.Sorted(maps.Keys(rules)), seen, warning)
	return seen, ok
}

// mapOf returns the rule for an object whose members may have any names. Some names are usual: they mean something to
// tollgate. It warns of each other name, among the object's first maxCompared, that is within two letters of a usual
// one that is missing.
func (c *tenantConfig) mapOf(rule func(name string) strict.Rule, usual ...string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var others []string
		seen, ok := strict.ReadObject(wrong, value, func(name string) strict.Rule {
			if len(others) < maxCompared && len(name) <= strict.MaxNearestBytes && !slices.Contains(usual, name) {
				others = append(others, name)
			}
			return rule(name)
		})
		c.warnOfMisspelled(wrong, others, slices.Clone(usual), seen, "")
		return ok
	}
}

// warnOfMisspelled warns of each of names, which an object's members have, that is near one of known that none has, and
// of others with the sentence other, unless it is "". It changes known.
func (c *tenantConfig) warnOfMisspelled(wrong *strict.Problems, names, known []string, seen map[string]bool,
	other string) {
	missing := slices.DeleteFunc(known, func(name string) bool { return seen[name] })
	for _, name := range names {
		if len(c.warnings) == strict.MaxProblems {
			break
		}
		warning := other
		if best := strict.Nearest(name, missing); best != "" {
			warning = fmt.Sprintf("is not known: did you mean %s?", best)
		}
		if warning != "" {
			c.warnings = append(c.warnings, wrong.MemberPath(name)+" "+warning)
		}
	}
}

// warn adds a warning, unless there are many.
func (c *tenantConfig) warn(sentence string) {
	if len(c.warnings) < strict.MaxProblems {
		c.warnings = append(c.warnings, sentence)
	}
}

// rules returns the rules for a config, which read what tollgate uses into c.
func (c *tenantConfig) rules() strict.Rules {
	return strict.Rules{
		"auth":        c.mapOf(c.authRule, "google_oauth", "apple_oauth", "stripe"),
		"user_groups": c.mapOf(c.groupRule, anonymousGroup, "google_logged_in", "apple_logged_in"),
		"cors":        c.membersOf(strict.Rules{"allowed_origins": c.origins.Read}),
		"providers":   strict.MapOf(c.providerRule),
		"caching":     c.readCaching,
	}
}

// readCaching is the rule for caching. It warns if that caches nothing, although it is enabled.
func (c *tenantConfig) readCaching(wrong *strict.Problems, value []byte) bool {
	ok := c.membersOf(c.caching.Rules())(wrong, value)
	if c.caching.IsIdle() && len(c.warnings) < strict.MaxProblems {
		c.warnings = append(c.warnings, "caching.enabled is true but text_ttl and transcription_ttl are 0: nothing is cached")
	}
	return ok
}

// authRule returns the rule for one member of auth.
func (c *tenantConfig) authRule(name string) strict.Rule {
	addID := func(wrong *strict.Problems, value []byte) bool {
		var id string
		ok := strict.String(&id)(wrong, value)
		if id != "" {
			c.clientIDs[name] = append(c.clientIDs[name], id)
		}
		return ok
	}
	rules := strict.Rules{
		"api_key": strict.AnyString, "client_secret": strict.AnyString,
		"client_id": addID, "client_ids": strict.ArrayOf(addID),
	}
	if name == "stripe" {
		return c.stripeRule(rules)
	}
	return c.membersOf(rules)
}

// groupRule returns the rule for one member of user_groups.
func (c *tenantConfig) groupRule(name string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		if name == "" || len(name) > maxGroupBytes {
			return wrong.Add(fmt.Sprintf("must have a name of 1 to %d bytes", maxGroupBytes))
		}
		var group userGroup
		var limit rateLimit
		seen, ok := c.readKnown(wrong, value, strict.Rules{
			"tokens":            strict.Int(&group.tokens, 0, maxAmount),
			"rate_limit":        strict.Int(&limit.requests, 0, maxRateLimit),
			"rate_limit_window": strict.Int(&limit.seconds, 1, maxAmount),
			"refill":            c.refillRule(&group.refill),
			"models":            c.groupModels(&group.models),
			"max_concurrent":    strict.Int(&group.maxConcurrent, 1, maxHolds),
		})
		if seen["rate_limit"] {
			if !seen["rate_limit_window"] {
				ok = wrong.AddMember("rate_limit_window", "is missing beside rate_limit")
			}
			group.limit = &limit
		}
		c.groups[name] = group
		c.busiest = max(c.busiest, group.maxConcurrent)
		c.encoded.add(name, group)
		return ok
	}
}

// refillRule returns the rule for a group's refill.
func (c *tenantConfig) refillRule(dst **refill) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		*dst = new(refill)
		seen, ok := c.readKnown(wrong, value, strict.Rules{
			"tokens": strict.Int(&(*dst).tokens, 1, maxAmount),
			"every":  (*dst).readEvery,
		})
		return wrong.Require(seen, "tokens", "every") && ok
	}
}

// readEvery is the rule for the period of a refill.
func (r *refill) readEvery(wrong *strict.Problems, value []byte) bool {
	if text, isText := strict.Text(value); isText {
		r.calendar = text
		return text == everyDay || text == everyMonth || wrong.Add(`must be "day", "month" or a number of seconds`)
	}
	return strict.Seconds(&r.seconds, minRefillPeriod, maxRefillPeriod)(wrong, value)
}

// groupModels returns the rule for the models of a group. What breaks it in a stored config allows the models that it
// names, and no others, so that nobody gets all of them by mistake. null is as good as nothing.
func (c *tenantConfig) groupModels(dst *gateway.ModelNames) strict.Rule {
	read := func(wrong *strict.Problems, value []byte) bool {
		names := gateway.ModelNames{}
		ok := strict.ArrayOf(func(wrong *strict.Problems, value []byte) bool {
			var name string
			ok := strict.String(&name)(wrong, value)
			if ok {
				names = append(names, name)
			}
			return ok
		})(wrong, value)
		if len(names) > maxGroupModels {
			names = names[:maxGroupModels]
			ok = wrong.Add(fmt.Sprintf("must have at most %d names", maxGroupModels))
		}
		if string(value) != "null" {
			*dst = names
		}
		return ok
	}
	return func(wrong *strict.Problems, value []byte) bool {
		effect := noEffect
		if string(value) != "null" {
			effect = ": the group has no models but those that it names"
		}
		return c.newer(read, effect)(wrong, value)
	}
}

// providerRule returns the rule for one member of providers. The gateway uses the endpoints of the kinds that have
// formats, and those for sessions.
func (c *tenantConfig) providerRule(kind string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var chosen string
		var all, usable gateway.Endpoints
		named := false
		ok := c.membersOf(strict.Rules{
			"default": func(wrong *strict.Problems, value []byte) bool {
				named = strict.String(&chosen)(wrong, value)
				return named
			},
			"endpoints": strict.MapOf(func(name string) strict.Rule {
				e := gateway.NewEndpoint(llmwire.Kind(kind), name)
				all = append(all, e)
				return c.endpointRule(e, &usable)
			}),
		})(wrong, value)
		isChosen := func(e *gateway.Endpoint) bool { return e.Name == chosen }
		if named && !slices.ContainsFunc(all, isChosen) {
			ok = wrong.AddMember("default", "must name an endpoint")
		}
		if i := slices.IndexFunc(usable, isChosen); i > 0 {
			e := usable[i]
			usable = slices.Insert(slices.Delete(usable, i, i+1), 0, e)
		}
		if llmwire.Kind(kind) == llmwire.Realtime {
			c.realtime = usable
		} else {
			c.endpoints = append(c.endpoints, usable...)
		}
		return ok
	}
}

// endpointRule returns the rule for the object of e, which it adds to usable if the gateway can use it.
func (c *tenantConfig) endpointRule(e *gateway.Endpoint, usable *gateway.Endpoints) strict.Rule {
	isUsed := llmwire.IsKind(e.Kind()) || e.Kind() == llmwire.Realtime
	return func(wrong *strict.Problems, value []byte) bool {
		broken := c.broken
		ok := c.endpointMembers(e, value)(wrong, value)
		if isUsed && c.broken == broken && c.complete(e, wrong) {
			*usable = append(*usable, e)
		}
		return (c.check == nil || c.check(e, wrong)) && ok
	}
}

// endpointMembers returns the rule for value, which is the object of e. What is not known of an endpoint that can be
// used is a warning: it may look like a price or a bound. Text is the kind that has always had rules.
func (c *tenantConfig) endpointMembers(e *gateway.Endpoint, value []byte) strict.Rule {
	switch known := c.knownMembersOf; {
	case e.Kind() == llmwire.Text:
		return known(e.GatewayRules(known))
	case llmwire.IsKind(e.Kind()):
		return c.newer(known(e.GatewayRules(known)), notUsed)
	case e.Kind() == llmwire.Realtime:
		rules, hasType := e.SessionRules(value, known)
		if hasType {
			return c.newer(known(rules), notUsed)
		}
		return c.newer(c.membersOf(rules), notUsed)
	}
	return c.membersOf(e.Rules())
}

// complete completes e, whose object is being read, and reports whether the gateway can use it. If it cannot, though it
// looks so, that is a warning.
func (c *tenantConfig) complete(e *gateway.Endpoint, wrong *strict.Problems) bool {
	isUsable := e.Complete()
	if !isUsable {
		if member, sentence := e.NotUsed(); member != "" && (member != "url" || e.HasURL()) {
			c.warn(wrong.MemberPath(member) + " " + sentence)
		}
	}
	e.Warn(func(member, sentence string) { c.warn(wrong.MemberPath(member) + " " + sentence) })
	if e.IsSwitchedOff() && len(c.ignored) < strict.MaxProblems {
		c.ignored = append(c.ignored, wrong.MemberPath("model")+
			" is of the beta API, which OpenAI has switched off: sessions fail")
	}
	return isUsable
}
