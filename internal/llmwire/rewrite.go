package llmwire

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// limitMembers are the top-level members that limit the output.
var limitMembers = []string{"max_tokens", "max_completion_tokens", "max_output_tokens"}

// Changes are what is changed in a request's body before it is forwarded.
type Changes struct {
	Model string // that is asked for; "" leaves the request's own

	// LimitMember is the member in which the provider expects the limit of output tokens: Limit or, if that is 0, the
	// request's own. Another limit is taken out. "" leaves all.
	LimitMember string
	Limit       int64

	DropTools          bool   // takes out the tools that the provider runs; Request.CanDropTools must be true
	LeaveStreamOptions bool   // does not ask for the usage of a stream
	NoStore            bool   // asks the provider to keep nothing of a response that is stored otherwise
	SafetyID           string // by which the provider can tell users apart; "" leaves the request's own
}

// Rewrite returns the body to forward, in pieces that share the memory of the body that was read. If the format reports
// the usage of a stream only on request, a stream asks for it. Everything else that c does not name stays byte for byte
// as it came.
func (r *Request) Rewrite(c Changes) [][]byte {
	w := rewriter{r: r}
	if r.fields != nil {
		w.changeForm(c)
	} else {
		w.change(c)
	}
	return w.pieces()
}

// A rewriter collects what is changed in a request's body.
type rewriter struct {
	r       *Request
	edits   []edit
	added   []string // top-level members that the body does not have
	removed []span   // top-level members
}

// change makes all changes of a JSON object.
func (w *rewriter) change(c Changes) {
	r := w.r
	if c.Model != "" && c.Model != r.Model {
		w.set(memberName{"", "model"}, jsonString(c.Model))
	}
	if limit := cmp.Or(c.Limit, r.Limit); c.LimitMember != "" && (c.Limit > 0 || r.HasLimit) {
		w.setLimit(c.LimitMember, strconv.FormatInt(limit, 10))
	}
	if c.DropTools {
		w.dropTools()
	}
	if c.NoStore && r.Stored {
		w.set(memberName{"", "store"}, "false")
	}
	if id := formats[r.Format].safetyID; c.SafetyID != "" && id.name != "" {
		w.set(id, jsonString(c.SafetyID))
	}
	if formats[r.Format].usageOption && r.Stream && !r.IncludeUsage && !c.LeaveStreamOptions {
		w.set(memberName{"stream_options", "include_usage"}, "true")
	}
}

// An edit puts text in the place of a span.
type edit struct {
	span
	text string
}

// set sets a member to a value. The object that it is in may be absent or no object.
func (w *rewriter) set(m memberName, value string) {
	if at, exists := w.r.at[m]; exists {
		w.edits = append(w.edits, edit{at, value})
		return
	}
	member := jsonString(m.name) + ":" + value
	if m.object == "" {
		w.added = append(w.added, member)
		return
	}
	at, exists := w.r.at[memberName{"", m.object}]
	if !exists || w.r.body[at.from] != '{' {
		w.set(memberName{"", m.object}, "{"+member+"}")
		return
	}
	isEmpty := bytes.TrimLeft(w.r.body[at.from+1:], " \t\r\n")[0] == '}'
	w.prepend(at.from, member, isEmpty)
}

// prepend puts members before those of the object that starts at brace.
func (w *rewriter) prepend(brace int, members string, isEmpty bool) {
	if !isEmpty {
		members += ","
	}
	w.edits = append(w.edits, edit{span{brace + 1, brace + 1}, members})
}

// setLimit writes the limit into the member of that name, and leaves no other limit.
func (w *rewriter) setLimit(name, limit string) {
	written := false
	if at, exists := w.r.at[memberName{"", name}]; exists {
		written = true
		if string(w.r.body[at.from:at.to]) != limit {
			w.set(memberName{"", name}, limit)
		}
	}
	for _, other := range limitMembers {
		at, exists := w.r.at[memberName{"", other}]
		if other == name || !exists || w.r.body[at.from] == 'n' {
			continue
		}
		if written {
			w.remove(other)
		} else {
			w.edits = append(w.edits, edit{w.r.memberSpan(at), jsonString(name) + ":" + limit})
			written = true
		}
	}
	if !written {
		w.set(memberName{"", name}, limit)
	}
}

// dropTools takes out the tools that the provider runs. Without any tools a provider refuses what says how they are
// used.
func (w *rewriter) dropTools() {
	server := w.r.tools.server
	if len(server) == w.r.tools.count {
		for _, name := range []string{"tools", "tool_choice", "parallel_tool_calls"} {
			w.remove(name)
		}
		return
	}
	var spans []span
	for _, t := range server {
		spans = append(spans, t.at)
	}
	w.edits = append(w.edits, w.r.removals(spans)...)
}

// remove takes out a top-level member, if the body has it.
func (w *rewriter) remove(name string) {
	if at, exists := w.r.at[memberName{"", name}]; exists {
		w.removed = append(w.removed, w.r.memberSpan(at))
	}
}

// memberSpan returns where a member stands whose value stands at value. Its name must have no quotes.
func (r *Request) memberSpan(value span) span {
	end := bytes.LastIndexByte(r.body[:value.from], '"')
	return span{bytes.LastIndexByte(r.body[:end], '"'), value.to}
}

// removals returns the edits that take out members of an object, or elements of an array, with their commas.
func (r *Request) removals(spans []span) (edits []edit) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i := 0; i < len(spans); {
		run := spans[i]
		for i++; i < len(spans) && isSeparator(r.body[run.to:spans[i].from]); i++ {
			run.to = spans[i].to
		}
		after, before := bytes.TrimLeft(r.body[run.to:], " \t\r\n"), bytes.TrimRight(r.body[:run.from], " \t\r\n")
		if after[0] == ',' {
			run.to = len(r.body) - len(after) + 1
		} else if before[len(before)-1] == ',' {
			run.from = len(before) - 1
		}
		edits = append(edits, edit{run, ""})
	}
	return edits
}

// isSeparator reports whether text is a comma among white space.
func isSeparator(text []byte) bool { return string(bytes.Trim(text, " \t\r\n")) == "," }

// pieces returns the body with all changes.
func (w *rewriter) pieces() [][]byte {
	r := w.r
	w.edits = append(w.edits, r.removals(w.removed)...)
	if len(w.added) > 0 {
		w.prepend(bytes.IndexByte(r.body, '{'), strings.Join(w.added, ","), r.members == len(w.removed))
	}
	slices.SortFunc(w.edits, func(a, b edit) int { // what is put before something comes before it
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	pieces, from := make([][]byte, 0, 2*len(w.edits)+1), 0
	for _, e := range w.edits {
		pieces = append(pieces, r.body[from:e.from], []byte(e.text))
		from = e.to
	}
	return append(pieces, r.body[from:])
}
