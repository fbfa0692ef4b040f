package main

import (
	"net/http"
	"net/url"
)

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

// paymentBody is a payment in the response that lists them.
type paymentBody struct {
	At         string      `json:"at"`
	UserID     string      `json:"userId"`
	Kind       paymentKind `json:"kind"`
	Price      string      `json:"price"`
	Tokens     int64       `json:"tokens"`
	Group      *string     `json:"group"`
	StripeID   string      `json:"stripeId"`
	Unassigned bool        `json:"unassigned,omitempty"`
}

// listPayments lists the payments of a tenant: a page of them.
func (s *server) listPayments(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	query, err := readQuery(r, "limit", "after")
	if err != nil {
		return err
	}
	limit, after, err := readPage(query)
	if err != nil {
		return err
	}
	return s.respondInTurn(w, info.tenantID, func() (any, error) {
		list, next, err := s.store.Payments(info.deadline, info.tenant, after, limit)
		if err != nil {
			return nil, err
		}
		page := struct {
			Payments []paymentBody `json:"payments"`
			Next     *string       `json:"next"`
		}{make([]paymentBody, len(list)), next.text()}
		for i, p := range list {
			page.Payments[i] = paymentBody{
				formatTime(p.at), p.userID, p.kind, p.price, p.tokens, nil, p.stripeID, p.unassigned,
			}
			if p.group != "" {
				page.Payments[i].Group = &p.group
			}
		}
		return page, nil
	})
}
