package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"tollgate/internal/strict"
)

const (
	maxKeysFile = 1 << 20 // bytes
	maxKeyName  = 64      // bytes

	anyTenant = "*" // in the tenants of a key stands for all
)

// OperatorKeys are the operator's API keys, which the endpoints of tenants refer to by name. Tenants use them and never
// read them. The zero value has none, and so has nil. Its methods may be called at the same time.
type OperatorKeys struct {
	current atomic.Pointer[map[string]*operatorKey]
}

// An operatorKey is one of OperatorKeys. It is never changed.
type operatorKey struct {
	apiKey  string
	prefix  *url.URL // what the URLs of endpoints begin with that may use it
	tenants []string // who may use it
}

// Load replaces all keys by those in the JSON file of that name, which counts from the next request on; "" has none. If
// it fails, the keys stay as they were. The error names members of the file, and has none of their values.
func (k *OperatorKeys) Load(filename string) error {
	keys := make(map[string]*operatorKey)
	if filename != "" {
		content, err := readFile(filename, maxKeysFile)
		if err != nil {
			return err
		}
		if keys, err = parseOperatorKeys(content); err != nil {
			return fmt.Errorf("%q: %w", filename, err)
		}
	}
	k.current.Store(&keys)
	return nil
}

// readFile returns the content of a file of at most that many bytes.
func readFile(filename string, most int64) ([]byte, error) {
	file, err := os.Open(filename)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%q has more than %d bytes", filename, most)
	}
	return content, err
}

// parseOperatorKeys reads an object that has a key under each name.
func parseOperatorKeys(content []byte) (map[string]*operatorKey, error) {
	if err := strict.Check(content); err != nil {
		return nil, fmt.Errorf("it is not valid JSON: %w", err)
	}
	var wrong strict.Problems
	keys := make(map[string]*operatorKey)
	object := strict.MapOf(func(name string) strict.Rule {
		key := new(operatorKey)
		keys[name] = key
		return key.rule(name)
	})
	if !object(&wrong, strict.SkipSpace(content)) {
		return nil, errors.New(strings.Join(wrong.Sentences, "; "))
	}
	return keys, nil
}

// rule returns the rule for the key of that name.
func (k *operatorKey) rule(name string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		if name == "" || len(name) > maxKeyName {
			return wrong.Add(fmt.Sprintf("must have a name of 1 to %d bytes", maxKeyName))
		}
		rules := strict.Rules{
			"api_key": k.readKey, "url_prefix": k.readPrefix, "tenants": strict.ArrayOf(k.readTenant),
		}
		seen, ok := strict.ReadObject(wrong, value, func(name string) strict.Rule {
			if rule := rules[name]; rule != nil {
				return rule
			}
			return func(wrong *strict.Problems, _ []byte) bool { return wrong.Add("is not a known member") }
		})
		if len(k.tenants) > 1 && slices.Contains(k.tenants, anyTenant) {
			ok = wrong.AddMember("tenants", "must have * as its only entry, or not at all")
		}
		return wrong.Require(seen, "api_key", "url_prefix", "tenants") && ok
	}
}

// readKey is the rule for api_key.
func (k *operatorKey) readKey(wrong *strict.Problems, value []byte) bool {
	k.apiKey, _ = strict.Text(value)
	if k.apiKey == "" || !isVisible(k.apiKey) {
		return wrong.Add("must be a string of printable ASCII characters without white space")
	}
	return true
}

// readPrefix is the rule for url_prefix.
func (k *operatorKey) readPrefix(wrong *strict.Problems, value []byte) bool {
	text, _ := strict.Text(value)
	u, err := url.Parse(text)
	if err != nil || !isPlain(u) || strings.ContainsAny(text, "?#") || strings.Contains(u.Path, "//") ||
		!isBelow(path.Clean("/"+u.Path), u.Path) {
		return wrong.Add("must be an http or https URL without user, query, fragment, special characters or dot segments")
	}
	k.prefix = u
	return true
}

// readTenant is the rule for an element of tenants.
func (k *operatorKey) readTenant(wrong *strict.Problems, value []byte) bool {
	tenant, _ := strict.Text(value)
	other := func(c rune) bool { return c > '~' || !strict.IsWord(byte(c)) }
	if tenant == "" || tenant != anyTenant && strings.ContainsFunc(tenant, other) {
		return wrong.Add("must be a tenant ID, or *")
	}
	k.tenants = append(k.tenants, tenant)
	return true
}

// isPlain reports whether u is an http or https URL that everybody reads the same way: without user, with a host in
// ASCII, and without characters in its path that some servers decode or cut off before they look at it.
func isPlain(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && u.Hostname() != "" &&
		!strings.ContainsFunc(u.Host, func(c rune) bool { return c > '~' }) && !strings.ContainsAny(u.EscapedPath(), `%;\`)
}

// originOf returns the scheme, the host and the port of a plain URL.
func originOf(u *url.URL) [3]string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return [3]string{u.Scheme, strings.ToLower(u.Hostname()), port}
}

// covers reports whether an endpoint at u may use k: u has the origin of k.prefix, and its path is at or below that of
// k.prefix, both as it is sent and as a server may clean it.
func (k *operatorKey) covers(u *url.URL) bool {
	return isPlain(u) && originOf(u) == originOf(k.prefix) &&
		isBelow(u.Path, k.prefix.Path) && isBelow(path.Clean("/"+u.Path), k.prefix.Path)
}

// isBelow reports whether a path is prefix or below it.
func isBelow(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// keyFor returns the API key for a tenant's requests to e, "" if none is sent. If fault is not "", e must not be used:
// it says what is wrong with a member of e.
func (k *OperatorKeys) keyFor(e *Endpoint, tenant string) (key, member, fault string) {
	switch {
	case !e.isKeyNamed:
		return e.apiKey, "", ""
	case e.hasKey:
		return "", "api_key_name", "must not stand beside api_key"
	}
	named := k.named(e.keyName)
	if named == nil || !slices.Contains(named.tenants, tenant) && !slices.Contains(named.tenants, anyTenant) {
		return "", "api_key_name", "must name a key that the operator has for this tenant"
	}
	if u, err := e.address(); err != nil || !named.covers(u) {
		return "", "url", "must be below the URL that the operator has set for the key of api_key_name"
	}
	return named.apiKey, "", ""
}

// named returns the key of that name, or nil if the operator has no such key.
func (k *OperatorKeys) named(name string) *operatorKey {
	if k == nil {
		return nil
	}
	keys := k.current.Load()
	if keys == nil {
		return nil
	}
	return (*keys)[name]
}

// allow reports whether the key of e, which may be used at its URL, may be sent to u, too.
func (k *OperatorKeys) allow(e *Endpoint, u *url.URL) bool {
	named := k.named(e.keyName)
	return !e.isKeyNamed || named != nil && named.covers(u)
}

// Check adds to wrong what keeps e, whose object is being read, from being used for a tenant with the key that it
// names. It reports whether there is nothing.
func (k *OperatorKeys) Check(e *Endpoint, tenant string, wrong *strict.Problems) bool {
	_, member, fault := k.keyFor(e, tenant)
	return fault == "" || wrong.AddMember(member, fault)
}

// Usable returns those of all endpoints that a tenant may use now, with their keys. It logs once about each that names
// a key which it may not use.
func (g *Gateway) Usable(all Endpoints, tenant string) Endpoints {
	if !slices.ContainsFunc(all, func(e *Endpoint) bool { return e.isKeyNamed }) {
		return all
	}
	usable := make(Endpoints, 0, len(all))
	for _, e := range all {
		key, member, fault := g.options.Keys.keyFor(e, tenant)
		if fault == "" {
			withKey := *e
			withKey.apiKey = key
			usable = append(usable, &withKey)
			e.warned.Store(false) // if it is taken away again, that is logged again
		} else if !e.warned.Swap(true) {
			g.log.Warnf("The endpoint %s of tenant %s is not used: its %s %s", e.label, tenant, member, fault)
		}
	}
	return usable
}
