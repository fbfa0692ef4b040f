package billtest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"unicode/utf8"
)

// A maker makes one response at random. Nothing of it is in a particular order unless a provider has to keep it.
type maker struct {
	*rand.Rand
	text    string // type of a part of a message in a request
	image   string // such a part
	choices int64
	stream  bool
	input   int64 // tokens that the response has used
	output  int64
	early   pattern // of the usage before the end
	final   placing // of the usage at the end
	model   string  // that the response names; "" if it names none
	plain   bool    // all that is generated can be seen
	mute    bool    // a stream has no content
	media   bool    // the request asks for more than text
}

// A pattern says what a stream reports before its end.
type pattern int

const (
	silent  pattern = iota // nothing
	zeros                  // placeholders
	small                  // the input, and a token of output
	growing                // the output so far
	falling                // more output than there is in the end
	swapped                // as many tokens as in the end, but output for input
	wild                   // anything
)

// A placing says where the usage at the end of a stream stands.
type placing int

const (
	withStop  placing = iota // in the event with the last reason to stop
	afterStop                // in an event of its own
	nowhere
)

// oneOf returns one of the given values.
func oneOf[T any](m *maker, values ...T) T { return values[m.IntN(len(values))] }

// in reports true once in n times.
func (m *maker) in(n int) bool { return m.IntN(n) == 0 }

// upTo returns a number from 0 to n.
func (m *maker) upTo(n int64) int64 { return m.Int64N(n + 1) }

// counts returns what event i of n reports before the end of a stream, and false if it reports nothing.
func (m *maker) counts(i, n int) (input, output int64, ok bool) {
	switch m.early {
	case zeros:
		return 0, 0, true
	case small:
		return m.input, 1, m.in(2)
	case growing:
		return m.input, m.output * int64(i) / int64(n), true
	case falling:
		return m.input, m.output + int64(n-i), true
	case swapped:
		return m.output, m.input, i == 0
	case wild:
		return m.upTo(2 * m.input), m.upTo(2 * m.output), m.in(2)
	}
	return 0, 0, false
}

// pieces returns how many pieces of content a stream has.
func (m *maker) pieces() int {
	if m.mute {
		return 0
	}
	return 1 + m.IntN(4)
}

// object returns the JSON of an object with the given members, of which those that are "" are left out.
func (m *maker) object(members ...string) string {
	m.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	var kept []string
	for _, member := range members {
		if member != "" {
			kept = append(kept, member)
		}
	}
	return "{" + strings.Join(kept, oneOf(m, ",", ", ")) + "}"
}

// member returns a member of an object.
func member(name, value string) string { return fmt.Sprintf("%q:%s", name, value) }

// maybe returns a member of an object, or now and then "".
func (m *maker) maybe(name, value string) string {
	if m.in(3) {
		return ""
	}
	return member(name, value)
}

// number returns the spelling of a count that is n.
func (m *maker) number(n int64) string {
	switch {
	case m.in(8):
		return fmt.Sprintf("%d.0", n)
	case n > 0 && m.in(8):
		return fmt.Sprintf("%d.%d", n-1, 1+m.IntN(9)) // rounded up
	case m.in(8):
		return fmt.Sprintf("%q", fmt.Sprint(n))
	case n > 0 && m.in(8):
		return fmt.Sprintf("%d0e-1", n)
	}
	return fmt.Sprint(n)
}

// noNumber returns a JSON value that must not be taken for a count.
func (m *maker) noNumber() string { return oneOf(m, "null", "-7", `"7 or so"`, "true", `"-7"`, "[7]") }

// count returns a member that counts n.
func (m *maker) count(name string, n int64) string { return member(name, m.number(n)) }

// phrases are what models say.
var phrases = []string{
	"Good morning", " all,\n", " the answer is ", "42.", " func main() { fmt.Println(\"x\\n\") }", "\tif err != nil {",
	"早上好", "こんにちは世界", "ünd", " 😀", "a", strings.Repeat("word ", 12),
}

// phrase returns the JSON string of something that a model says.
func (m *maker) phrase() string { return m.quoted(oneOf(m, phrases...)) }

// quoted returns s as a JSON string, with or without escapes that are not needed.
func (m *maker) quoted(s string) string {
	ascii := m.in(4)
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteString(`\` + string(c))
		case c == '\n':
			b.WriteString(oneOf(m, `\n`, `\u000a`))
		case c == '\t':
			b.WriteString(`\t`)
		case ascii && c >= 0x10000:
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(c-0x10000)>>10, 0xdc00+(c-0x10000)&0x3ff)
		case ascii && c >= utf8.RuneSelf:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return `"` + b.String() + `"`
}

// A style is how a provider spells a stream.
type style struct {
	lineEnd string
	space   string // after "data:"
	names   bool   // events have names
	pauses  bool   // there are comments
	lines   bool   // data may have several lines
}

func (m *maker) style() style {
	return style{
		oneOf(m, "\n", "\n", "\r\n", "\r"), oneOf(m, " ", ""), m.in(2), m.in(3), m.in(4),
	}
}

// event returns an event as it is sent.
func (m *maker) event(s style, data string) string {
	var lines []string
	if s.pauses && m.in(4) {
		lines = append(lines, ": a comment", "")
	}
	if s.names {
		lines = append(lines, oneOf(m, "event: x", "event:x", "id: 7", "retry: 5"))
	}
	for _, line := range m.split(s, data) {
		lines = append(lines, "data:"+s.space+line)
	}
	return strings.Join(append(lines, "", ""), s.lineEnd)
}

// split splits the JSON of an object behind one of its commas, now and then.
func (m *maker) split(s style, data string) []string {
	if s.lines && m.in(2) {
		inString, escaped := false, false
		for i, c := range data {
			switch {
			case escaped:
				escaped = false
			case c == '\\':
				escaped = true
			case c == '"':
				inString = !inString
			case c == ',' && !inString && m.in(3):
				return []string{data[:i+1], data[i+1:]}
			}
		}
	}
	return []string{data}
}

// decode returns the data of the events in a stream, which may break off anywhere (https://html.spec.whatwg.org,
// "server-sent events").
func decode(stream string) (data []string) {
	stream = strings.TrimPrefix(stream, "\ufeff")
	stream = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(stream)
	for event := range strings.SplitSeq(stream, "\n\n") {
		var lines []string
		for line := range strings.SplitSeq(event, "\n") {
			if value, ok := strings.CutPrefix(line, "data:"); ok {
				lines = append(lines, strings.TrimPrefix(value, " "))
			}
		}
		if text := strings.Join(lines, "\n"); strings.TrimSpace(text) != "" {
			data = append(data, text)
		}
	}
	return data
}
