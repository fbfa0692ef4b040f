package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/llmwire"
	"tollgate/internal/redisdb"
)

const (
	usageTTL       = 100 * 24 * time.Hour
	usageStep      = 8      // days that are read at a time
	maxUsageFields = 1000   // of one tenant and day
	maxModelFields = 500    // of these, until which there are further models: clients may invent names
	maxKeyFields   = 200    // of one API key and day, until which there are further models
	maxUsageUsers  = 10_000 // of one tenant and day that are kept, those who were charged most
	maxUsageModel  = 128    // bytes of a model's name, which is longer than those of endpoints and groups
	maxUsageNames  = 100    // of groups, of endpoints and of models, that one tenant's counts have between two writings

	// What one script adds, so that others need not wait long for Redis.
	maxBatchKeys   = 50
	maxBatchFields = 500
	maxBatchUsers  = 200
)

// usageEvent is one thing that is counted: a request with what it has used, or tokens that were granted.
type usageEvent struct {
	key      string // whose balance it concerns, by a name that the API key has or had; "" if it concerns none
	group    string // "" if it concerns none
	endpoint string // of a provider; "" if it concerns none
	model    string // that the endpoint was asked for, if it concerns one; "" if it was asked for none
	requests int64
	charged  int64
	granted  int64
	cacheHit bool    // the response came from the cache
	refused  refusal // why the request was refused; notRefused if it was not
	used     llmwire.Usage
}

// usageSums are the counts of one name: a group, an endpoint or a model.
type usageSums struct {
	requests, charged int64
	input, output     int64 // tokens of models; the kinds that follow are parts of them

	cachedInput, cacheWrite, audioInput, audioOutput int64
}

// sums returns the counts of one event.
func (e *usageEvent) sums() usageSums {
	u := &e.used
	return usageSums{
		requests: e.requests, charged: e.charged, input: u.Input, output: u.Output,
		cachedInput: u.CachedInput + u.CachedAudioInput, cacheWrite: u.CacheWrite + u.CacheWrite1h,
		audioInput: u.AudioInput + u.CachedAudioInput, audioOutput: u.AudioOutput,
	}
}

// dayUsage is what a tenant's keys, or one of them, have used on one day.
type dayUsage struct {
	total     usageSums // only requests and charged
	granted   int64
	cacheHits int64
	refused   [len(refusals)]int64 // by reason
	endpoints map[string]*usageSums
	models    map[string]*usageSums
	groups    map[string]*usageSums

	// What is not written yet.
	keys  map[string]*keyUsage  // by a name that the API key has or had
	users map[string]*userUsage // of keys that are written, by user ID, "" for all who are anonymous
}

// keyUsage is what one API key has used on one day.
type keyUsage struct {
	total   usageSums // only requests and charged
	granted int64
	models  map[string]*usageSums
}

// userUsage is what the API keys of a user have used on one day.
type userUsage struct{ requests, charged int64 }

func (u *userUsage) add(requests, charged int64) {
	u.requests, u.charged = addCount(u.requests, requests), addCount(u.charged, charged)
}

// A usageKind is a kind of names that have counts of their own.
type usageKind struct {
	kind    string // in Redis
	longest int    // bytes of a name
	all     *map[string]*usageSums
}

// kinds returns the counts of all kinds, always in the same order.
func (d *dayUsage) kinds() [3]usageKind {
	return [...]usageKind{
		{"group", maxGroupBytes, &d.groups}, {"endpoint", maxGroupBytes, &d.endpoints}, {"model", maxUsageModel, &d.models},
	}
}

// usageDay says whose counts they are.
type usageDay struct {
	tenantID, generation string
	day                  int64 // since 1970, in UTC
}

// add counts an event, but not for its key. Its model must be UTF-8.
func (d *dayUsage) add(e *usageEvent, sums usageSums) {
	d.granted = addCount(d.granted, e.granted)
	d.total.add(sums)
	if e.cacheHit {
		d.cacheHits = addCount(d.cacheHits, 1)
	}
	if e.refused != notRefused {
		d.refused[e.refused] = addCount(d.refused[e.refused], 1)
	}
	kinds := d.kinds()
	groups, endpoints, models := &kinds[0], &kinds[1], &kinds[2]
	if e.group != "" {
		groups.of(e.group).add(sums)
	}
	if e.endpoint != "" {
		endpoints.of(e.endpoint).add(sums)
		models.of(e.model).add(sums)
	}
}

// A namedSum is one of the counts of usageSums, with its name in Redis.
type namedSum struct {
	name string
	sum  *int64
}

// all returns all counts, always in the same order.
func (s *usageSums) all() [8]namedSum {
	return [...]namedSum{
		{"requests", &s.requests}, {"charged", &s.charged}, {"input", &s.input}, {"output", &s.output},
		{"cached_input", &s.cachedInput}, {"cache_write", &s.cacheWrite}, {"audio_input", &s.audioInput},
		{"audio_output", &s.audioOutput},
	}
}

func (s *usageSums) add(more usageSums) {
	s.requests = addCount(s.requests, more.requests)
	s.charged = addCount(s.charged, more.charged)
	s.input = addCount(s.input, more.input)
	s.output = addCount(s.output, more.output)
	s.cachedInput = addCount(s.cachedInput, more.cachedInput)
	s.cacheWrite = addCount(s.cacheWrite, more.cacheWrite)
	s.audioInput = addCount(s.audioInput, more.audioInput)
	s.audioOutput = addCount(s.audioOutput, more.audioOutput)
}

// addCount adds two counts, which stay at or below maxAmount.
func addCount(a, b int64) int64 { return min(a+b, maxAmount) }

// of returns the sums of a name, which are those of otherName if the name is long or there are too many.
func (k *usageKind) of(name string) *usageSums {
	if len(name) > k.longest || (*k.all)[name] == nil && len(*k.all) >= maxUsageNames {
		name = otherName
	}
	return k.named(name)
}

// named returns the sums of exactly that name.
func (k *usageKind) named(name string) *usageSums {
	if *k.all == nil {
		*k.all = make(map[string]*usageSums)
	}
	sums := (*k.all)[name]
	if sums == nil {
		sums = new(usageSums)
		(*k.all)[name] = sums
	}
	return sums
}

// merge adds the counts of another part of the same day, but not those of keys.
func (d *dayUsage) merge(other *dayUsage) {
	d.total.add(other.total)
	d.granted = addCount(d.granted, other.granted)
	d.cacheHits = addCount(d.cacheHits, other.cacheHits)
	for reason, n := range other.refused {
		d.refused[reason] = addCount(d.refused[reason], n)
	}
	others := other.kinds()
	for i, kind := range d.kinds() {
		for name, sums := range *others[i].all {
			kind.of(name).add(*sums)
		}
	}
	for user, used := range other.users {
		d.addUser(user, used.requests, used.charged)
	}
}

// addUser counts what a key of a user has used, if anything, unless there are too many users.
func (d *dayUsage) addUser(user string, requests, charged int64) {
	used := d.users[user]
	if used == nil {
		if requests == 0 && charged == 0 || len(d.users) >= maxTenantKeys {
			return
		}
		if d.users == nil {
			d.users = make(map[string]*userUsage)
		}
		used = new(userUsage)
		d.users[user] = used
	}
	used.add(requests, charged)
}

// isWritten reports whether there is nothing to write but what d.keys and d.users have.
func (d *dayUsage) isWritten() bool {
	return d.total == usageSums{} && d.granted == 0 && d.cacheHits == 0 && d.refused == [len(refusals)]int64{}
}

func formatDay(day int64) string { return time.Unix(day*daySeconds, 0).UTC().Format(dayLayout) }

// AddUsage adds counts to those of a tenant's day. ok is false if Redis has certainly not got them. If it may have got
// them, they are not to be added again.
func (s *store) AddUsage(deadline time.Time, day usageDay, d *dayUsage) (ok bool) {
	keys := []string{usageRedisKey(day.tenantID, day.day), generationRedisKey(day.tenantID)}
	args := []any{day.generation, maxUsageFields, maxModelFields, usageTTL.Milliseconds()}
	add := func(field, instead string, n int64) { args = appendCount(args, field, instead, n) }
	add("requests", "requests", d.total.requests)
	add("charged", "charged", d.total.charged)
	add("granted", "granted", d.granted)
	add("cache_hits", "cache_hits", d.cacheHits)
	for reason, n := range d.refused {
		field := "refused " + refusals[reason]
		add(field, field, n)
	}
	for _, kind := range d.kinds() {
		args = kind.appendFields(args)
	}
	_, err := s.redis.EvalDispensable(deadline, usageScript, keys, args...)
	return err == nil || redisdb.MayHaveRun(err)
}

// appendCount appends to args, as addCounts in counts.lua takes them, what to add to a field, unless that is 0; and the
// field to add it to if there are too many.
func appendCount(args []any, field, instead string, n int64) []any {
	if n == 0 {
		return args
	}
	return append(args, field, instead, n)
}

// appendFields appends to args what to add to the fields of all names.
func (k *usageKind) appendFields(args []any) []any {
	for name, sums := range *k.all {
		for _, one := range sums.all() {
			head := k.kind + " " + one.name + " "
			args = appendCount(args, head+name, head+otherName, *one.sum)
		}
	}
	return args
}

// A keyCount is what an API key has used on a day, with what is known of its names.
type keyCount struct {
	day     usageDay
	counted string // the name under which it was counted
	keyNames
	used *keyUsage
}

// keyNames are the present name of an API key and the one that it had first, as far as is known.
type keyNames struct{ name, first string }

// keyBatches splits counts of keys into such as AddKeyUsage takes.
func (s *store) keyBatches(counts []*keyCount) (batches [][]*keyCount) {
	type batch struct {
		counts []*keyCount
		fields int
	}
	filling := make(map[int]*batch) // by slot
	for _, c := range counts {
		slot := 0
		if !s.redis.OneSlot() {
			slot = redisdb.Slot(apiKeyRedisKey(c.name))
		}
		b, fields := filling[slot], 3+len(new(usageSums).all())*len(c.used.models)
		if b != nil && (len(b.counts) == maxBatchKeys || b.fields+fields > maxBatchFields) {
			batches = append(batches, b.counts)
			b = nil
		}
		if b == nil {
			b = new(batch)
			filling[slot] = b
		}
		b.counts, b.fields = append(b.counts, c), b.fields+fields
	}
	for _, b := range filling {
		batches = append(batches, b.counts)
	}
	return batches
}

// AddKeyUsage adds what API keys have used to what Redis has of that, in one step. Unless OneSlot, all must be in the
// same slot. For each it returns the key's user ID, "" for an anonymous one; or two names, if nothing was added because
// these are the key's; or nothing, if nothing was added because the key is gone. If Redis may have added them, but has
// not said so, it returns nothing for all. ok is false if it has certainly not.
func (s *store) AddKeyUsage(deadline time.Time, batch []*keyCount) (replies [][]string, ok bool) {
	keys, args := make([]string, 0, 4*len(batch)), []any{time.Now().Add(usageTTL).UnixMilli(), maxKeyFields}
	for _, c := range batch {
		keys = append(keys, apiKeyRedisKey(c.name), firstRedisKey(c.name), keyUsageRedisKey(c.first, c.day.day),
			currentRedisKey(c.first))
		args = append(args, c.first, 0)
		start := len(args)
		args = appendCount(args, "requests", "requests", c.used.total.requests)
		args = appendCount(args, "charged", "charged", c.used.total.charged)
		args = appendCount(args, "granted", "granted", c.used.granted)
		args = c.used.kind().appendFields(args)
		args[start-1] = len(args) - start
	}
	replies = make([][]string, len(batch))
	values, err := redis.Values(s.redis.EvalDispensable(deadline, keyUsageScript, keys, args...))
	for i := range min(len(values), len(replies)) {
		replies[i], _ = redis.Strings(values[i], nil)
	}
	return replies, err == nil || redisdb.MayHaveRun(err)
}

// namesIn returns the names of a key that are in a reply of AddKeyUsage. ok is false if there are none, or they are not
// such as tollgate writes: both are in one slot.
func (s *store) namesIn(reply []string) (names keyNames, ok bool) {
	if len(reply) != 2 || !validAPIKey(reply[0]) || !validAPIKey(reply[1]) {
		return names, false
	}
	return keyNames{reply[0], reply[1]}, s.redis.SameSlot(apiKeyRedisKey(reply[0]), apiKeyRedisKey(reply[1]))
}

// usageWriters returns how many may call AddKeyUsage at a time: in a cluster, where nearly each key has a step of its
// own, several.
func (s *store) usageWriters() int {
	if s.redis.OneSlot() {
		return 1
	}
	return 8
}

// kind returns the counts of models.
func (k *keyUsage) kind() *usageKind { return &usageKind{"model", maxUsageModel, &k.models} }

// usersRedisKeys returns the keys of userusage.lua and topusers.lua.
func usersRedisKeys(tenantID string, day int64) []string {
	users := usageRedisKey(tenantID, day) + ":users"
	return []string{users, users + ":sums", generationRedisKey(tenantID)}
}

// AddUserUsage adds what users have used on a day to what Redis has of that, in one step. ok is as that of AddUsage.
func (s *store) AddUserUsage(deadline time.Time, day usageDay, ids []string, of map[string]*userUsage) (ok bool) {
	args := []any{day.generation, maxUsageUsers, usageTTL.Milliseconds()}
	for _, id := range ids {
		args = append(args, id, of[id].requests, of[id].charged)
	}
	_, err := s.redis.EvalDispensable(deadline, userUsageScript, usersRedisKeys(day.tenantID, day.day), args...)
	return err == nil || redisdb.MayHaveRun(err)
}

// A topUser is a user of those who were charged most on a day.
type topUser struct {
	id string // "" stands for all who are anonymous
	userUsage
}

// TopUsers returns the users who were charged most on a day, at most limit, in descending order, and what all have used
// that are kept. Error: ErrUnavailable.
func (s *store) TopUsers(deadline time.Time, t *tenant, day int64, limit int) (top []topUser, kept userUsage,
	err error) {
	keys := usersRedisKeys(t.id, day)
	reply, err := redis.Values(s.redis.EvalLarge(deadline, topUsersScript, keys, t.generation, limit))
	if err == nil && len(reply) > 0 {
		reply, err = redis.Scan(reply, &kept.requests, &kept.charged)
	}
	for err == nil && len(reply) > 0 {
		var user topUser
		reply, err = redis.Scan(reply, &user.id, &user.requests, &user.charged)
		top = append(top, user)
	}
	if err != nil {
		err = fmt.Errorf("read the usage of users of tenant %s: %w", t.id, err)
	}
	return top, kept, err
}

// Usage returns the counts of a tenant on each of n days from the day first on. Error: ErrUnavailable.
func (s *store) Usage(deadline time.Time, t *tenant, first int64, n int) ([]*dayUsage, error) {
	return s.readUsage(deadline, t, first, n, func(day int64) string { return usageRedisKey(t.id, day) },
		func(fields map[string]string) bool { return fields["generation"] == t.generation })
}

// KeyUsage returns the counts of the API key of t that has the balance of key, on each of n days from the day first on.
// Errors: ErrNoKey, ErrMalformed, ErrUnavailable.
func (s *store) KeyUsage(deadline time.Time, t *tenant, key string, first int64, n int) ([]*dayUsage, error) {
	b, err := s.Buyer(deadline, t, key)
	if err != nil {
		return nil, err
	}
	return s.readUsage(deadline, t, first, n, func(day int64) string { return keyUsageRedisKey(b.first, day) },
		func(map[string]string) bool { return true })
}

// readUsage reads the hashes of n days, whose names nameOf returns, and ignores those that are not accepted. It reads
// usageStep days at a time: Redis serves others in between.
func (s *store) readUsage(deadline time.Time, t *tenant, first int64, n int, nameOf func(day int64) string,
	accepts func(fields map[string]string) bool) ([]*dayUsage, error) {
	all := make([]string, n)
	for i := range all {
		all[i] = nameOf(first + int64(i))
	}
	days := make([]*dayUsage, 0, n)
	for keys := range slices.Chunk(all, usageStep) {
		replies, err := s.redis.ReadEach(deadline, "HGETALL", keys)
		if err != nil {
			return nil, fmt.Errorf("read the usage of tenant %s: %w", t.id, err)
		}
		for _, reply := range replies {
			fields, err := redis.StringMap(reply, nil)
			if err != nil {
				return nil, fmt.Errorf("read the usage of tenant %s: %w", t.id, errBadReply)
			}
			day := new(dayUsage)
			if accepts(fields) {
				day.read(fields)
			}
			days = append(days, day)
		}
	}
	return days, nil
}

// read reads the fields of a hash. It ignores those that it does not know.
func (d *dayUsage) read(fields map[string]string) {
	kinds := d.kinds()
	for field, text := range fields {
		value, err := strconv.ParseInt(text, 10, 64)
		if err != nil || value < 0 {
			continue
		}
		value = min(value, maxAmount)
		kind, rest, _ := strings.Cut(field, " ")
		sum, name, _ := strings.Cut(rest, " ")
		switch kind {
		case "requests":
			d.total.requests = value
			continue
		case "charged":
			d.total.charged = value
			continue
		case "granted":
			d.granted = value
			continue
		case "cache_hits":
			d.cacheHits = value
			continue
		case "refused":
			if i := slices.Index(refusals[:], rest); i > 0 {
				d.refused[i] = value
			}
			continue
		}
		i := slices.IndexFunc(kinds[:], func(k usageKind) bool { return k.kind == kind })
		if i < 0 {
			continue
		}
		for _, one := range kinds[i].named(name).all() {
			if one.name == sum {
				*one.sum = value
			}
		}
	}
}
