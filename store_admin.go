package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

// What admins have besides keys: admin tokens, the list of users (see the head of store_index.go), the list of
// payments, and the state of Redis.

const (
	maxAdminTokens  = 100  // of a tenant; earlier versions had no bound
	maxListedTokens = 1000 // of those that earlier versions have left
	tokenIDChars    = 8    // of the hash in hex
	tokenScanStep   = 1000 // tokens that Redis looks at before it does something else
)

// adminToken is an admin token as it is listed.
type adminToken struct {
	id        string // the first tokenIDChars of its SHA-256 in hex; two may have the same
	createdAt string
}

// AddAdminToken adds an admin token of tenantID by its SHA-256, if by may still do so, in one atomic step. Errors:
// ErrNoTenant, ErrRevoked, ErrTooManyTokens, ErrUnavailable.
func (s *store) AddAdminToken(deadline time.Time, tenantID string, hash [sha256.Size]byte, by actor) error {
	keys := []string{configRedisKey(tenantID), adminTokensRedisKey(tenantID)}
	reply, err := redis.String(s.redis.EvalLarge(deadline, tokenScript, keys,
		hex.EncodeToString(hash[:]), formatTime(time.Now()), by.tokenHash, maxAdminTokens))
	if err != nil {
		return fmt.Errorf("add an admin token of tenant %s: %w", tenantID, err)
	}
	switch reply {
	case "added":
		return nil
	case "missing":
		return ErrNoTenant
	case "revoked":
		return ErrRevoked
	case "full":
		return ErrTooManyTokens
	}
	return fmt.Errorf("add an admin token of tenant %s: %w", tenantID, errBadReply)
}

// IsAdminToken reports whether tenantID has an admin token with that SHA-256. It is looked up rather than compared in
// constant time: to make use of the time, one would have to know tokens for chosen hashes. Error: ErrUnavailable.
func (s *store) IsAdminToken(deadline time.Time, tenantID string, hash [sha256.Size]byte) (bool, error) {
	found, err := redis.Bool(s.redis.Read(deadline, "HEXISTS", adminTokensRedisKey(tenantID), hex.EncodeToString(hash[:])))
	if err != nil {
		return false, fmt.Errorf("look up an admin token of tenant %s: %w", tenantID, err)
	}
	return found, nil
}

// AdminTokens returns the admin tokens of tenantID, oldest first. If there are more than maxListedTokens, which of them
// it returns is up to Redis. Error: ErrUnavailable.
func (s *store) AdminTokens(deadline time.Time, tenantID string) ([]adminToken, error) {
	created := make(map[string]string) // by hash: a scan may return one twice
	err := s.scanAdminTokens(deadline, tenantID, "*", func(pairs []string) (more bool, err error) {
		for pair := range slices.Chunk(pairs, 2) {
			if hash := pair[0]; len(hash) == 2*sha256.Size && len(created) < maxListedTokens {
				created[hash] = pair[1]
			}
		}
		return len(created) < maxListedTokens, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the admin tokens of tenant %s: %w", tenantID, err)
	}
	tokens := make([]adminToken, 0, len(created))
	for hash, createdAt := range created {
		tokens = append(tokens, adminToken{hash[:tokenIDChars], createdAt})
	}
	slices.SortFunc(tokens, func(a, b adminToken) int { // times as they are stored sort as text
		return cmp.Or(strings.Compare(a.createdAt, b.createdAt), strings.Compare(a.id, b.id))
	})
	return tokens, nil
}

// scanAdminTokens calls f with the admin tokens of tenantID whose hashes match pattern, as pairs of hash and time of
// creation: in steps, with each at least once, until f returns false or an error.
func (s *store) scanAdminTokens(deadline time.Time, tenantID, pattern string,
	f func(pairs []string) (more bool, err error)) error {
	for cursor := "0"; ; {
		reply, err := redis.Values(s.redis.Read(deadline, "HSCAN", adminTokensRedisKey(tenantID), cursor,
			"MATCH", pattern, "COUNT", tokenScanStep))
		var pairs []string
		if err == nil {
			_, err = redis.Scan(reply, &cursor, &pairs)
		}
		more := err == nil
		if more {
			more, err = f(pairs)
		}
		if !more || err != nil || cursor == "0" {
			return err
		}
	}
}

// RevokeAdminToken deletes the admin tokens of tenantID with that ID. Errors: ErrNoToken; ErrUnavailable, after which
// some may be deleted.
func (s *store) RevokeAdminToken(deadline time.Time, tenantID, id string) error {
	deleted := 0
	err := s.scanAdminTokens(deadline, tenantID, id+"*", func(pairs []string) (more bool, err error) {
		if len(pairs) == 0 {
			return true, nil
		}
		var hashes []any
		for pair := range slices.Chunk(pairs, 2) {
			hashes = append(hashes, pair[0])
		}
		n, err := redis.Int(s.redis.Write(deadline, "HDEL", adminTokensRedisKey(tenantID), hashes...))
		deleted += n
		return true, err
	})
	if err != nil {
		return fmt.Errorf("delete an admin token of tenant %s: %w", tenantID, err)
	}
	if deleted == 0 {
		return ErrNoToken
	}
	return nil
}

// RevokeAdminTokens deletes all admin tokens of tenantID. Error: ErrUnavailable.
func (s *store) RevokeAdminTokens(deadline time.Time, tenantID string) error {
	if _, err := s.redis.Write(deadline, "UNLINK", adminTokensRedisKey(tenantID)); err != nil {
		return fmt.Errorf("delete the admin tokens of tenant %s: %w", tenantID, err)
	}
	return nil
}

// usersRedisKey returns where the IDs of the users are who have API keys of a tenant, in a sorted set in which all have
// the score 0. The next tenant of that ID has another.
func usersRedisKey(tenantID, generation string) string {
	return strings.TrimSuffix("users:"+tenantID+":"+generation, ":")
}

// addUser adds a user to those of a tenant who have API keys, and reports whether it was not among them.
func (s *store) addUser(deadline time.Time, tenantID, generation, userID string) (added bool, err error) {
	return redis.Bool(s.redis.Write(deadline, "ZADD", usersRedisKey(tenantID, generation), 0, userID))
}

// addOwner adds the user of a key to those of its tenant, unless that was deleted since.
func (s *store) addOwner(deadline time.Time, o keyOwner) error {
	generation, err := s.readText(deadline, generationRedisKey(o.tenantID))
	if err == nil && generation == o.generation {
		_, err = s.addUser(deadline, o.tenantID, generation, o.userID)
	}
	return err
}

// keyUser is a user who has API keys.
type keyUser struct {
	id   string
	keys int64 // that the index has, at least 1
}

// Users returns users of t who have API keys and whose IDs begin with prefix, in the order of their bytes: a page of at
// most limit of them that come after the ID after, and after which the next page begins, "" if this is the last. A page
// may have fewer users, or none: one whose index is empty is dropped. Error: ErrUnavailable.
func (s *store) Users(deadline time.Time, t *tenant, prefix, after string, limit int) (users []keyUser, next string,
	err error) {
	from := "[" + prefix
	if after != "" && after >= prefix {
		from = "(" + after
	}
	ids, err := redis.Strings(s.redis.Read(deadline, "ZRANGE", usersRedisKey(t.id, t.generation),
		from, afterPrefix(prefix), "BYLEX", "LIMIT", 0, limit+1))
	if len(ids) > limit {
		ids = ids[:limit]
		next = ids[limit-1]
	}
	var counts []int64
	if err == nil {
		counts, err = s.countKeys(deadline, t, ids)
	}
	var gone []string
	for i, n := range counts {
		if n == 0 {
			gone = append(gone, ids[i])
		}
	}
	back := make(map[string]int64)
	if err == nil && len(gone) > 0 {
		back, err = s.dropUsers(deadline, t, gone)
	}
	if err != nil {
		return nil, "", fmt.Errorf("list the users of tenant %s: %w", t.id, err)
	}
	for i, id := range ids {
		if n := max(counts[i], back[id]); n > 0 {
			users = append(users, keyUser{id, n})
		}
	}
	return users, next, nil
}

// afterPrefix returns where ZRANGE … BYLEX ends that is to return what begins with prefix.
func afterPrefix(prefix string) string {
	last := len(prefix) - 1
	for last >= 0 && prefix[last] == 0xff {
		last--
	}
	if last < 0 {
		return "+"
	}
	return "(" + prefix[:last] + string([]byte{prefix[last] + 1})
}

// countKeys returns how many keys the index of each of those users of t has.
func (s *store) countKeys(deadline time.Time, t *tenant, ids []string) ([]int64, error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = userKeysByTimeRedisKey(t.id, id)
	}
	return redis.Int64s(s.redis.ReadEach(deadline, "ZCARD", names))
}

// dropUsers removes users whose index is empty from the users of t, but puts those back who have got a key meanwhile.
// It returns these, and how many keys they have.
func (s *store) dropUsers(deadline time.Time, t *tenant, ids []string) (back map[string]int64, err error) {
	members := make([]any, len(ids))
	for i, id := range ids {
		members[i] = id
	}
	name := usersRedisKey(t.id, t.generation)
	var counts []int64
	if _, err = s.redis.Write(deadline, "ZREM", name, members...); err == nil {
		counts, err = s.countKeys(deadline, t, ids)
	}
	back = make(map[string]int64)
	var again []any
	for i, n := range counts {
		if n > 0 {
			back[ids[i]], again = n, append(again, 0, ids[i])
		}
	}
	if err == nil && len(again) > 0 {
		_, err = s.redis.Write(deadline, "ZADD", name, again...)
	}
	return back, err
}

// A listedPayment is a payment as the list in Redis has it.
type listedPayment struct {
	At         int64       `json:"at"` // Unix ms
	UserID     string      `json:"user"`
	Kind       paymentKind `json:"kind"`
	Price      string      `json:"price"`
	Tokens     int64       `json:"tokens"`
	Group      string      `json:"group,omitempty"`
	StripeID   string      `json:"id"`
	N          int         `json:"n,omitempty"`
	Unassigned bool        `json:"unassigned,omitempty"`
}

// String returns p as the list has it.
func (p payment) String() string {
	text, _ := json.Marshal(listedPayment{
		p.at.UnixMilli(), p.userID, p.kind, p.price, p.tokens, p.group, p.stripeID, p.n, p.unassigned})
	return string(text)
}

// parsePayment parses what String returns.
func parsePayment(text string) (payment, error) {
	var p listedPayment
	err := json.Unmarshal([]byte(text), &p)
	return payment{time.UnixMilli(p.At), p.UserID, p.Kind, p.Price, p.Tokens, p.Group, p.StripeID, p.Unassigned, p.N}, err
}

// A paidRecord is the record of a payment, as lua/paid.lua describes it.
type paidRecord struct {
	kind    string   // its first word; "" without a record
	name    string   // of "to", the name that the key had first; of "for", the ID of the Checkout Session
	tokens  int64    // granted
	changes []string // the last ones
	facts   string   // for the list
}

// parseRecord parses the record of a payment, or "". Error: errBadReply.
func parseRecord(text string) (r paidRecord, err error) {
	kind, rest, _ := strings.Cut(text, " ")
	r.kind = kind
	if kind != "granted" {
		r.name, r.facts, _ = strings.Cut(rest, " ")
		return r, nil
	}
	fields := strings.SplitN(rest, " ", 7)
	if r.tokens, err = strconv.ParseInt(fields[0], 10, 64); err != nil || len(fields) < 7 {
		return r, errBadReply
	}
	r.changes, r.facts = strings.Split(strings.Trim(fields[5], ",="), ","), fields[6]
	return r, nil
}

// list adds all that the record of a payment says to the tenant's list: the payment, which it returns, and what was
// taken or given back since. What is there already stays as it is; but a payment that was unassigned is there once.
func (s *store) list(deadline time.Time, t *tenant, text string) (paid payment, err error) {
	record, err := parseRecord(text)
	if err == nil {
		paid, err = parsePayment(record.facts)
	}
	if err != nil {
		return paid, errBadReply // err may quote what is in Redis
	}
	unassigned := paid
	unassigned.unassigned = true
	replaced := unassigned.String()
	if record.kind == "granted" {
		paid.tokens = record.tokens
	} else {
		paid, replaced = unassigned, ""
	}
	args := []any{maxPayments, replaced, paid.at.UnixMilli(), paid.String()}
	for _, change := range record.changes {
		p := paid
		var at int64
		words := strings.ReplaceAll(change, ":", " ")
		if n, _ := fmt.Sscan(words, &p.n, &p.kind, &p.tokens, &at, &p.stripeID); n == 5 {
			p.at = time.UnixMilli(at)
			args = append(args, at+int64(p.n), p.String()) // Stripe's times are whole seconds; it follows the payment
		}
	}
	_, err = s.redis.EvalLarge(deadline, listScript, []string{paymentsRedisKey(t.id, t.generation)}, args...)
	return paid, err
}

// Payments returns the payments of t, newest first: at most limit of them, and where the next page begins, nil after
// the last. after is nil for the first page. A page may have fewer, since what tollgate has not written is left out.
// Error: ErrUnavailable.
func (s *store) Payments(deadline time.Time, t *tenant, after *indexCursor, limit int) (
	list []payment, next *indexCursor, err error) {
	from, at := any("+inf"), indexCursor{}
	if after != nil {
		from, at = after.score, *after
	}
	reply, err := redis.Strings(s.redis.Read(deadline, "ZRANGE", paymentsRedisKey(t.id, t.generation),
		from, "-inf", "BYSCORE", "REV", "LIMIT", at.passed, limit+1, "WITHSCORES"))
	for i := 0; i+1 < len(reply) && err == nil; i += 2 {
		if i == 2*limit {
			next = &at
			break
		}
		var score float64
		if score, err = strconv.ParseFloat(reply[i+1], 64); int64(score) != at.score {
			at = indexCursor{score: int64(score)}
		}
		at.passed++
		if p, wrong := parsePayment(reply[i]); wrong == nil {
			list = append(list, p)
		}
	}
	return list, next, withTenant(err, "list the payments", t)
}

// Nodes returns the topology of Redis, and the states of its servers as redisdb.Client.Nodes does.
func (s *store) Nodes() (topology string, nodes []redisdb.NodeState) {
	return s.redis.Topology(), s.redis.Nodes()
}
