package main

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/redisdb"
	"tollgate/internal/telemetry"
)

const (
	usageInterval = time.Second // between two writings to Redis
	usageTimeout  = 900 * time.Millisecond
	maxUsageDays  = 92 // that one request may ask for

	// What is counted between two writings. Beyond that, events count for their tenant, but not for their key.
	maxUsageCounts = 1000   // tenants and days
	maxUsageKeys   = 20_000 // API keys of all tenants
	maxTenantKeys  = 10_000 // of one tenant; and users
	maxUsageModels = 20_000 // of all keys; further ones are counted as otherName

	usageRowBytes = 256 // of memory that a model or a user of a day takes in a response

	maxNameSteps = 4 // attempts to find the names of a key that was rotated; after that it counts as gone

	dayLayout  = "2006-01-02"
	daySeconds = 24 * 60 * 60
)

// usageStats counts what is used. Counting only adds to memory, so that no request waits for it; what was counted is
// written to Redis once a second and at the end. It is for an overview: a crash loses the last second of it. Balances
// do not depend on it.
type usageStats struct {
	store *store

	mu           sync.Mutex // guards the fields below
	counts       map[usageDay]*dayUsage
	keys, models int // of all keys, that are counted

	uncounted atomic.Int64 // events that were not counted for their key

	// The names of keys that were rotated, by the one under which they are counted: those that were looked up since
	// namesSince, and the others that were in the minute before. Only write uses them.
	names, olderNames map[string]keyNames
	namesSince        time.Time
}

func newUsageStats(st *store) *usageStats {
	return &usageStats{store: st, counts: make(map[usageDay]*dayUsage)}
}

// start begins to write the counts, until stop is called, which writes what is left.
func (u *usageStats) start() (stop func()) {
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		tick := time.NewTicker(usageInterval)
		defer tick.Stop()
		for running := true; running; {
			select {
			case <-done:
				running = false
			case <-tick.C:
			}
			u.write()
		}
	})
	return func() {
		close(done)
		writer.Wait()
	}
}

// add counts an event of a tenant that exists.
func (u *usageStats) add(t *tenant, e usageEvent) {
	e.model = strings.ToValidUTF8(e.model, "\uFFFD") // else two names might be one in JSON
	sums := e.sums()
	u.mu.Lock()
	defer u.mu.Unlock()
	d := u.of(usageDay{t.id, t.generation, time.Now().Unix() / daySeconds})
	d.add(&e, sums)
	if e.key == "" || sums == (usageSums{}) && e.granted == 0 {
		return
	}
	if k := u.keyOf(d, e.key); k != nil {
		k.total.add(sums)
		k.granted = addCount(k.granted, e.granted)
		if e.endpoint != "" {
			u.modelOf(k, e.model).add(sums)
		}
	}
}

// keyOf returns the counts of an API key. If there are too many, it returns nil. The caller holds u.mu.
func (u *usageStats) keyOf(d *dayUsage, name string) *keyUsage {
	k := d.keys[name]
	if k == nil {
		if u.keys >= maxUsageKeys || len(d.keys) >= maxTenantKeys {
			u.uncounted.Add(1)
			return nil
		}
		if d.keys == nil {
			d.keys = make(map[string]*keyUsage)
		}
		k = new(keyUsage)
		d.keys[name] = k
		u.keys++
	}
	return k
}

// modelOf returns the counts of a model of an API key. The caller holds u.mu.
func (u *usageStats) modelOf(k *keyUsage, name string) *usageSums {
	kind, before := k.kind(), len(k.models)
	if u.models >= maxUsageModels && k.models[name] == nil {
		name = otherName
	}
	sums := kind.of(name)
	u.models += len(k.models) - before
	return sums
}

// of returns the counts of a tenant's day. If there are too many, they are not kept. The caller holds u.mu.
func (u *usageStats) of(day usageDay) *dayUsage {
	counts := u.counts[day]
	if counts == nil {
		counts = new(dayUsage)
		if len(u.counts) < maxUsageCounts {
			u.counts[day] = counts
		}
	}
	return counts
}

// writeMetrics writes how complete the usage of keys is.
func (u *usageStats) writeMetrics(e *telemetry.Page) {
	e.Single("usage_uncounted_total", "counter", "Events that count for their tenant, but not for their API key.",
		float64(u.uncounted.Load()))
}

// take returns what was counted, and begins anew.
func (u *usageStats) take() map[usageDay]*dayUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	counts := u.counts
	u.counts = make(map[usageDay]*dayUsage, len(counts))
	u.keys, u.models = 0, 0
	return counts
}

// write writes the counts to Redis. Those that it has certainly not got stay, for the next time. It must not be called
// by two at a time.
func (u *usageStats) write() {
	counts := u.take()
	deadline := time.Now().Add(usageTimeout)
	for day, d := range counts {
		if !d.isWritten() && time.Now().Before(deadline) && u.store.AddUsage(deadline, day, d) {
			*d = dayUsage{keys: d.keys, users: d.users}
		}
	}
	u.writeKeys(deadline.Add(-usageTimeout/4), counts)
	u.writeUsers(deadline, counts)
	for day, d := range counts {
		if !d.isWritten() || len(d.keys)+len(d.users) > 0 {
			u.putBack(day, d)
		}
	}
}

// putBack counts what was taken and is not written.
func (u *usageStats) putBack(day usageDay, d *dayUsage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	of := u.of(day)
	of.merge(d)
	for name, used := range d.keys {
		k := u.keyOf(of, name)
		if k == nil {
			continue
		}
		k.total.add(used.total)
		k.granted = addCount(k.granted, used.granted)
		for model, sums := range used.models {
			u.modelOf(k, model).add(*sums)
		}
	}
}

// writeKeys writes what keys have used, takes it out of counts, and adds it to what their users have used.
func (u *usageStats) writeKeys(deadline time.Time, counts map[usageDay]*dayUsage) {
	u.forgetNames()
	var waiting []*keyCount
	for day, d := range counts {
		for name, used := range d.keys {
			waiting = append(waiting, &keyCount{day, name, u.namesOf(name), used})
		}
	}
	for step := range maxNameSteps {
		batches := u.store.keyBatches(waiting)
		replies, written := make([][][]string, len(batches)), make([]bool, len(batches))
		redisdb.Each(len(batches), u.store.usageWriters(), func(i int) {
			if time.Now().Before(deadline) {
				replies[i], written[i] = u.store.AddKeyUsage(deadline, batches[i])
			}
		})
		waiting = nil
		for i, batch := range batches {
			for j, c := range batch {
				if !written[i] {
					continue
				}
				if names, ok := u.store.namesIn(replies[i][j]); ok && step < maxNameSteps-1 {
					c.keyNames, u.names[c.counted] = names, names
					waiting = append(waiting, c)
					continue
				}
				d := counts[c.day]
				delete(d.keys, c.counted)
				if user, ok := userOf(c, replies[i][j]); ok {
					d.addUser(user, c.used.total.requests, c.used.total.charged)
				}
			}
		}
	}
}

// userOf returns the user of a key of which AddKeyUsage has returned reply. ok is false if it is not known.
func userOf(c *keyCount, reply []string) (id string, ok bool) {
	if len(reply) != 1 {
		return "", validCredential(c.counted, anonymousKeyPrefix)
	}
	id = strings.ToValidUTF8(reply[0], "\uFFFD")
	return id, len(id) <= maxUserIDBytes
}

// forgetNames forgets the names of keys that were counted neither in this minute nor in the one before.
func (u *usageStats) forgetNames() {
	if now := time.Now(); now.Sub(u.namesSince) >= time.Minute || len(u.names) > maxUsageKeys {
		u.names, u.olderNames, u.namesSince = make(map[string]keyNames), u.names, now
	}
}

// namesOf returns what is known of the names of a key that was counted under name.
func (u *usageStats) namesOf(name string) keyNames {
	names, ok := u.names[name]
	if !ok {
		if names, ok = u.olderNames[name]; !ok {
			return keyNames{name, name}
		}
		u.names[name] = names
	}
	return names
}

// writeUsers writes what users have used, and takes it out of counts.
func (u *usageStats) writeUsers(deadline time.Time, counts map[usageDay]*dayUsage) {
	for day, d := range counts {
		for ids := range slices.Chunk(slices.Collect(maps.Keys(d.users)), maxBatchUsers) {
			if !time.Now().Before(deadline) {
				return
			}
			if !u.store.AddUserUsage(deadline, day, ids, d.users) {
				break
			}
			for _, id := range ids {
				delete(d.users, id)
			}
		}
	}
}

// groupUsage and endpointUsage are what a group, and what an endpoint or a model, have used on a day.
type groupUsage struct {
	Requests      int64 `json:"requests"`
	TokensCharged int64 `json:"tokensCharged"`
}

type endpointUsage struct {
	Requests          int64 `json:"requests"`
	InputTokens       int64 `json:"inputTokens"`
	CachedInputTokens int64 `json:"cachedInputTokens"`
	CacheWriteTokens  int64 `json:"cacheWriteTokens"`
	AudioInputTokens  int64 `json:"audioInputTokens"`
	OutputTokens      int64 `json:"outputTokens"`
	AudioOutputTokens int64 `json:"audioOutputTokens"`
	TokensCharged     int64 `json:"tokensCharged"`
}

// usageBody is a day in the response that shows a tenant's usage.
type usageBody struct {
	Day           string                   `json:"day"`
	Requests      int64                    `json:"requests"`
	TokensCharged int64                    `json:"tokensCharged"`
	TokensGranted int64                    `json:"tokensGranted"`
	ByEndpoint    map[string]endpointUsage `json:"byEndpoint"`
	ByModel       map[string]endpointUsage `json:"byModel,omitzero"` // nil unless it was asked for
	ByGroup       map[string]groupUsage    `json:"byGroup"`
	ByUser        []userUsageBody          `json:"byUser,omitzero"` // nil unless it was asked for
	CacheHits     int64                    `json:"cacheHits"`
	Refused       refusedUsage             `json:"refused"`
}

// refusedUsage are the requests that were refused on a day, by reason.
type refusedUsage struct {
	Balance int64 `json:"balance"`
	Rate    int64 `json:"rate"`
	Key     int64 `json:"key"`
	Group   int64 `json:"group"`
}

type userUsageBody struct {
	UserID *string `json:"userId"` // nil: all who are anonymous
	groupUsage
}

// keyUsageBody is a day in the response that shows the usage of an API key.
type keyUsageBody struct {
	Day           string                   `json:"day"`
	Requests      int64                    `json:"requests"`
	InputTokens   int64                    `json:"inputTokens"`
	OutputTokens  int64                    `json:"outputTokens"`
	TokensCharged int64                    `json:"tokensCharged"`
	TokensGranted int64                    `json:"tokensGranted"`
	ByModel       map[string]endpointUsage `json:"byModel"`
}

// usageDays is the response that shows usage.
type usageDays[Body any] struct {
	Days []Body `json:"days"`
}

func (s *server) showUsage(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	q, err := readUsageQuery(r)
	if err != nil {
		return err
	}
	info.memory = s.bodies.admin.Claim(info.tenantID, info.actor.tokenHash)
	return s.respondInTurn(w, info.tenantID, func() (any, error) {
		days, err := s.store.Usage(info.deadline, info.tenant, q.first, q.n)
		if err != nil {
			return nil, err
		}
		body := make([]usageBody, q.n)
		for i, d := range days {
			day := q.first + int64(i)
			body[i] = newUsageBody(formatDay(day), d)
			if q.byModel {
				body[i].ByModel = endpointUsages(d.models)
			}
			if q.byUser {
				top, kept, err := s.store.TopUsers(info.deadline, info.tenant, day, q.limit)
				if err != nil {
					return nil, err
				}
				body[i].ByUser = userUsages(top, kept, d.total)
				if info.memory.Add(int64(len(top))*usageRowBytes) != nil {
					return nil, errNoMemory
				}
			}
		}
		return usageDays[usageBody]{body}, nil
	})
}

// showOwnUsage shows what the API key of the request has used. Its holder waits for that key's turn alone, and keeps no
// admin waiting.
func (s *server) showOwnUsage(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	info.memory = s.bodies.gateway.Claim(info.tenantID, info.apiKey)
	return s.respondWithKeyUsage(w, r, info, info.apiKey, info.tenantID+" "+info.apiKey)
}

// showKeyUsage shows what the API key in the path has used.
func (s *server) showKeyUsage(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	info.memory = s.bodies.admin.Claim(info.tenantID, info.actor.tokenHash)
	return notFoundForAdmin(s.respondWithKeyUsage(w, r, info, key, info.tenantID))
}

// respondWithKeyUsage shows what an API key has used, when its turn comes. Error: errNoMemory if memory for a long
// response is short.
func (s *server) respondWithKeyUsage(w http.ResponseWriter, r *http.Request, info *requestInfo,
	key, turn string) error {
	query, err := readQuery(r, "from", "to")
	if err != nil {
		return err
	}
	q, err := readUsageDays(query)
	if err != nil {
		return err
	}
	return s.respondInTurn(w, turn, func() (any, error) {
		days, err := s.store.KeyUsage(info.deadline, info.tenant, key, q.first, q.n)
		if err != nil {
			return nil, err
		}
		body := make([]keyUsageBody, q.n)
		for i, d := range days {
			body[i] = keyUsageBody{
				Day: formatDay(q.first + int64(i)), Requests: d.total.requests, TokensCharged: d.total.charged,
				TokensGranted: d.granted, ByModel: endpointUsages(d.models),
			}
			if info.memory.Add(int64(len(d.models))*usageRowBytes) != nil {
				return nil, errNoMemory
			}
			for _, sums := range d.models {
				body[i].InputTokens = addCount(body[i].InputTokens, sums.input)
				body[i].OutputTokens = addCount(body[i].OutputTokens, sums.output)
			}
		}
		return usageDays[keyUsageBody]{body}, nil
	})
}

// userUsages returns the users of top, and what all together have used beyond those that are kept, as clients get it.
// That is counted as otherName, also if a user has that ID.
func userUsages(top []topUser, kept userUsage, total usageSums) []userUsageBody {
	rest := userUsage{max(total.requests-kept.requests, 0), max(total.charged-kept.charged, 0)}
	if rest != (userUsage{}) {
		i := slices.IndexFunc(top, func(user topUser) bool { return user.id == otherName })
		if i < 0 {
			i, top = len(top), append(top, topUser{id: otherName})
		}
		top[i].add(rest.requests, rest.charged)
		slices.SortStableFunc(top, func(a, b topUser) int { return cmp.Compare(b.charged, a.charged) })
	}
	body := make([]userUsageBody, len(top))
	for i := range top {
		user := &top[i]
		body[i] = userUsageBody{nil, groupUsage{user.requests, user.charged}}
		if user.id != "" {
			body[i].UserID = &user.id
		}
	}
	return body
}

// newUsageBody returns the usage of a day, as clients get it.
func newUsageBody(day string, d *dayUsage) usageBody {
	body := usageBody{
		Day: day, Requests: d.total.requests, TokensCharged: d.total.charged, TokensGranted: d.granted,
		ByEndpoint: endpointUsages(d.endpoints), ByGroup: make(map[string]groupUsage), CacheHits: d.cacheHits,
		Refused: refusedUsage{
			Balance: d.refused[refusedBalance], Rate: d.refused[refusedRate], Key: d.refused[refusedKey],
			Group: d.refused[refusedGroup],
		},
	}
	for name, sums := range d.groups {
		body.ByGroup[name] = groupUsage{sums.requests, sums.charged}
	}
	return body
}

// endpointUsages returns the usage of endpoints or models, as clients get it.
func endpointUsages(all map[string]*usageSums) map[string]endpointUsage {
	body := make(map[string]endpointUsage, len(all))
	for name, sums := range all {
		body[name] = endpointUsage{
			Requests: sums.requests, InputTokens: sums.input, CachedInputTokens: sums.cachedInput,
			CacheWriteTokens: sums.cacheWrite, AudioInputTokens: sums.audioInput, OutputTokens: sums.output,
			AudioOutputTokens: sums.audioOutput, TokensCharged: sums.charged,
		}
	}
	return body
}
