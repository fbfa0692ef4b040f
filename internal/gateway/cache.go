package gateway

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"tollgate/internal/fairpool"
)

const (
	maxMediaType      = 256      // bytes of the Content-Type of a response that is cached
	maxCollectedBytes = 64 << 20 // of streams that may be cached when they end
	maxCacheWaits     = 64       // responses that wait to be written
	cacheWriters      = 8        // that are written at a time

	// firstRead is how much of a cached response is read before its fee is charged: its head and, if that is all, its
	// body. A third more responses of 12 KB are served with it than with 4 KiB, and charges beside them wait no longer.
	firstRead = 16 << 10

	cachePatience = 300 * time.Millisecond // for the cache; then a request goes on without
	cacheTimeout  = 2 * time.Second        // for the writing of a response
)

// A Cache keeps responses for all that share it. Keys have 32 bytes, values at most 1 MiB and a few bytes more. Each
// step is given up at its deadline. If Head or Get fails, the value counts as missing. Put and Count may be called
// after the request has ended.
type Cache interface {
	// Head returns the first n bytes of a value, fewer if it is shorter.
	Head(deadline time.Time, key []byte, n int) ([]byte, error)
	// Get returns a value.
	Get(deadline time.Time, key []byte) ([]byte, error)
	// Put keeps a value for ttl, unless there is too little room.
	Put(deadline time.Time, key, value []byte, ttl time.Duration) error
	// Count is told what became of a request or of the response to it.
	Count(result CacheResult)
}

// A CacheResult is what a cache did for a request, or with the response to it.
type CacheResult int

// The results. A request whose response may be cached has one of the first three and, unless it is a hit or fails, one
// of the others.
const (
	CacheHit     CacheResult = iota
	CacheMiss                // nothing was found
	CacheBypass              // the client wants no cached response
	CacheStored              // the response was stored
	CacheSkipped             // it was not
)

// cacheUse is what a request has to do with the cache.
type cacheUse struct {
	key     []byte
	ttl     time.Duration
	bypass  bool // no cached response is wanted
	noStore bool // nor is this one to be cached
}

// replay responds with a cached response to the same request, if there is one, for its fee, and reports whether it has.
// The account need only cover the fee. The response and the account may be kept in different places, so these are
// steps: the head is read, the fee is charged, the rest is read. If the process dies in between, at most the fee is
// lost.
func (x *exchange) replay() (done bool, err error) {
	rules := &x.call.Caching
	request := x.call.Request
	ttl := rules.ttl(request.Format.Kind())
	if ttl == 0 || x.isForOwner() || request.Stream && request.Format.IsTranscript() {
		return false, nil
	}
	x.w.Header()["X-Cache"] = []string{"MISS"}
	x.caching = &cacheUse{key: x.call.cacheKey(x.r), ttl: ttl}
	if x.caching.bypass, x.caching.noStore = cacheDirectives(x.r.Header); x.caching.bypass {
		return false, nil
	}
	value, _ := x.call.Cache.Head(x.cacheDeadline(), x.caching.key, firstRead)
	found, ok := parseCachedResponse(value)
	if !ok || time.Since(found.storedAt) >= ttl {
		return false, nil
	}
	fee := rules.feeFor(found.cost)
	balance, err := x.chargeFee(fee)
	if err != nil {
		return false, err
	}
	if err := TakePlace(x.relay.place); err != nil {
		x.returnFee(fee)
		return false, err
	}
	if !found.isWhole() {
		if x.call.Memory.Add(found.size) == nil {
			value, _ = x.call.Cache.Get(x.cacheDeadline(), x.caching.key)
		}
		if found, ok = parseCachedResponse(value); !ok || !found.isWhole() { // it has just expired, or there is no memory
			x.relay.place.Release()
			x.returnFee(fee)
			return false, nil
		}
	}
	x.call.Cache.Count(CacheHit)
	h := x.w.Header()
	h["X-Cache"] = []string{"HIT"}
	h["Age"] = []string{strconv.FormatInt(int64(max(time.Since(found.storedAt), 0)/time.Second), 10)}
	setBalance(h, balance)
	x.relay.writeCached(found)
	return true, nil
}

// cacheDeadline returns the deadline for one step with the cache, which leaves the request the time to go on without.
func (x *exchange) cacheDeadline() time.Time {
	return time.Now().Add(min(cachePatience, time.Until(x.call.Deadline)/2))
}

// countLookup counts that a request goes on without a cached response.
func (x *exchange) countLookup() {
	switch {
	case x.caching == nil:
	case x.caching.bypass:
		x.call.Cache.Count(CacheBypass)
	default:
		x.call.Cache.Count(CacheMiss)
	}
}

// isCacheable reports whether the response to the request may be cached. One of another endpoint than the first is what
// the request gets only while that is down.
func (x *exchange) isCacheable() bool {
	return x.caching != nil && !x.caching.noStore && x.endpoint == x.call.endpoints[0]
}

// storeStream caches the stream that was relayed, if it was collected.
func (x *exchange) storeStream(response *http.Response) {
	if collected, whole := x.relay.takeCollected(); collected != nil {
		x.store(response, collected.data, whole, collected.release)
	}
}

// storeCompletion caches the response that was relayed, if body is all of it.
func (x *exchange) storeCompletion(response *http.Response, body []byte, isWhole bool) {
	if x.isCacheable() {
		x.store(response, body, isWhole && len(body) <= maxCachedBody, func() {})
	}
}

// store caches a response after the client has got it, if another client may get it, too, and then calls done.
func (x *exchange) store(response *http.Response, body []byte, whole bool, done func()) {
	mediaType, request := response.Header.Get("Content-Type"), x.call.Request
	report := x.relay.outcome().report
	if !whole || x.lowered || response.StatusCode != http.StatusOK || len(mediaType) > maxMediaType ||
		!report.IsReusable(request.N, request.HasLimit) {
		x.call.Cache.Count(CacheSkipped)
		done()
		return
	}
	x.relay.flush()
	o := x.call.Outcome
	x.gateway.cache.write(x.call, x.caching, cachedResponse{
		storedAt: time.Now(), cost: o.cost, input: o.Input, output: o.Output, mediaType: mediaType, body: body,
	}, done)
}

// cacheWriter writes responses to caches in the background.
type cacheWriter struct {
	writers   chan struct{}  // holds one for each that writes: a cache's connections are for others, too
	collected *fairpool.Pool // bytes of streams
	waiting   *fairpool.Pool // responses that are not written yet
	stopped   atomic.Bool
}

func newCacheWriter(tenantShare float64) cacheWriter {
	return cacheWriter{
		writers:   make(chan struct{}, cacheWriters),
		collected: fairpool.New(maxCollectedBytes, tenantShare), waiting: fairpool.New(maxCacheWaits, tenantShare),
	}
}

// write caches the response to a call and then calls done. It never blocks: if too many responses wait, it is not
// cached.
func (c *cacheWriter) write(call *Call, use *cacheUse, r cachedResponse, done func()) {
	cache, turn := call.Cache, c.waiting.Claim(call.Tenant, call.User)
	if turn.Add(1) != nil || c.stopped.Load() {
		turn.Release()
		cache.Count(CacheSkipped)
		done()
		return
	}
	go func() {
		defer turn.Release()
		defer done()
		c.writers <- struct{}{}
		defer func() { <-c.writers }()
		if err := cache.Put(time.Now().Add(cacheTimeout), use.key, r.encode(), use.ttl); err != nil {
			cache.Count(CacheSkipped)
		} else {
			cache.Count(CacheStored)
		}
	}()
}

// stop waits until what was begun is written. Nothing is written any more.
func (c *cacheWriter) stop() {
	c.stopped.Store(true)
	waitUntil(cacheTimeout, func() bool { return c.waiting.Stats().Used == 0 })
}

// A collector collects a stream as its client gets it, up to maxCachedBody. A nil one collects nothing.
type collector struct {
	room    *fairpool.Claim // for its bytes
	data    []byte
	tooLong bool // or there is no memory for it
}

func (c *collector) add(part []byte) {
	if c == nil || c.tooLong || len(part) == 0 {
		return
	}
	if len(c.data)+len(part) > maxCachedBody {
		c.giveUp()
		return
	}
	before := cap(c.data)
	c.data = append(c.data, part...)
	if grown := cap(c.data) - before; grown > 0 && c.room.Add(int64(grown)) != nil {
		c.giveUp()
	}
}

// giveUp ends the collecting and releases what was collected.
func (c *collector) giveUp() {
	c.tooLong = true
	c.release()
}

// release gives back the memory of what was collected.
func (c *collector) release() {
	if c != nil {
		c.room.Release()
		c.data = nil
	}
}
