package gateway

import (
	"net/http"
	"strings"

	"tollgate/internal/strict"
)

// authHeaders are the headers in which an endpoint's API key can be sent, behind a prefix, by the value of its member
// auth. Without the member, that of the endpoint's format or API counts.
var authHeaders = map[string]struct{ name, prefix string }{
	"bearer":    {"Authorization", "Bearer "},
	"x-api-key": {"X-Api-Key", ""},
	"api-key":   {"Api-Key", ""}, // Azure
}

// readKey is the rule for api_key. It accepts any string: CheckCredential has the rules for configs that are put.
func (e *Endpoint) readKey(wrong *strict.Problems, value []byte) bool {
	e.hasKey = true
	return strict.String(&e.apiKey)(wrong, value)
}

// readAuth is the rule for auth. It accepts any value, as readKey does.
func (e *Endpoint) readAuth(_ *strict.Problems, value []byte) bool {
	e.hasAuth = true
	e.auth, _ = strict.Text(value)
	return true
}

// credential returns the header that carries the endpoint's API key. Its name is in canonical form.
func (e *Endpoint) credential() (name, value string) {
	auth := e.auth
	if auth == "" && e.session != nil && e.session.isUltravox {
		auth = "x-api-key"
	}
	if header, ok := authHeaders[auth]; ok {
		return header.name, header.prefix + e.apiKey
	}
	return e.format.Credential(e.apiKey)
}

// setCredential sets the header that carries the endpoint's API key, if it has one.
func (e *Endpoint) setCredential(header http.Header) {
	if e.apiKey != "" {
		name, value := e.credential()
		header[name] = []string{value}
	}
}

// credentialFault returns what is wrong with a member of e that says how its API key is sent; fault is "" if nothing
// is. The members of configs in Redis may be older than these rules, and e must not be called then.
func (e *Endpoint) credentialFault() (member, fault string) {
	if !isVisible(e.apiKey) {
		return "api_key", "must be printable ASCII without white space"
	}
	if _, known := authHeaders[e.auth]; e.hasAuth && !known {
		return "auth", `must be "bearer", "x-api-key" or "api-key"`
	}
	return "", ""
}

// CheckCredential adds to wrong what keeps the API key of e, whose object is being read, from being sent. It reports
// whether there is nothing.
func (e *Endpoint) CheckCredential(wrong *strict.Problems) bool {
	member, fault := e.credentialFault()
	return fault == "" || wrong.AddMember(member, fault)
}

// isVisible reports whether s has only printable ASCII characters, and no white space.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// A credentialError says which member of an endpoint keeps its API key from being sent, and why.
type credentialError string

func (e credentialError) Error() string { return string(e) }
