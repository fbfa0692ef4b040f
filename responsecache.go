package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tollgate/internal/redisdb"

	"github.com/gomodule/redigo/redis"
)

const (
	maxCachedBody = 1 << 20  // bytes of a response
	maxMediaType  = 256      // bytes of its Content-Type
	maxKeptBytes  = 64 << 20 // of streams that may be cached when they end
	maxCacheWaits = 64       // responses that wait to be written
	cacheWriters  = 8        // that are written at a time

	// firstRead is how much of a cached response is read before its fee is charged: its head and, if that is all, its
	// body.
	firstRead = 4 << 10

	cachePatience = 300 * time.Millisecond // for the cache; then a request goes on without
	cacheTimeout  = 2 * time.Second        // for the writing of a response
	fullLogPause  = 10 * time.Minute       // between two lines in the log
)

// cachedResponse is a response of a provider as its first client got it.
type cachedResponse struct {
	storedAt      time.Time
	cost          int64 // tokens of the balance, by its usage and the price
	input, output int64 // tokens of the model
	size          int64 // bytes of body, when all of it was read
	mediaType     string
	body          []byte
}

func (r *cachedResponse) isWhole() bool { return int64(len(r.body)) == r.size }

// The value in Redis is a line, with the version of its form and the numbers and the media type of the response, and
// the body.
const cachedHead = "1 %d %d %d %d %d %s\n"

func (r *cachedResponse) encode() []byte {
	head := fmt.Appendf(nil, cachedHead, r.storedAt.UnixMilli(), r.cost, r.input, r.output, len(r.body), r.mediaType)
	return append(head, r.body...)
}

// parseCachedResponse parses a value, of which the end of the body may be missing. ok is false if it is malformed.
func parseCachedResponse(value []byte) (r cachedResponse, ok bool) {
	head, body, found := bytes.Cut(value, []byte("\n"))
	fields := strings.SplitN(string(head), " ", 7)
	if !found || len(fields) != 7 || fields[0] != "1" {
		return r, false
	}
	var storedAt int64
	for i, dst := range []*int64{&storedAt, &r.cost, &r.input, &r.output, &r.size} {
		n, err := strconv.ParseInt(fields[i+1], 10, 64)
		if err != nil || n < 0 || n > maxAmount {
			return r, false
		}
		*dst = n
	}
	r.storedAt, r.mediaType, r.body = time.UnixMilli(storedAt), fields[6], body
	return r, int64(len(body)) <= r.size && r.size <= maxCachedBody
}

// FindResponse returns the head of a cached response and, if it is short, its body. ok is false if it is missing or
// cannot be read.
func (s *store) FindResponse(deadline time.Time, redisKey string) (r cachedResponse, ok bool) {
	value, err := redis.Bytes(s.redis.ReadDispensable(deadline, "GETRANGE", redisKey, 0, firstRead-1))
	if err != nil {
		return r, false
	}
	return parseCachedResponse(value)
}

// Response returns a cached response as a whole. ok is false if it is missing or cannot be read.
func (s *store) Response(deadline time.Time, redisKey string) (r cachedResponse, ok bool) {
	value, err := redis.Bytes(s.redis.ReadDispensable(deadline, "GET", redisKey))
	if err != nil {
		return r, false
	}
	r, ok = parseCachedResponse(value)
	return r, ok && r.isWhole()
}

// StoreResponse caches a response for ttl, if Redis has memory to spare. Errors: redisdb.ErrFull if it has not;
// ErrUnavailable.
func (s *store) StoreResponse(deadline time.Time, redisKey string, r cachedResponse, ttl time.Duration) error {
	value := r.encode()
	return s.redis.WriteIfRoom(deadline, len(value), "SET", redisKey, value, "EX", int64(ttl/time.Second))
}

// responseCache writes responses to the cache in the background.
type responseCache struct {
	*server
	writers  chan struct{} // holds one for each that writes: the pool's connections are for others, too
	kept     atomic.Int64  // bytes of streams
	waiting  atomic.Int64  // responses that are not written yet
	stopped  atomic.Bool
	loggedAt atomic.Int64 // when the log last said that Redis is short of memory, in Unix nanoseconds
}

func newResponseCache(s *server) *responseCache {
	return &responseCache{server: s, writers: make(chan struct{}, cacheWriters)}
}

// write caches a response of a tenant and then calls done. It never blocks: if too many responses wait, it is not
// cached.
func (c *responseCache) write(tenantID, redisKey string, r cachedResponse, ttl time.Duration, done func()) {
	if c.waiting.Add(1) > maxCacheWaits || c.stopped.Load() {
		c.waiting.Add(-1)
		c.metrics.cacheUsed(tenantID, cacheSkipped)
		done()
		return
	}
	go func() {
		defer c.waiting.Add(-1)
		defer done()
		c.writers <- struct{}{}
		defer func() { <-c.writers }()
		err := c.store.StoreResponse(time.Now().Add(cacheTimeout), redisKey, r, ttl)
		if err == nil {
			c.metrics.cacheUsed(tenantID, cacheStored)
			return
		}
		c.metrics.cacheUsed(tenantID, cacheSkipped)
		if errors.Is(err, redisdb.ErrFull) {
			c.logFull()
		}
	}()
}

// logFull logs that responses are not cached, but not each time.
func (c *responseCache) logFull() {
	last, now := c.loggedAt.Load(), time.Now().UnixNano()
	if now-last > int64(fullLogPause) && c.loggedAt.CompareAndSwap(last, now) {
		c.log.Warnf("Redis uses more than three quarters of its memory: responses are not cached")
	}
}

// stop waits until what was begun is written. Nothing is written any more.
func (c *responseCache) stop() {
	c.stopped.Store(true)
	for end := time.Now().Add(cacheTimeout); c.waiting.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// cacheDirectives returns what the client wants of the cache: noLookup for a response that is new, noStore for one that
// is not kept either (RFC 9111, section 5.2.1).
func cacheDirectives(h http.Header) (noLookup, noStore bool) {
	for _, line := range h["Cache-Control"] {
		for directive := range strings.SplitSeq(line, ",") {
			switch strings.ToLower(strings.TrimSpace(directive)) {
			case "no-cache":
				noLookup = true
			case "no-store":
				noStore = true
			}
		}
	}
	return noLookup || noStore, noStore
}

// requestSum returns the SHA-256 of all that a response may depend on: the tenant's generation, where the request
// goes and for which model, the versions of the API that its header names, and its query and body as they came. The
// body that is forwarded would not do, since its limit may depend on a balance.
func requestSum(t *tenant, e *endpoint, model string, r *http.Request, body []byte) []byte {
	sum := sha256.New()
	addPart(sum, t.generation, e.name, e.rawURL, strconv.Itoa(int(e.format)), model, r.URL.RawQuery)
	for _, name := range []string{"Anthropic-Version", "Anthropic-Beta", "Openai-Beta"} {
		addPart(sum, strconv.Itoa(len(r.Header[name])))
		addPart(sum, r.Header[name]...)
	}
	sum.Write(body)
	return sum.Sum(nil)
}

// addPart adds parts, each with its length, so that no two lists of parts are the same bytes.
func addPart(sum hash.Hash, parts ...string) {
	for _, part := range parts {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
}

// keptStream collects a stream as its client gets it, up to maxCachedBody. A nil one collects nothing.
type keptStream struct {
	cache *responseCache
	data  []byte
	over  bool // it is too long, or there is no memory for it
}

func (k *keptStream) add(part []byte) {
	if k == nil || k.over || len(part) == 0 {
		return
	}
	if len(k.data)+len(part) > maxCachedBody {
		k.drop()
		return
	}
	before := cap(k.data)
	k.data = append(k.data, part...)
	if grown := cap(k.data) - before; grown > 0 && k.cache.kept.Add(int64(grown)) > maxKeptBytes {
		k.drop()
	}
}

func (k *keptStream) drop() {
	k.over = true
	k.release()
}

// release gives back the memory of what was collected.
func (k *keptStream) release() {
	if k != nil {
		k.cache.kept.Add(-int64(cap(k.data)))
		k.data = nil
	}
}
