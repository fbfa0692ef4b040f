package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"

	"github.com/gofrs/uuid/v5"
)

// maxAmount is the largest balance, charge and count of tokens: the largest whole number that all readers of JSON agree
// on.
const maxAmount = strict.MaxInt

const (
	defaultTenant  = "default"
	seedTenant     = "abc"
	anonymousGroup = "anonymous"

	anonymousKeyPrefix = "temp_" // of the API keys of anonymous users
	userKeyPrefix      = "user_" // of the API keys of registered users
	adminTokenPrefix   = "adm_"  // of the admin tokens of tenants

	maxTenantIDBytes = 64
	maxGroupBytes    = 64 // of a group's name, which is sent with each charge
	maxModelBytes    = 256
	maxRateLimit     = 100_000
	maxCacheSeconds  = 10 * 365 * 24 * 60 * 60

	minRefillPeriod = 60                 // seconds
	maxRefillPeriod = 366 * 24 * 60 * 60 // seconds
)

// seedConfig is the config of seedTenant, which is written at start if it does not exist.
//
//go:embed seed-config.json
var seedConfig []byte

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

// newCredential returns prefix with a random UUID (RFC 9562, version 4: 122 random bits).
func newCredential(prefix string) (string, error) {
	id, err := uuid.NewV4()
	if err != nil {
		return "", fmt.Errorf("generate a UUID: %w", err)
	}
	return prefix + id.String(), nil
}

// validAPIKey reports whether key has the form of tollgate's API keys.
func validAPIKey(key string) bool {
	return validCredential(key, anonymousKeyPrefix) || validCredential(key, userKeyPrefix)
}

// validCredential reports whether s is prefix with a UUID in its canonical lower-case form.
func validCredential(s, prefix string) bool {
	id, ok := strings.CutPrefix(s, prefix)
	if !ok || len(id) != 36 || strings.ToLower(id) != id {
		return false
	}
	_, err := uuid.FromString(id)
	return err == nil
}

// validBearerToken reports whether token is a b64token (RFC 6750, section 2.1).
func validBearerToken(token string) bool {
	body := strings.TrimRight(token, "=")
	for _, c := range []byte(body) {
		if !strict.IsWord(c) && strings.IndexByte(".~+/", c) < 0 {
			return false
		}
	}
	return body != ""
}

// actor is who changes something as an admin.
type actor struct {
	tokenHash string // SHA-256 of a tenant's admin token, in hex; "" is the operator
}

// String returns the actor's name in a config's history.
func (a actor) String() string {
	if a.tokenHash == "" {
		return "operator"
	}
	return a.tokenHash[:8]
}

// tenant is a tenant as Redis held it when it was read. It is never changed.
type tenant struct {
	id         string
	idArg      any           // id as an argument of scripts, converted once, so that charges do not allocate it
	generation string        // "" unless a tenant of that ID was deleted
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
		endpoints += 1024 + 256*len(e.models)
	}
	return 256 + len(t.config.json) + 2*len(t.config.encoded.all) + 256*len(t.config.groups) + endpoints
}

// tenantConfig is a config as tollgate uses it. It is never changed once parsed.
type tenantConfig struct {
	json     []byte // the response of GET …/admin/config
	compact  []byte // the config within json: as it was put, but for white space
	groups   map[string]userGroup
	encoded  groupTable
	warnings []string    // sentences on members that are probably misspelled
	compared int         // unknown members that were compared with known ones for these
	text     []*endpoint // of providers.text that the gateway may call, the default one first, then in the config's order
	caching  cachingRules

	clientIDs map[string][]string // by member of auth, for which ID tokens may be issued
	origins   []string            // whose pages may call tollgate, normalized, or "*"; nil if the config says nothing
}

// cachingRules says which responses of providers are cached, and what a cached one costs.
type cachingRules struct {
	enabled bool
	textTTL int64 // seconds; 0: nothing is cached
	fee     int64 // of what a response has cost, in units of which wholeFee is all of it
}

const wholeFee = 100_000_000

// readFee is the rule for fee_percentage. A fee is rounded to a millionth of a percent, but is never 0 unless it is
// spelled so.
func (r *cachingRules) readFee(wrong *strict.Problems, path string, value []byte) {
	before := len(*wrong)
	strict.Number(0, 100)(wrong, path, value)
	if len(*wrong) > before {
		return
	}
	percent, _ := strconv.ParseFloat(string(value), 64) // cannot fail: strict.Number has parsed it
	r.fee = int64(math.Round(percent * (wholeFee / 100)))
	if r.fee == 0 && percent > 0 {
		r.fee = 1
	}
}

// feeFor returns the tokens to charge for a cached response that has cost that many, rounded up.
func (r *cachingRules) feeFor(cost int64) int64 {
	high, low := bits.Mul64(uint64(cost), uint64(r.fee))
	low, carry := bits.Add64(low, wholeFee-1, 0)
	fee, _ := bits.Div64(high+carry, low, wholeFee)
	return int64(fee)
}

// ttl returns for how long a response is served from the cache; 0 is not at all.
func (r *cachingRules) ttl() time.Duration {
	if !r.enabled {
		return 0
	}
	return time.Duration(min(r.textTTL, maxCacheSeconds)) * time.Second
}

// userGroup is what the holders of a group's API keys get.
type userGroup struct {
	tokens int64      // the balance of a new key
	limit  *rateLimit // nil: unlimited
	refill *refill    // nil: none
}

// refill raises a balance that is lower to tokens, each time that many seconds have passed since the key was created.
type refill struct{ tokens, seconds int64 }

// next returns when a key is due that was created at one time and last found due at another, zero if it never was.
func (r *refill) next(created, last time.Time) time.Time {
	period := time.Duration(r.seconds) * time.Second
	if last.Before(created) {
		last = created
	}
	return created.Add((last.Sub(created)/period + 1) * period)
}

// rateLimit allows requests in any window of seconds.
type rateLimit struct{ requests, seconds int64 }

// groupTable is a config's groups as lua/charge.lua reads them: for each \255, its name, \254 and, if it has a rate
// limit, the requests, a space and the seconds, and, if it has a refill, \253, the tokens, a space and the seconds. The
// bytes 253, 254 and 255 occur in no UTF-8, so in no group's name.
type groupTable struct {
	all      string // all groups, complete up to maxSentGroups bytes
	allArg   any    // all as an argument of scripts, converted once, so that charges do not allocate it
	limited  bool   // a group has a rate limit
	refilled bool   // a group has a refill
	groups   map[string]string
}

// maxSentGroups bounds the groups that each charge sends, since only Redis knows the group of its key. Beyond it a
// charge sends one group, and is repeated if its key is in another.
const maxSentGroups = 4 << 10

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
	if len(g.all) <= maxSentGroups { // beyond it, all is not sent
		g.all += one
		g.allArg = g.all
	}
}

// sent returns what a charge sends: all groups, or only the group of that name; onlyOne reports which.
func (g *groupTable) sent(name string) (groups any, onlyOne bool) {
	if len(g.all) <= maxSentGroups {
		return g.allArg, false
	}
	return g.groups[name], true
}

const (
	maxCompared      = 1000 // unknown members of a config that are compared with known ones
	maxComparedBytes = 64   // of the names of these
)

// configError lists every rule that a config breaks, in the config's order, each naming the member by its path. It
// never quotes a value: configs contain secrets.
type configError struct{ problems strict.Problems }

func (e *configError) Error() string { return e.sentences()[0] }

// sentences returns a sentence for each problem, and one for all beyond strict.MaxProblems.
func (e *configError) sentences() []string {
	var all []string
	for _, problem := range e.problems[:min(len(e.problems), strict.MaxProblems)] {
		all = append(all, "Invalid config: "+problem)
	}
	if more := len(e.problems) - strict.MaxProblems; more > 0 {
		all = append(all, fmt.Sprintf("Invalid config: %d more members are wrong", more))
	}
	return all
}

// parseConfig checks data against the rules for configs. Unknown members are kept byte for byte, except white space.
// The error is a *configError.
func parseConfig(data []byte) (*tenantConfig, error) {
	if err := strict.Check(data); err != nil {
		return nil, &configError{strict.Problems{"it is not valid JSON: " + err.Error()}}
	}
	response := bytes.NewBufferString(`{"config":`)
	start := response.Len()
	_ = json.Compact(response, data) // cannot fail: data is valid
	end := response.Len()
	response.WriteString("}\n")
	c := &tenantConfig{
		json:    response.Bytes(),
		compact: response.Bytes()[start:end:end],
		groups:  make(map[string]userGroup),

		clientIDs: make(map[string][]string),
	}
	if c.compact[0] != '{' {
		return nil, &configError{strict.Problems{"it must be an object"}}
	}
	var wrong strict.Problems
	c.readMembers(&wrong, "", c.compact, c.rules())
	if len(wrong) > 0 {
		return nil, &configError{wrong}
	}
	return c, nil
}

// membersOf returns the rule for an object that may have unknown members, like objectOf, and notes those that are
// probably misspelled.
func (c *tenantConfig) membersOf(rules strict.Rules) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) { c.readMembers(wrong, path, value, rules) }
}

// readMembers reads the members of an object as the function of that name does, and notes each unknown one that is
// within two letters of a known one that is missing, among the first maxCompared unknown ones of the config. It returns
// which of the known members there are.
func (c *tenantConfig) readMembers(wrong *strict.Problems, path string, value []byte, rules strict.Rules) (
	seen map[string]bool,
) {
	var unknown []string
	seen = strict.ReadObject(wrong, path, value, func(name string) strict.Rule {
		rule := rules[name]
		if rule == nil && c.compared < maxCompared && len(name) <= maxComparedBytes {
			unknown = append(unknown, name)
			c.compared++
		}
		return rule
	})
	if len(unknown) == 0 {
		return seen
	}
	missing := slices.DeleteFunc(slices.Sorted(maps.Keys(rules)), func(name string) bool { return seen[name] })
	for _, name := range unknown {
		if len(c.warnings) == strict.MaxProblems {
			break
		}
		if best := nearest(name, missing); best != "" {
			c.warnings = append(c.warnings,
				fmt.Sprintf("%s is not known: did you mean %s?", strict.Path(path, name), best))
		}
	}
	return seen
}

// nearest returns which of the known names is nearest to name, "" if none is within two letters.
func nearest(name string, known []string) (best string) {
	distance := 3
	for _, candidate := range known {
		if max(len(name)-len(candidate), len(candidate)-len(name)) >= distance { // the common case, and cheap
			continue
		}
		if d := editDistance(name, candidate); d < distance && d < len(candidate)-1 {
			best, distance = candidate, d
		}
	}
	return best
}

// editDistance returns how many bytes must be inserted, deleted, replaced or swapped with their neighbour to turn a
// into b (the optimal string alignment distance). Neither may be longer than maxComparedBytes.
func editDistance(a, b string) int {
	var rows [3][maxComparedBytes + 1]int // of the table, in turn, for as much of a as is done and each start of b
	row := &rows[0]
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last := &rows[(i+1)%3], row
		row = &rows[i%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

// rules returns the rules for a config, which read what tollgate uses into c.
func (c *tenantConfig) rules() strict.Rules {
	return strict.Rules{
		"auth":        strict.MapOf(c.authRule),
		"user_groups": strict.MapOf(c.groupRule),
		"cors":        c.membersOf(strict.Rules{"allowed_origins": c.readOrigins}),
		"providers":   strict.MapOf(c.providerRule),
		"caching": c.membersOf(strict.Rules{
			"enabled":           strict.Bool(&c.caching.enabled),
			"text_ttl":          strict.Int(&c.caching.textTTL, 0, maxAmount),
			"transcription_ttl": strict.AnyInt,
			"fee_percentage":    c.caching.readFee,
		}),
	}
}

// authRule returns the rule for one member of auth.
func (c *tenantConfig) authRule(name string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		add := func(wrong *strict.Problems, path string, value []byte) {
			var id string
			if strict.String(&id)(wrong, path, value); id != "" {
				c.clientIDs[name] = append(c.clientIDs[name], id)
			}
		}
		c.readMembers(wrong, path, value, strict.Rules{
			"api_key": strict.AnyString, "client_id": add, "client_secret": strict.AnyString,
			"client_ids": func(wrong *strict.Problems, path string, value []byte) {
				strict.ReadElements(wrong, path, value, add)
			},
		})
	}
}

// groupRule returns the rule for one member of user_groups.
func (c *tenantConfig) groupRule(name string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		var group userGroup
		if name == "" || len(name) > maxGroupBytes {
			wrong.Add(path, fmt.Sprintf("must have a name of 1 to %d bytes", maxGroupBytes))
			return
		}
		var limit rateLimit
		seen := c.readMembers(wrong, path, value, strict.Rules{
			"tokens":            strict.Int(&group.tokens, 0, maxAmount),
			"rate_limit":        strict.Int(&limit.requests, 0, maxRateLimit),
			"rate_limit_window": strict.Int(&limit.seconds, 1, maxAmount),
			"refill":            c.refillField(&group.refill),
		})
		if seen["rate_limit"] {
			if !seen["rate_limit_window"] {
				wrong.Add(strict.Path(path, "rate_limit_window"), "is missing beside rate_limit")
			}
			group.limit = &limit
		}
		c.groups[name] = group
		c.encoded.add(name, group)
	}
}

// refillField returns the rule for a group's refill.
func (c *tenantConfig) refillField(dst **refill) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		*dst = new(refill)
		seen := c.readMembers(wrong, path, value, strict.Rules{
			"tokens": strict.Int(&(*dst).tokens, 1, maxAmount),
			"every":  strict.Seconds(&(*dst).seconds, minRefillPeriod, maxRefillPeriod),
		})
		for _, name := range []string{"tokens", "every"} {
			if value[0] == '{' && !seen[name] {
				wrong.Add(strict.Path(path, name), "is missing")
			}
		}
	}
}

// providerRule returns the rule for one member of providers. The gateway uses the endpoints of text.
func (c *tenantConfig) providerRule(kind string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		var chosen string
		var endpoints []*endpoint
		named := false
		c.readMembers(wrong, path, value, strict.Rules{
			"default": func(wrong *strict.Problems, path string, value []byte) {
				before := len(*wrong)
				strict.String(&chosen)(wrong, path, value)
				named = len(*wrong) == before
			},
			"endpoints": strict.MapOf(func(name string) strict.Rule {
				e := newEndpoint(name)
				endpoints = append(endpoints, e)
				rules := e.rules()
				if kind == "text" {
					maps.Copy(rules, e.textRules(c))
				}
				return c.membersOf(rules)
			}),
		})
		first := slices.IndexFunc(endpoints, func(e *endpoint) bool { return e.name == chosen })
		if named && first < 0 {
			wrong.Add(strict.Path(path, "default"), "must name an endpoint")
		}
		if kind != "text" {
			return
		}
		if first > 0 {
			chosen := endpoints[first]
			endpoints = slices.Insert(slices.Delete(endpoints, first, first+1), 0, chosen)
		}
		for _, e := range endpoints {
			if e.complete() {
				c.text = append(c.text, e)
			}
		}
	}
}

// readOrigins is the rule for the origins that may call tollgate.
func (c *tenantConfig) readOrigins(wrong *strict.Problems, path string, value []byte) {
	c.origins = make([]string, 0, 1)
	strict.ReadElements(wrong, path, value, func(wrong *strict.Problems, path string, value []byte) {
		var origin string
		strict.String(&origin)(new(strict.Problems), path, value)
		normalized, ok := normalizeOrigin(origin)
		if !ok {
			wrong.Add(path, "must be an origin such as https://app.example.com, or the only one *")
			return
		}
		c.origins = append(c.origins, normalized)
	})
	if len(c.origins) > 1 && slices.Contains(c.origins, "*") {
		wrong.Add(path, "must have * as its only entry, or not at all")
	}
}

// normalizeOrigin returns an origin as browsers spell it: in lower case and without the default port. ok is false if it
// is not a scheme http or https, a host and perhaps a port, and nothing else; * is itself.
func normalizeOrigin(origin string) (normalized string, ok bool) {
	if origin == "*" {
		return origin, true
	}
	origin = strings.ToLower(origin)
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || origin != u.Scheme+"://"+u.Host {
		return "", false
	}
	port := u.Port()
	if !validHost(u.Hostname()) || strings.HasSuffix(u.Host, ":") || port != "" && !validPort(port) {
		return "", false
	}
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		return strings.TrimSuffix(origin, ":"+port), true
	}
	return origin, true
}

// validHost reports whether host is an IP address or a name in lower-case ASCII.
func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	for i := range len(host) {
		if !strict.IsWord(host[i]) && host[i] != '.' {
			return false
		}
	}
	return host != ""
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// allowedOrigin returns the value of Access-Control-Allow-Origin for an origin, "" if it is not allowed.
func (c *tenantConfig) allowedOrigin(origin string) string {
	switch {
	case slices.Contains(c.origins, "*"):
		return "*"
	case slices.Contains(c.origins, strings.ToLower(origin)):
		return origin
	}
	return ""
}

// anyModel is the name in an endpoint's models that stands for every model.
const anyModel = "*"

// endpoint is a model server that the gateway may call.
type endpoint struct {
	name   string
	url    *url.URL
	format llmwire.Format
	apiKey string // "" if the server needs none

	defaultModel string   // "" if a request must name its model
	models       []string // that may be asked for, the default one first, then in the config's order
	prices       map[string]tokenPrice

	maxOutput     int64 // output tokens of a request that names no limit
	maxInput      int64 // the context window, in tokens
	bytesPerToken int64
	mediaTokens   int64 // input tokens for each image, audio or file
	serverTools   bool  // tools that the provider runs are allowed
	drain         bool  // a stream whose client hangs up is read to its end

	rawURL string
}

func newEndpoint(name string) *endpoint {
	return &endpoint{
		name: name, prices: make(map[string]tokenPrice),
		maxOutput: 4096, maxInput: 200_000, bytesPerToken: 1, mediaTokens: 2000,
	}
}

// rules returns the rules for the members that an endpoint of any kind has.
func (e *endpoint) rules() strict.Rules {
	return strict.Rules{
		"url": func(wrong *strict.Problems, path string, value []byte) {
			strict.AbsoluteURL(wrong, path, value)
			strict.String(&e.rawURL)(new(strict.Problems), path, value)
		},
		"api_key": strict.String(&e.apiKey), "default_model": strict.String(&e.defaultModel),
		"model": strict.AnyString, "voice": strict.AnyString, "encoding": strict.AnyString, "sampleRate": strict.AnyNumber,
	}
}

// textRules returns the rules for the members that only an endpoint of text has.
func (e *endpoint) textRules(c *tenantConfig) strict.Rules {
	return strict.Rules{
		"models":            strict.MapOf(func(model string) strict.Rule { return e.modelRule(c, model) }),
		"max_output_tokens": strict.Int(&e.maxOutput, 1, maxAmount),
		"max_input_tokens":  strict.Int(&e.maxInput, 1, maxAmount),
		"bytes_per_token":   strict.Int(&e.bytesPerToken, 1, 8),
		"media_tokens":      strict.Int(&e.mediaTokens, 0, maxAmount),
		"server_tools":      strict.Bool(&e.serverTools),
		"on_hangup": func(wrong *strict.Problems, path string, value []byte) {
			var reaction string
			strict.String(&reaction)(new(strict.Problems), path, value)
			if reaction != "cancel" && reaction != "drain" {
				wrong.Add(path, `must be "cancel" or "drain"`)
			}
			e.drain = reaction == "drain"
		},
	}
}

// modelRule returns the rule for one member of models.
func (e *endpoint) modelRule(c *tenantConfig, model string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		if model == "" || len(model) > maxModelBytes {
			wrong.Add(path, fmt.Sprintf("must have a name of 1 to %d bytes", maxModelBytes))
			return
		}
		price := onePrice
		rules := strict.Rules{"input": priceField(&price.input), "output": priceField(&price.output)}
		c.readMembers(wrong, path, value, rules)
		e.models = append(e.models, model)
		e.prices[model] = price
	}
}

// onePrice is the price of a model that the config does not give: a token of the balance for each token.
var onePrice = tokenPrice{input: priceUnit, output: priceUnit}

// priceField accepts the tokens of a balance that one token of a model costs.
func priceField(dst *int64) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		millionths, ok := int64(0), false
		if strict.IsNumber(value) {
			millionths, ok = parsePrice(string(value))
		}
		if !ok {
			wrong.Add(path, fmt.Sprintf("must be a number from 0 to %d with at most 6 decimals", maxPrice/priceUnit))
			return
		}
		*dst = millionths
	}
}

// complete works out what an endpoint's members mean together, and reports whether the gateway can use it.
func (e *endpoint) complete() bool {
	if e.defaultModel != "" {
		if _, priced := e.prices[e.defaultModel]; !priced {
			price, any := e.prices[anyModel]
			if !any {
				price = onePrice
			}
			e.prices[e.defaultModel] = price
		}
		e.models = slices.DeleteFunc(e.models, func(model string) bool { return model == e.defaultModel })
		e.models = slices.Insert(e.models, 0, e.defaultModel)
	}
	u, err := url.Parse(e.rawURL)
	if err != nil || u.Host == "" {
		return false
	}
	e.url = u
	var known bool
	e.format, known = llmwire.FormatOf(u.Path)
	return known
}

// price returns what a model costs at the endpoint, and false if it may not be asked for there.
func (e *endpoint) price(model string) (tokenPrice, bool) {
	price, ok := e.prices[model]
	if !ok && model != "" {
		price, ok = e.prices[anyModel]
	}
	return price, ok
}

// textEndpoints returns the endpoints that speak format, in the order in which they are tried.
func (c *tenantConfig) textEndpoints(format llmwire.Format) (found []*endpoint) {
	for _, e := range c.text {
		if e.format == format {
			found = append(found, e)
		}
	}
	return found
}

// endpointsFor returns those of all that allow a model, and the model's name there: endpoint/model chooses the
// endpoint.
func endpointsFor(all []*endpoint, model string) ([]*endpoint, string) {
	if name, rest, ok := strings.Cut(model, "/"); ok {
		for _, e := range all {
			if _, allowed := e.price(rest); allowed && e.name == name {
				return []*endpoint{e}, rest
			}
		}
	}
	return endpointsAllowing(all, model), model
}

// endpointsAllowing returns the endpoints that allow a model of exactly that name.
func endpointsAllowing(all []*endpoint, model string) (found []*endpoint) {
	for _, e := range all {
		if _, allowed := e.price(model); allowed {
			found = append(found, e)
		}
	}
	return found
}
