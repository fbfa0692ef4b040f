package main

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"tollgate/internal/idtoken"
	"tollgate/internal/strict"
)

// signInProvider is a provider whose users may sign in.
type signInProvider struct {
	verifier *idtoken.Verifier
	name     string // in paths and user IDs
	title    string // in sentences
	config   string // the member of a config's auth that has the client IDs
	group    string // of the keys of its users
}

// signIn returns the handler that signs in a user for whom the provider vouches.
func (s *server) signIn(p *signInProvider) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		who, visitor, err := s.readSignIn(r, info, p)
		if err != nil {
			return err
		}
		k, created, err := s.store.SignIn(info.deadline, who, visitor)
		if err != nil {
			return err
		}
		if created {
			s.metrics.keyIssued(info.tenantID, k.group)
			s.usage.add(info.tenant, usageEvent{granted: min(k.tokensLeft, who.tokens)}) // less if it is not the first key
		}
		return writeJSON(w, http.StatusOK, struct {
			APIKey     string `json:"apiKey"`
			UserID     string `json:"userId"`
			TokensLeft int64  `json:"tokensLeft"`
		}{k.key, k.userID, k.tokensLeft})
	}
}

// readSignIn returns who signs in, and the temp_ key that is sent along, if there is one.
func (s *server) readSignIn(r *http.Request, info *requestInfo, p *signInProvider) (who signInIdentity,
	visitor string, err error) {
	config := info.tenant.config
	clientIDs := config.clientIDs[p.config]
	group, ok := config.groups[p.group]
	if !ok || len(clientIDs) == 0 {
		return who, "", signInDisabledError{p.title}
	}
	if err := s.limitLogins(r, info); err != nil {
		return who, "", err
	}
	var token string
	if err := strict.Decode(info.body, strict.Rules{"idToken": strict.String(&token)}, "idToken"); err != nil {
		return who, "", err
	}
	subject, err := p.verifier.Verify(info.deadline.Add(-publicTimeout), token, clientIDs) // the store needs the rest
	if err != nil {
		if errors.Is(err, idtoken.ErrInvalid) {
			s.log.Warnf("Sign-in with %s, tenant %s: %v", p.title, info.tenantID, err)
		}
		return who, "", err
	}
	if sent, err := bearerToken(r); err == nil && validCredential(sent, anonymousKeyPrefix) {
		visitor = sent
	}
	return signInIdentity{info.tenant, p.name + ":" + subject, p.group, group.tokens}, visitor, nil
}

// limitLogins counts a login of the client's address.
func (s *server) limitLogins(r *http.Request, info *requestInfo) error {
	if s.options.loginLimit == 0 {
		return nil
	}
	err := s.store.CountLogin(info.deadline, clientAddress(r, s.options.trustedProxies), s.options.loginLimit)
	if _, limited := errors.AsType[rateLimitError](err); limited {
		s.warnOfUntrustedProxy(r)
	}
	return err
}

// warnOfUntrustedProxy logs, once, that a login was refused which came through a proxy that is not trusted: all clients
// of that proxy then share one limit.
func (s *server) warnOfUntrustedProxy(r *http.Request) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || len(r.Header["X-Forwarded-For"]) == 0 {
		return
	}
	if address := peer.Addr().Unmap(); !isTrusted(address, s.options.trustedProxies) {
		s.untrustedProxy.Do(func() {
			s.log.Warnf("A login was refused by the limit for %s, which sends X-Forwarded-For: if that is your proxy, "+
				"add it to TRUSTED_PROXIES, or all its clients share one limit", address)
		})
	}
}

// clientAddress returns where a request comes from, as the login limit counts it: an IPv4 address, or the /64 of an
// IPv6 one, which is what one customer gets. X-Forwarded-For counts only as far as trusted proxies vouch for it: of
// its hops, from the last one back, the first that is not trusted itself.
func clientAddress(r *http.Request, trusted []netip.Prefix) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr // not a TCP connection
	}
	address := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(address, trusted); i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		address = hop
	}
	if address.Is4() {
		return address.String()
	}
	return netip.PrefixFrom(address.WithZone(""), 64).Masked().String()
}

// parseHop parses a hop of X-Forwarded-For, which some proxies write with its port.
func parseHop(hop string) (netip.Addr, bool) {
	if withPort, err := netip.ParseAddrPort(hop); err == nil {
		return withPort.Addr().Unmap(), true
	}
	address, err := netip.ParseAddr(hop)
	return address.Unmap(), err == nil
}

func isTrusted(address netip.Addr, trusted []netip.Prefix) bool {
	return slices.ContainsFunc(trusted, func(prefix netip.Prefix) bool { return prefix.Contains(address.WithZone("")) })
}
