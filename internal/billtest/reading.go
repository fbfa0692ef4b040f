package billtest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// What is counted, named like its price in a config. Input and output are totals of which the other tokens are parts.
const (
	input            = "input"
	cachedInput      = "cached_input"
	cacheWrite       = "cache_write"
	cacheWrite1h     = "cache_write_1h"
	audioInput       = "audio_input"
	cachedAudioInput = "cached_audio_input"
	imageInput       = "image_input"
	output           = "output"
	audioOutput      = "audio_output"
	imageOutput      = "image_output"
	search           = "search"
	request          = "request"

	both = "both" // input and output together, of which neither is known
)

var (
	inputKinds  = []string{cachedInput, cacheWrite, cacheWrite1h, audioInput, cachedAudioInput, imageInput}
	outputKinds = []string{audioOutput, imageOutput}
)

// Counts are counts by kind. A kind that was not counted is absent.
type Counts map[string]int64

// Of returns what another model has used beside that of the response.
type Of struct {
	Model string
	Counts
}

// A usage is one report of what was used.
type usage struct {
	counts Counts
	parts  Counts // that they were added up from, if the format has such
	others []Of
}

// total is what two usages are compared by.
func (u usage) total() int64 {
	sum := u.counts[input] + u.counts[output] + u.counts[both]
	for _, other := range u.others {
		sum += other.Counts[input] + other.Counts[output]
	}
	return sum
}

// An event is what the data of an event says, or a whole response.
type event struct {
	usages    []usage // in their order
	content   int64   // bytes
	hidden    bool    // some of what was generated cannot be seen, or is not text
	hasChoice bool
	stopped   []int64 // the choices that have ended
	unread    int64   // bytes, if it is not JSON
	done      bool    // it is the end marker
	failed    bool    // it is an error
	model     string

	tools        Counts // that tools have used beside the usage
	repeats      int64  // bytes of content, which may include that of earlier events
	searches     int64  // of the response
	begins, ends bool   // a search
}

// has reports whether the input or the output is counted, alone or together with the other.
func (u usage) has(side string) bool {
	_, alone := u.counts[side]
	_, together := u.counts[both]
	return alone || together
}

// counts reports whether a usage of the event has the input or the output.
func (e event) counts(side string) bool {
	return slices.ContainsFunc(e.usages, func(u usage) bool { return u.has(side) })
}

// A Reading is what a response says, as far as it has come.
type Reading struct {
	Done, Failed bool
	Finished     bool // all choices have ended
	Hidden       bool
	Empty        bool // it has no choice, no content and no tokens
	ContentBytes int64
	Events       int64 // with content
	Model        string
	Half         int64 // bytes of an event that has not come whole: what it says is not read

	FinalTokens int64 // of the usage that came last, if that was with or after the end

	searches, begun, ended int64
	tools                  Counts

	used        usage
	inputFinal  bool // the input tokens are no placeholder
	outputFinal bool // the output tokens are all
}

// readEvents reads the data of the events that have come, one after the other. The last can be half of one.
func (r *Response) readEvents(data []string) *Reading {
	reading := &Reading{}
	var events []event
	stopped := make(map[int64]bool)
	for _, text := range data {
		e := r.event(text)
		events = append(events, e)
		reading.add(e)
		for _, choice := range e.stopped {
			stopped[choice] = true
		}
		for _, u := range e.usages {
			reading.used = r.Format.larger(reading.used, u)
		}
	}
	reading.Finished = int64(len(stopped)) >= r.Choices
	hasChoice := slices.ContainsFunc(events, func(e event) bool { return e.hasChoice })
	all := usage{reading.used.counts, nil, append(slices.Clone(reading.used.others), Of{"", reading.tools})}
	reading.Empty = !hasChoice && reading.ContentBytes == 0 && all.total() == 0
	if !r.Stream || reading.hasEnded() {
		reading.findFinal(events)
	}
	return reading
}

// hasEnded reports whether no other usage will come in a stream. Some providers send an output of 0 with the last stop
// reason, and the usage after it.
func (r *Reading) hasEnded() bool {
	isPlaceholder := r.ContentBytes > 0 && r.used.counts[output]+r.used.counts[both] == 0
	return r.Done || (r.Finished || r.Failed) && !isPlaceholder
}

// findFinal finds out which counts came with or after the end of a response.
func (r *Reading) findFinal(events []event) {
	end := max(0, last(events, func(e event) bool { return e.content > 0 || len(e.stopped) > 0 || e.failed }))
	isFinal := func(side string) bool {
		return r.used.has(side) && last(events, func(e event) bool { return e.counts(side) }) >= end
	}
	r.inputFinal, r.outputFinal = isFinal(input), isFinal(output)
	if i := last(events, func(e event) bool { return len(e.usages) > 0 }); i >= end {
		usages := events[i].usages
		r.FinalTokens = usages[len(usages)-1].total()
	}
}

// last returns the index of the last event for which is reports true, or -1.
func last(events []event, is func(event) bool) int {
	for i := len(events) - 1; i >= 0; i-- {
		if is(events[i]) {
			return i
		}
	}
	return -1
}

// event returns what the data of an event says.
func (r *Response) event(data string) event {
	e, ok := r.read[data]
	if !ok {
		e = r.Format.readEvent(data)
		r.read[data] = e
	}
	return e
}

// add adds what an event says, but for its usage and its ends.
func (r *Reading) add(e event) {
	r.Done = r.Done || e.done
	r.Failed = r.Failed || e.failed
	r.Hidden = r.Hidden || e.hidden
	r.ContentBytes += e.content
	r.Half += e.unread
	if e.content > 0 {
		r.Events++
	}
	if e.repeats > r.ContentBytes {
		r.ContentBytes = e.repeats
		r.Events++
	}
	if e.begins {
		r.begun++
	}
	if e.ends {
		r.ended++
	}
	if e.tools[input]+e.tools[output] > 0 {
		r.tools = e.tools
	}
	r.searches = max(r.searches, e.searches, r.begun, r.ended)
	if e.model != "" {
		r.Model = e.model
	}
}

// Exact reports whether the usage is known and final.
func (r *Reading) Exact() bool {
	return r.outputFinal && (r.inputFinal || r.countsInput())
}

// countsInput reports whether the input was counted: 0 can be a placeholder.
func (r *Reading) countsInput() bool { return r.used.counts[input] > 0 }

// reported returns what the provider has reported: of the response's own model, and of others. If it tells input and
// output only together, the input is as estimated.
func (r *Reading) reported(estimatedInput int64) (counts Counts, others []Of) {
	counts = make(Counts)
	maps.Copy(counts, r.used.counts)
	if n, ok := counts[both]; ok {
		delete(counts, both)
		counts[input] = min(n, estimatedInput)
		counts[output] = n - counts[input]
	}
	if r.searches > counts[search] {
		counts[search] = r.searches
	}
	return counts, append(slices.Clone(r.used.others), Of{"", r.tools})
}

// Used returns what was used. What is not known of it is estimated.
func (r *Reading) Used(estimatedInput int64) (counts Counts, others []Of) {
	counts, all := r.reported(estimatedInput)
	if !r.inputFinal && !r.countsInput() {
		counts[input] = max(counts[input], estimatedInput)
	}
	if !r.outputFinal {
		counts[output] = max(counts[output], r.Events, (r.ContentBytes+2)/3)
	}
	return counts.with(all)
}

// with adds what others have used that are no other model, and adds up what each of the others has used.
func (c Counts) with(all []Of) (counts Counts, others []Of) {
	for _, other := range all {
		i := slices.IndexFunc(others, func(o Of) bool { return o.Model == other.Model })
		switch {
		case other.Model == "":
			c.add(other.Counts)
		case i >= 0:
			others[i].add(other.Counts)
		default:
			others = append(others, Of{other.Model, make(Counts)})
			others[len(others)-1].add(other.Counts)
		}
	}
	c.add(nil)
	return c, others
}

// add adds what d has, and takes out what is 0.
func (c Counts) add(d Counts) {
	for kind, n := range d {
		c[kind] += n
	}
	maps.DeleteFunc(c, func(_ string, n int64) bool { return n == 0 })
}

// readEvent reads the data of an event.
func (f Format) readEvent(data string) event {
	if data == "[DONE]" {
		return event{done: true}
	}
	decoder := json.NewDecoder(strings.NewReader(data))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return event{unread: int64(len(data))}
	}
	return f.read(object)
}
