package main

import (
	"errors"
	"net/http"

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
		k, err := s.store.SignIn(info.deadline, who, visitor)
		if err != nil {
			return err
		}
		if k.created {
			s.metrics.keyIssued(info.tenantID, k.group)
			s.usage.add(info.tenant, usageEvent{granted: min(k.tokensLeft, who.tokens)}) // less if it is not the first key
		}
		return writeJSON(w, http.StatusOK, struct {
			APIKey     string `json:"apiKey"`
			UserID     string `json:"userId"`
			TokensLeft int64  `json:"tokensLeft"`
			Merged     *bool  `json:"merged,omitempty"`
		}{k.key, k.userID, k.tokensLeft, k.merged})
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
