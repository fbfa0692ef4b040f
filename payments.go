package main

import "net/url"

// payments is auth.stripe of a tenant's config.
type payments struct {
	apiKey     string
	secrets    []string // of webhooks
	freeGroup  string   // "": the group in which a key was before
	returnURLs []*url.URL
	prices     []price // in the config's order
}

// A price is one of Stripe's prices, and what is bought for it.
type price struct {
	id     string
	group  string // of a subscription; "" of a pack
	tokens int64  // of one unit: of a subscription, in each period
	reset  bool   // the balance is raised to the tokens; else they are added
}

// isEnabled reports whether tenants' users can pay.
func (p *payments) isEnabled() bool {
	return p.apiKey != "" && len(p.secrets) > 0 && len(p.returnURLs) > 0
}
