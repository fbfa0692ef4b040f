package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/llmwire"
	"tollgate/internal/redisdb"
)

const (
	usageInterval  = time.Second // between two writings to Redis
	usageTimeout   = 900 * time.Millisecond
	usageTTL       = 100 * 24 * time.Hour
	maxUsageDays   = 92   // that one request may ask for
	usageStep      = 8    // of them, that are read at a time
	maxUsageFields = 1000 // of one tenant and day
	maxModelFields = 500  // of these, until which there are further models: clients may invent names
	maxUsageModel  = 128  // of a model's name, which is longer than those of endpoints and groups
	maxUsageNames  = 100  // of groups, of endpoints and of models, that one tenant's counts have between two writings
	maxUsageCounts = 1000 // tenants and days that are counted between two writings

	dayLayout  = "2006-01-02"
	daySeconds = 24 * 60 * 60
)

// usageEvent is one thing that is counted: a request with what it has used, or tokens that were granted.
type usageEvent struct {
	group    string // "" if it concerns none
	endpoint string // of a provider; "" if it concerns none
	model    string // that the endpoint was asked for, if it concerns one; "" if it was asked for none
	requests int64
	charged  int64
	granted  int64
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

// dayUsage is what a tenant's keys have used on one day.
type dayUsage struct {
	total     usageSums // only requests and charged
	granted   int64
	endpoints map[string]*usageSums
	models    map[string]*usageSums
	groups    map[string]*usageSums
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

// usageStats counts what is used. Counting only adds to memory, so that no request waits for it; what was counted is
// written to Redis once a second and at the end. It is for an overview: a crash loses the last second of it. Balances
// do not depend on it.
type usageStats struct {
	store *store

	mu     sync.Mutex // guards counts
	counts map[usageDay]*dayUsage
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
	u.mu.Lock()
	defer u.mu.Unlock()
	u.of(usageDay{t.id, t.generation, time.Now().Unix() / daySeconds}).add(e)
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

func (d *dayUsage) add(e usageEvent) {
	d.granted = addCount(d.granted, e.granted)
	sums := e.sums()
	d.total.add(sums)
	kinds := d.kinds()
	groups, endpoints, models := &kinds[0], &kinds[1], &kinds[2]
	if e.group != "" {
		groups.of(e.group).add(sums)
	}
	if e.endpoint != "" {
		endpoints.of(e.endpoint).add(sums)
		models.of(strings.ToValidUTF8(e.model, "\uFFFD")).add(sums) // else two names might be one in JSON
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

// merge adds the counts of another part of the same day.
func (d *dayUsage) merge(other *dayUsage) {
	d.total.add(other.total)
	d.granted = addCount(d.granted, other.granted)
	others := other.kinds()
	for i, kind := range d.kinds() {
		for name, sums := range *others[i].all {
			kind.of(name).add(*sums)
		}
	}
}

// write writes the counts to Redis. Those that it has certainly not got stay, for the next time.
func (u *usageStats) write() {
	u.mu.Lock()
	counts := u.counts
	u.counts = make(map[usageDay]*dayUsage, len(counts))
	u.mu.Unlock()
	deadline := time.Now().Add(usageTimeout)
	for day, d := range counts {
		if time.Now().Before(deadline) && u.store.AddUsage(deadline, day, d) {
			continue
		}
		u.mu.Lock()
		u.of(day).merge(d)
		u.mu.Unlock()
	}
}

func formatDay(day int64) string { return time.Unix(day*daySeconds, 0).UTC().Format(dayLayout) }

// AddUsage adds counts to those of a tenant's day. ok is false if Redis has certainly not got them. If it may have got
// them, they are not to be added again.
func (s *store) AddUsage(deadline time.Time, day usageDay, d *dayUsage) (ok bool) {
	keys := []string{usageRedisKey(day.tenantID, day.day), generationRedisKey(day.tenantID)}
	args := []any{day.generation, maxUsageFields, maxModelFields, usageTTL.Milliseconds()}
	d.fields(func(field, instead string, sum *int64) {
		if *sum > 0 {
			args = append(args, field, instead, *sum)
		}
	})
	_, err := s.redis.EvalDispensable(deadline, usageScript, keys, args...)
	return err == nil || redisdb.MayHaveRun(err)
}

// fields calls f for each sum, with the field of the hash that it is in, and the one to add it to if there are too
// many.
func (d *dayUsage) fields(f func(field, instead string, sum *int64)) {
	f("requests", "requests", &d.total.requests)
	f("charged", "charged", &d.total.charged)
	f("granted", "granted", &d.granted)
	for _, kind := range d.kinds() {
		for name, sums := range *kind.all {
			for _, one := range sums.all() {
				head := kind.kind + " " + one.name + " "
				f(head+name, head+otherName, one.sum)
			}
		}
	}
}

// Usage returns the counts of a tenant on each of n days from the day first on. It reads usageStep days at a time:
// Redis serves others in between. Error: ErrUnavailable.
func (s *store) Usage(deadline time.Time, t *tenant, first int64, n int) ([]*dayUsage, error) {
	all := make([]string, n)
	for i := range all {
		all[i] = usageRedisKey(t.id, first+int64(i))
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
			if fields["generation"] == t.generation {
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
