package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

// A payment that is granted is recorded beside the key that it was bought with, in one step with the balance. If that
// key is gone, two steps that may be repeated take its place: the record names another key, and that one gets a record
// of its own in one step with its balance. The steps that follow, the list and the checkout's time to live, may be
// repeated as well. Stripe repeats an event until all are done.

const (
	checkoutTTL = 40 * 24 * time.Hour
	paidTTL     = 400 * 24 * time.Hour // of a checkout, too, from each grant on, and while a subscription is paid

	maxPayments      = 10_000 // in a tenant's list
	maxReceiverPages = 10     // of a user's keys, of defaultPageLimit each, in which a receiver is sought
)

var (
	// ErrNoCheckout means that tollgate does not know whose payment it is: the reference is not one of this tenant and
	// its generation, or it was forgotten.
	ErrNoCheckout = errors.New("no such checkout")
	// ErrNotGranted means that a payment has granted nothing yet.
	ErrNotGranted = errors.New("payment was not granted")
	// ErrStateMoved means that what a key has of its subscription has changed since SubscriptionVersion was called:
	// Stripe must be asked again.
	ErrStateMoved = errors.New("the subscription's state has changed meanwhile")
)

// A buyer is what Redis holds of the API key that pays or, if that shares a balance, of the key that has the balance.
type buyer struct {
	key          string // its present name
	first        string // the name that it had first
	userID       string
	disabled     bool
	customer     string // at Stripe; "" if nothing was ever paid
	subscription string // the present one, if it has not ended; else ""
}

// A checkout is what is remembered of a Checkout Session: whose payment it is.
type checkout struct {
	reference string // as Checkout was given it

	first  string // the name that the API key had first with which it was made
	userID string
	price  string
	tokens int64 // of a pack, all that is bought; 0 for a subscription
}

// A grant is what a payment gives.
type grant struct {
	id      string // of the Checkout Session or invoice
	intent  string // payment intent of a session, by which a refund names it; may be ""
	at      time.Time
	price   string
	group   string // of a subscription's price; "" for a pack
	add     int64  // tokens
	raiseTo int64  // tokens to which the balance is raised first, holds included; 0: it is not

	customer string             // at Stripe; "" if it is not known
	state    *subscriptionState // nil for a pack
}

// A stateVersion identifies what a key has of its subscription, as SubscriptionVersion returned it.
type stateVersion struct {
	first string // name of the key
	n     int64
}

// A subscriptionState is what Stripe has said of a subscription.
type subscriptionState struct {
	id        string
	group     string // in which its key is to be while it is paid; "" if it is not paid (any more)
	freeGroup string // in which its key is to be when it is not; "": the group before it was paid
	ended     bool   // for ever
	version   stateVersion
}

// A payment is an entry in the list of a tenant's payments.
type payment struct {
	at         time.Time
	userID     string
	kind       paymentKind
	price      string
	tokens     int64  // that the balance has gained or, if negative, lost
	group      string // "" for a pack
	stripeID   string // of the Checkout Session or invoice, or of the charge that is refunded or disputed
	unassigned bool   // nobody was there to get it; tokens is what it would have been
	n          int    // which change of a payment it is, by which it differs from others like it; 0: the payment itself
}

// A paymentKind says what a payment is for.
type paymentKind string

const (
	paidPack         paymentKind = "payment"
	paidSubscription paymentKind = "subscription"
	paidBack         paymentKind = "refund"
	paidDispute      paymentKind = "dispute"
)

// A grantResult is what became of a grant.
type grantResult struct {
	payment
	key      string // the name that the key had first which has it; "" if it is unassigned
	replayed bool   // that was so before
	second   bool   // the key has another subscription that has not ended
}

// A reversal is what a refund or a dispute says of a payment.
type reversal struct {
	at       time.Time
	charge   string       // its ID
	refunded int64        // tokens of the grant that the refunds so far are for; 0 for a dispute
	dispute  string       // its ID; "" for a refund
	state    disputeState // of the dispute
}

// A disputeState is what a reversal says of its dispute. The higher one counts, in whatever order they come.
type disputeState int

const (
	disputeOpen disputeState = iota
	disputeLost
	disputeWon
)

func checkoutRedisKey(tenantID, reference string) string {
	return "checkout:" + tenantID + ":" + reference
}

// paidRedisKey returns where it is remembered what a payment has granted, by the name that the key had first; see
// lua/paid.lua.
func paidRedisKey(first, id string) string { return "{apiKey:" + first + "}:paid:" + id }

// receiverRedisKey returns where the key is named that takes the place of one that is gone.
func receiverRedisKey(first string) string { return paidRedisKey(first, "receiver") }

func paymentsRedisKey(tenantID, generation string) string {
	if generation == "" {
		return "payments:" + tenantID
	}
	return "payments:" + tenantID + ":" + generation
}

// Buyer returns who pays with t's API key. Errors: ErrNoKey, ErrMalformed, ErrUnavailable.
func (s *store) Buyer(deadline time.Time, t *tenant, key string) (b buyer, err error) {
	for shares, sharedFirst := false, ""; ; {
		fields, err := redis.Strings(s.redis.Read(deadline, "HMGET", apiKeyRedisKey(key), "tenantId", "generation",
			"userId", "enabled", "first", "customer", "subscription", "tokensLeft", "sharesWith", "sharesFirst"))
		switch {
		case err != nil:
			return b, withTenant(err, "look up who pays", t)
		case fields[0] != t.id || fields[1] != t.generation:
			next, err := "", error(nil)
			if shares { // the key with which it shares may have been rotated
				next, err = s.present(deadline, key)
			}
			if next == "" {
				return b, cmp.Or(withTenant(err, "look up who pays", t), ErrNoKey)
			}
			key = next
			continue
		}
		b.disabled = b.disabled || fields[3] == "0"
		if fields[7] == "" && fields[8] != "" {
			key, shares, sharedFirst = fields[8], true, fields[9]
			continue
		}
		b.key, b.first, b.userID, b.customer, b.subscription = key, cmp.Or(fields[4], key), fields[2], fields[5], fields[6]
		if shares && b.first != sharedFirst {
			return buyer{}, ErrNoKey
		}
		return b, nil
	}
}

// A savedCheckout is a checkout as it is in Redis.
type savedCheckout struct {
	Generation string `json:"generation"` // of the tenant
	First      string `json:"key"`
	UserID     string `json:"user"`
	Price      string `json:"price"`
	Tokens     int64  `json:"tokens"`
}

// SaveCheckout remembers for 40 days whose payment one with that reference is. If it is known already, that stays, for
// as long at least: Stripe may have forgotten the first session, and made another one. Error: ErrUnavailable.
func (s *store) SaveCheckout(deadline time.Time, t *tenant, reference string, c checkout) error {
	name, ttl := checkoutRedisKey(t.id, reference), checkoutTTL.Milliseconds()
	text, err := json.Marshal(savedCheckout{t.generation, c.first, c.userID, c.price, c.tokens})
	if err == nil {
		_, err = s.redis.Write(deadline, "PEXPIRE", name, ttl, "GT")
	}
	if err == nil {
		_, err = s.redis.Write(deadline, "SET", name, text, "NX", "PX", ttl)
	}
	return withTenant(err, "save a checkout", t)
}

// Checkout returns what SaveCheckout has saved. Errors: ErrNoCheckout, ErrUnavailable.
func (s *store) Checkout(deadline time.Time, t *tenant, reference string) (checkout, error) {
	text, err := s.readText(deadline, checkoutRedisKey(t.id, reference))
	if err != nil {
		return checkout{}, withTenant(err, "read a checkout", t)
	}
	var c savedCheckout
	if json.Unmarshal([]byte(text), &c) != nil || c.Generation != t.generation || !validAPIKey(c.First) {
		return checkout{}, ErrNoCheckout
	}
	return checkout{reference, c.First, c.UserID, c.Price, c.Tokens}, nil
}

// SubscriptionVersion returns the version of what the key that gets c's payments has of its subscription. It is read
// before Stripe is asked for a subscription's state, and a part of that state. Errors: ErrMalformed, ErrUnavailable.
func (s *store) SubscriptionVersion(deadline time.Time, t *tenant, c checkout) (v stateVersion, err error) {
	r, err := s.receiver(deadline, t, c)
	if r.key != "" && err == nil {
		v.first = r.first
		v.n, err = redis.Int64(s.redis.Read(deadline, "HGET", apiKeyRedisKey(r.key), "subscriptionVersion"))
		if errors.Is(err, redis.ErrNil) {
			err = nil
		}
	}
	return v, withTenant(err, "read the state of a subscription", t)
}

// SetSubscription sets what Stripe says of a subscription that was bought with c, if it is the present one of its key.
// One that has ended needs no version. Errors: ErrStateMoved, ErrMalformed, ErrUnavailable.
func (s *store) SetSubscription(deadline time.Time, t *tenant, c checkout, state subscriptionState) error {
	var err error
	if state.ended { // a Grant that has asked Stripe before must find that, whichever key the invoice is for
		_, err = s.redis.Write(deadline, "SET", paidRedisKey(c.first, state.id), "ended", "PX", paidTTL.Milliseconds())
	}
	for outcome := "gone"; outcome == "gone" && err == nil; {
		var r receiver
		if r, err = s.receiver(deadline, t, c); r.key == "" || err != nil {
			break
		}
		outcome, err = redis.String(s.redis.Eval(deadline, subscriptionScript, []string{apiKeyRedisKey(r.key)},
			append([]any{t.id, t.generation}, state.args(r)...)...))
		if outcome == "moved" {
			return ErrStateMoved
		}
	}
	if err == nil && state.group != "" { // in a year it may be past due, and be paid months later
		err = s.keepCheckout(deadline, t, c)
	}
	return withTenant(err, "set the state of a subscription", t)
}

// keepCheckout remembers a checkout for another paidTTL.
func (s *store) keepCheckout(deadline time.Time, t *tenant, c checkout) error {
	if c.reference == "" {
		return nil
	}
	return s.expire(deadline, checkoutRedisKey(t.id, c.reference), paidTTL)
}

// args returns the arguments of scripts that say what the state is, with its version if it is of r.
func (state *subscriptionState) args(r receiver) []any {
	version, group, ended := "-", state.group, "" // no key has that version
	if state.version.first == r.first {
		version = strconv.FormatInt(state.version.n, 10)
	}
	if state.ended {
		group, ended = "", "1"
	}
	return []any{state.id, group, state.freeGroup, ended, version}
}

// Grant gives what a payment for c grants, once, in one atomic step with the record of it, and lists it. It goes to the
// key that c was made with, or if that is gone to its user's oldest key that has a balance of its own. Errors:
// ErrStateMoved, if nothing was granted and g.state is not of the present version; ErrMalformed, ErrUnavailable, after
// which it can be repeated.
func (s *store) Grant(deadline time.Time, t *tenant, c checkout, g grant) (result grantResult, err error) {
	for done := false; !done && err == nil; {
		var reply []string
		var r receiver
		if r, err = s.receiver(deadline, t, c); err == nil {
			reply, err = s.grantTo(deadline, t, c, g, r)
		}
		switch {
		case err != nil:
		case reply[0] == "moved":
			return result, ErrStateMoved
		case reply[0] == "granted":
			result.replayed, result.second = reply[2] == "1", reply[3] == "1"
			result.payment, err = s.list(deadline, t, reply[1])
			done = !result.unassigned
			if result.key = reply[4]; err == nil && result.unassigned { // it may have been assigned and listed meanwhile
				var now string
				now, err = s.readText(deadline, paidRedisKey(c.first, g.id))
				done = now == reply[1]
			}
		}
	}
	if err == nil {
		err = s.keepCheckout(deadline, t, c)
	}
	return result, withTenant(err, "grant a payment", t)
}

// grantTo grants a payment to r, unless it was granted before. It returns what grant.lua does, and the name that the
// key had first which has it.
func (s *store) grantTo(deadline time.Time, t *tenant, c checkout, g grant, r receiver) (reply []string, err error) {
	if r.first == c.first {
		return s.runGrant(deadline, t, c, g, r, g.facts(c))
	}
	err = s.expire(deadline, receiverRedisKey(c.first), paidTTL)
	if g.intent != "" && err == nil {
		_, err = s.redis.Write(deadline, "SET", paidRedisKey(c.first, g.intent), "for "+g.id,
			"PX", paidTTL.Milliseconds())
	}
	before := ""
	if err == nil {
		before, err = s.readText(deadline, paidRedisKey(c.first, g.id))
	}
	for reply == nil && err == nil {
		reply, before, err = s.grantAway(deadline, t, c, g, r, before)
	}
	return reply, err
}

// grantAway does what grantTo does, if r is another key than c was made with, or nobody: then the record says so.
// before is the record. If the reply is nil, that was another or has changed; it returns what it is now.
func (s *store) grantAway(deadline time.Time, t *tenant, c checkout, g grant, r receiver, before string) (
	reply []string, now string, err error) {
	record, err := parseRecord(before)
	if err != nil {
		return nil, "", err
	}
	facts := cmp.Or(record.facts, g.facts(c))
	after := "to " + r.first + " " + facts
	if r.key == "" {
		after = "unassigned = " + facts
	}
	switch {
	case record.kind == "granted":
		return []string{"granted", before, "1", "", c.first}, before, nil
	case record.kind == "unassigned" && before == after:
		return []string{"granted", before, "1", "", ""}, before, nil
	case record.kind == "to":
		heir := r
		if record.name != r.first { // that key is gone, but it may have it
			heir = receiver{first: record.name, key: record.name}
		}
		reply, err = s.runGrant(deadline, t, c, g, heir, facts)
		if err != nil || reply[0] != "gone" || heir == r {
			return reply, before, err
		}
	}
	now, err = s.swap(deadline, paidRedisKey(c.first, g.id), before, after)
	if now == after && r.key == "" {
		return []string{"granted", now, "", "", ""}, now, err
	}
	return nil, now, err
}

// runGrant runs grant.lua on r, with facts that the record is to have.
func (s *store) runGrant(deadline time.Time, t *tenant, c checkout, g grant, r receiver, facts string) (
	reply []string, err error) {
	keys := []string{apiKeyRedisKey(r.key), holdsRedisKey(r.key), paidRedisKey(r.first, g.id)}
	args := []any{g.raiseTo, g.add, facts, g.customer}
	other := "" // another record that is read or written in the same step, if it is in the same slot
	if g.state == nil {
		args = append(args, "pack", "for "+g.id)
		other = g.intent
	} else {
		state := *g.state
		if other = state.id; r.first != c.first && !state.ended {
			text, err := s.readText(deadline, paidRedisKey(c.first, state.id))
			if err != nil {
				return nil, err
			}
			state.ended = text == "ended"
		}
		args = append(append(args, "subscription"), state.args(r)...)
	}
	if other != "" && r.first == c.first {
		keys = append(keys, paidRedisKey(r.first, other))
	}
	reply, err = s.runPaid(deadline, t, grantScript, r.key, keys, args)
	return append(reply, r.first), err
}

// runPaid runs grant.lua or reverse.lua on a key.
func (s *store) runPaid(deadline time.Time, t *tenant, script *redisdb.Script, key string, keys []string, args []any) (
	reply []string, err error) {
	h := newHolder(key)
	_, err = s.withGroups(deadline, t.refillGroups(), h, anonymousGroup,
		func(groups any, only string) (outcome, group string, err error) {
			if h.key != key { // it was rotated with a grace since it was found
				reply = []string{"gone", ""}
				return "", only, nil
			}
			reply, err = redis.Strings(s.redis.Eval(deadline, script, keys,
				append([]any{t.id, t.generation, groups, only}, args...)...))
			return decideMove(reply, only, err)
		})
	return reply, err
}

// facts returns what the record of a grant for c has for the list.
func (g *grant) facts(c checkout) string {
	p := payment{at: g.at, userID: c.userID, kind: paidPack, price: g.price, tokens: max(g.add, g.raiseTo),
		group: g.group, stripeID: g.id}
	if g.state != nil {
		p.kind = paidSubscription
	}
	return p.String()
}

// findGrant returns where it is recorded what a payment for c has granted, and how many tokens. id may be a payment
// intent; then it returns the ID of its session. Errors: ErrNotGranted; others as Redis returns them.
func (s *store) findGrant(deadline time.Time, c checkout, id string) (first, paidID string, tokens int64, err error) {
	first = c.first
	for range 3 {
		text, err := s.readText(deadline, paidRedisKey(first, id))
		record, wrong := parseRecord(text)
		if err = cmp.Or(err, wrong); err != nil {
			return "", "", 0, err
		}
		switch record.kind {
		case "for":
			id = record.name
		case "to":
			first = record.name
		case "granted":
			return first, id, record.tokens, nil
		}
	}
	return "", "", 0, ErrNotGranted
}

// Granted returns how many tokens a payment for c has granted; id is that of a Checkout Session, its payment intent, or
// an invoice. Errors: ErrNotGranted, ErrMalformed, ErrUnavailable.
func (s *store) Granted(deadline time.Time, t *tenant, c checkout, id string) (int64, error) {
	_, _, tokens, err := s.findGrant(deadline, c, id)
	if err == ErrNotGranted {
		return 0, err
	}
	return tokens, withTenant(err, "read what a payment has granted", t)
}

// Reverse takes back what a refund or a dispute says of a payment for c or, if a dispute is won, gives back what it
// took, and lists that. id is as Granted takes it. It returns what has changed now: nothing, if it is repeated. Errors:
// ErrNotGranted, ErrMalformed, ErrUnavailable, after which it can be repeated.
func (s *store) Reverse(deadline time.Time, t *tenant, c checkout, id string, r reversal) (p payment, err error) {
	first, id, _, err := s.findGrant(deadline, c, id)
	reply := []string{"gone"}
	for err == nil && reply[0] == "gone" {
		key, gone := "", ""
		if key, err = s.presentName(deadline, t, first); err != nil {
			break
		} else if key == "" {
			key, gone = first, "gone"
		}
		keys := []string{apiKeyRedisKey(key), holdsRedisKey(key), paidRedisKey(first, id)}
		reply, err = s.runPaid(deadline, t, reverseScript, key, keys,
			[]any{gone, r.refunded, url.QueryEscape(r.dispute), int(r.state), r.at.UnixMilli(),
				url.QueryEscape(r.charge)})
	}
	if err == nil && reply[0] == "unknown" {
		err = ErrNotGranted
	}
	if err == nil {
		if p, err = s.list(deadline, t, reply[1]); err == nil {
			p.at, p.kind, p.stripeID = r.at, paidBack, r.charge
			if r.dispute != "" {
				p.kind = paidDispute
			}
			p.tokens, err = strconv.ParseInt(reply[2], 10, 64)
		}
	}
	if err == ErrNotGranted {
		return p, err
	}
	return p, withTenant(err, "take back what a payment has granted", t)
}
