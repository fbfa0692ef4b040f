package billtest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// A Response is what a provider responds to one request.
type Response struct {
	Format  Format
	Seed    uint64 // that it was made from
	Request string // body
	Choices int64
	Stream  bool     // it is a stream
	Parts   []string // the events as they are sent, or the body
	Media   bool     // the request asks for more than text

	input int64            // that it reports at the end
	read  map[string]event // what the data of events say
}

// New returns the response that a seed stands for.
func New(f Format, seed uint64, stream bool) *Response {
	m := &maker{
		Rand: rand.New(rand.NewPCG(seed, uint64(len(f.Path)))), text: f.text, image: f.image, stream: stream, choices: 1,
	}
	if m.in(3) {
		m.choices = 1 + m.Int64N(3)
	}
	m.input, m.output = oneOf(m, m.upTo(20), m.upTo(3000)), oneOf(m, m.upTo(20), m.upTo(3000))
	m.early = oneOf(m, silent, zeros, zeros, small, growing, falling, swapped, wild)
	m.final = oneOf(m, withStop, afterStop, afterStop, nowhere)
	if m.mute = m.in(4); m.mute {
		m.early = oneOf(m, silent, zeros)
	}
	m.plain = m.in(2)
	m.model = oneOf(m, "", "m", "m-2026-01-31", "dear", "dear-20260131", "cheap", "begins-so", "unlisted")
	r := &Response{Format: f, Seed: seed, Stream: stream, Request: f.request(m), read: make(map[string]event)}
	r.Choices, r.Media, r.input = m.choices, m.media, m.input
	if !stream {
		r.Parts = []string{f.whole(m)}
		return r
	}
	style := m.style()
	for _, data := range f.stream(m) {
		r.Parts = append(r.Parts, m.event(style, data))
	}
	if m.in(6) {
		r.Parts[0] = "\ufeff" + r.Parts[0]
	}
	return r
}

// String says what a test needs to know of a response that it fails with.
func (r *Response) String() string {
	s := fmt.Sprintf("%s, seed %d, stream %v:\nrequest %s\n", r.Format.Name, r.Seed, r.Stream, r.Request)
	for i, part := range r.Parts {
		s += fmt.Sprintf("%d: %q\n", i, part)
	}
	return s
}

// Read reads the first bytes of the response that have come.
func (r *Response) Read(text string) *Reading {
	if r.Stream {
		return r.readEvents(decode(text))
	}
	return r.readEvents([]string{text})
}

// EstimatedInput returns the tokens of the request, if nobody counts them: a quarter of the bytes of what its messages
// say, 4 for each message, and mediaTokens for each image.
func (r *Response) EstimatedInput(mediaTokens int64) (tokens int64) {
	var body map[string]any
	if err := json.Unmarshal([]byte(r.Request), &body); err != nil {
		panic(err)
	}
	bytes := int64(0)
	for _, name := range []string{"input", "instructions"} {
		if said := text(body, name); said != "" {
			tokens += 4
			bytes += int64(len(said))
		}
	}
	for _, message := range slices.Concat(elements(body, "messages"), elements(body, "input")) {
		tokens += 4
		bytes += int64(len(text(message, "content")))
		for _, part := range elements(message, "content") {
			if said := text(part, "text"); said != "" {
				bytes += int64(len(said))
			} else {
				tokens += mediaTokens
			}
		}
	}
	return tokens + (bytes+3)/4
}

// limit returns the limit of a request.
func (m *maker) limit() int64 { return oneOf[int64](m, 40, 400, 4000) }

// messages returns the member of a request that has its messages.
func (m *maker) messages() string { return member("messages", "["+m.turns()+"]") }

// turns returns messages, with commas between them.
func (m *maker) turns() string {
	var all []string
	for range 1 + m.IntN(3) {
		content := m.phrase()
		if m.in(2) {
			parts := []string{m.object(member("type", m.quoted(m.text)), member("text", m.phrase()))}
			if m.in(3) {
				parts = append(parts, m.image)
			}
			content = "[" + strings.Join(parts, ", ") + "]"
		}
		all = append(all, m.object(member("role", `"user"`), member("content", content)))
	}
	return strings.Join(all, ",")
}
