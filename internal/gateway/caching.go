package gateway

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"math/bits"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const (
	maxCachedBody   = 1 << 20                 // bytes of a response
	maxCacheSeconds = 10 * 365 * 24 * 60 * 60 // for which a response may be served
	wholeFee        = 100_000_000             // is all of what a response has cost
)

// Caching says which responses are cached, and what a cached one costs. The zero value caches nothing.
type Caching struct {
	enabled  bool
	textTTL  int64 // seconds for which text and embeddings are served; 0: they are not cached
	soundTTL int64 // the same of transcripts
	fee      int64 // for a response, as a part of what that has cost: wholeFee is all of it
}

// Rules returns the rules that read the members of caching.
func (c *Caching) Rules() strict.Rules {
	return strict.Rules{
		"enabled":           strict.Bool(&c.enabled),
		"text_ttl":          strict.Int(&c.textTTL, 0, strict.MaxInt),
		"transcription_ttl": strict.Int(&c.soundTTL, 0, strict.MaxInt),
		"fee_percentage":    c.readFee,
	}
}

// readFee is the rule for fee_percentage. A fee is rounded to a millionth of a percent, but is never 0 unless it is
// spelled so.
func (c *Caching) readFee(wrong *strict.Problems, value []byte) bool {
	var percent float64
	if !strict.Number(&percent, 0, 100)(wrong, value) {
		return false
	}
	c.fee = int64(math.Round(percent * (wholeFee / 100)))
	if c.fee == 0 && percent > 0 {
		c.fee = 1
	}
	return true
}

// feeFor returns the tokens to charge for a cached response that has cost that many, rounded up.
func (c *Caching) feeFor(cost int64) int64 {
	high, low := bits.Mul64(uint64(cost), uint64(c.fee))
	return divideUp(high, low, wholeFee)
}

// ttl returns for how long a response of that kind is served from the cache; 0 is not at all.
func (c *Caching) ttl(kind llmwire.Kind) time.Duration {
	seconds := int64(0)
	switch {
	case !c.enabled:
	case kind == llmwire.Text, kind == llmwire.Embeddings:
		seconds = c.textTTL
	case kind == llmwire.Transcription:
		seconds = c.soundTTL
	}
	return time.Duration(min(seconds, maxCacheSeconds)) * time.Second
}

// IsIdle reports whether nothing is cached although caching is enabled.
func (c *Caching) IsIdle() bool { return c.enabled && c.textTTL == 0 && c.soundTTL == 0 }

// cachedResponse is an endpoint's response as its first client got it.
type cachedResponse struct {
	storedAt      time.Time
	cost          int64 // tokens of the account, by its usage and the price
	input, output int64 // tokens of the model
	size          int64 // bytes of body, when all of it was read
	mediaType     string
	body          []byte
}

func (r *cachedResponse) isWhole() bool { return int64(len(r.body)) == r.size }

// A value in a Cache is a line, with the version of its form and the numbers and the media type of the response, and
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
		if err != nil || n < 0 || n > strict.MaxInt {
			return r, false
		}
		*dst = n
	}
	r.storedAt, r.mediaType, r.body = time.UnixMilli(storedAt), fields[6], body
	return r, int64(len(body)) <= r.size && r.size <= maxCachedBody
}

// cacheDirectives returns what the client wants of the cache: noLookup for a response that is new, noStore for one that
// is not kept either (RFC 9111, section 5.2.1). Of max-age only 0 counts, which browsers send when they reload.
func cacheDirectives(h http.Header) (noLookup, noStore bool) {
	for _, line := range h["Cache-Control"] {
		for directive := range strings.SplitSeq(line, ",") {
			name, argument, _ := strings.Cut(directive, "=")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "no-cache":
				noLookup = true
			case "no-store":
				noStore = true
			case "max-age":
				seconds, err := strconv.ParseUint(strings.Trim(argument, "\" \t"), 10, 64)
				noLookup = noLookup || seconds == 0 && err == nil
			}
		}
	}
	return noLookup || noStore, noStore
}

// keyedHeaders are those of a request to a provider that its response may depend on: all but the credential, which is
// the endpoint's, and what differs from one request to the next without a meaning for the model.
var keyedHeaders = []string{
	"Content-Type", "Accept", "User-Agent", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta", "Originator", loopHeader,
}

// cacheKey returns the SHA-256 of everything that the response to c may depend on: the generation, where the request
// goes and for which model, the header that is forwarded, and the query and the body as they came. The body that is
// forwarded would not do, since its limit may depend on a balance. Of a form only the fields count: its boundary, which
// the type of the body has, too, is another each time.
func (c *Call) cacheKey(r *http.Request) []byte {
	e := c.endpoints[0]
	parts := appendParts(make([]byte, 0, 512),
		c.Generation, e.Name, e.rawURL, strconv.Itoa(int(e.format)), c.model, r.URL.RawQuery)
	header, isForm := c.providerHeader(e, r.Header), e.format.TakesForm()
	if isForm {
		delete(header, "Content-Type")
	}
	for _, name := range keyedHeaders {
		parts = appendParts(parts, strconv.Itoa(len(header[name])))
		parts = appendParts(parts, header[name]...)
	}
	sum := sha256.New()
	sum.Write(parts)
	if !isForm {
		sum.Write(c.Body)
	}
	for _, part := range c.Request.Fields() {
		sum.Write(strconv.AppendInt(nil, int64(len(part)), 10))
		sum.Write([]byte(":"))
		sum.Write(part)
	}
	return sum.Sum(nil)
}

// appendParts appends parts, each with its length, so that no two lists of parts are the same bytes.
func appendParts(to []byte, parts ...string) []byte {
	for _, part := range parts {
		to = strconv.AppendInt(to, int64(len(part)), 10)
		to = append(to, ':')
		to = append(to, part...)
	}
	return to
}
