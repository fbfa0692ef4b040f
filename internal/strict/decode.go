package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxInt is the largest whole number that all JSON readers agree on (RFC 8259, section 6).
const MaxInt = 1<<53 - 1

// MaxProblems is how many faults of a document a response lists.
const MaxProblems = 100

// Problems lists what is wrong with a document, in its order, as sentences that begin with a member's path. Beyond
// MaxProblems they are empty, and only their number counts: a document can have a great many that all have a long path.
type Problems []string

func (p *Problems) Add(path, rule string) {
	sentence := ""
	if !p.isFull() {
		sentence = path + " " + rule
	}
	*p = append(*p, sentence)
}

func (p *Problems) isFull() bool { return len(*p) >= MaxProblems }

// A Error says why a document was refused, in at least one sentence. It quotes names of members, never values.
type Error struct{ Problems Problems }

func (e *Error) Error() string { return e.Problems[0] }

// A Rule reads the value of the member at path, or adds to wrong why the value is refused. The value is valid JSON
// without white space around it.
type Rule func(wrong *Problems, path string, value []byte)

// Rules has the rule of each known member by its name.
type Rules map[string]Rule

// Decode reads body by rules. The body must be one JSON object with all members in required, with no member that
// is not in rules, and with none that is duplicated. encoding/json alone would accept duplicated members, TOKENS for
// tokens, null for 0, invalid UTF-8 and lone surrogates. The error is a *Error.
func Decode(body []byte, rules Rules, required ...string) error {
	start := SkipSpace(body)
	if err := Check(body); err != nil {
		if _, ok := errors.AsType[*json.SyntaxError](err); ok && len(start) > 0 && start[0] != '{' && start[0] != '[' {
			err = errors.New("the body does not start with {") // encoding/json would explain form data as a misspelt literal
		}
		return &Error{Problems{"Invalid JSON: " + err.Error()}}
	}
	if start[0] != '{' {
		return &Error{Problems{"Body must be a JSON object"}}
	}
	var wrong Problems
	seen := ReadObject(&wrong, "", start, func(name string) Rule {
		if rule, ok := rules[name]; ok {
			return rule
		}
		return func(wrong *Problems, path string, _ []byte) { wrong.Add(path, "is not a known member") }
	})
	for _, name := range required {
		if !seen[name] {
			wrong.Add(name, "is missing")
		}
	}
	if len(wrong) > 0 {
		return &Error{wrong}
	}
	return nil
}

// DecodeOpen reads data as Decode does, but accepts members that are not in rules, once each.
func DecodeOpen(data []byte, rules Rules, required ...string) error {
	if err := Check(data); err != nil {
		return err
	}
	var wrong Problems
	seen := ReadObject(&wrong, "", SkipSpace(data), func(name string) Rule {
		if rule, ok := rules[name]; ok {
			return rule
		}
		return func(*Problems, string, []byte) {}
	})
	for _, name := range required {
		if !seen[name] {
			wrong.Add(name, "is missing")
		}
	}
	if len(wrong) > 0 {
		return &Error{wrong}
	}
	return nil
}

// byteOrderMarks start files that some editors save as UTF-8, UTF-16 or UTF-32. JSON has none (RFC 8259, section 8.1).
var byteOrderMarks = []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff", "\x00\x00\xfe\xff"}

// Check reports why data is not exactly one JSON value in valid UTF-8.
func Check(data []byte) error {
	if slices.ContainsFunc(byteOrderMarks, func(mark string) bool { return bytes.HasPrefix(data, []byte(mark)) }) {
		return errors.New("it starts with a byte order mark")
	}
	if !utf8.Valid(data) {
		valid := bytes.ToValidUTF8(data, nil)
		at := 0
		for at < len(valid) && data[at] == valid[at] {
			at++
		}
		return fmt.Errorf("no valid UTF-8 at byte %d", at+1)
	}
	if json.Valid(data) {
		return nil
	}
	var discard json.RawMessage
	err := json.Unmarshal(data, &discard)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("%w at byte %d", syntax, syntax.Offset)
	}
	return err
}

// Int accepts a whole number from lo to hi, in any spelling that JSON has for it: 100, 100.0 and 1e2 are the same.
func Int(dst *int64, lo, hi int64) Rule {
	return func(wrong *Problems, path string, value []byte) {
		n, ok := parseWhole(value)
		switch {
		case ok && lo <= n && n <= hi:
			*dst = n
		case hi < MaxInt || n > hi:
			wrong.Add(path, fmt.Sprintf("must be a whole number from %d to %d", lo, hi))
		default:
			wrong.Add(path, fmt.Sprintf("must be a whole number ≥ %d", lo))
		}
	}
}

// Seconds returns the rule for a duration in seconds.
func Seconds(dst *int64, lo, hi int64) Rule {
	return func(wrong *Problems, path string, value []byte) {
		var outside Problems
		if Int(dst, lo, hi)(&outside, path, value); len(outside) > 0 {
			wrong.Add(path, fmt.Sprintf("must be a whole number of seconds from %d to %d", lo, hi))
		}
	}
}

// parseWhole returns the whole number that value spells as a JSON number, without rounding; beyond the int64 it is the
// nearest int64. ok is false if value is anything else.
func parseWhole(value []byte) (n int64, ok bool) {
	if !IsNumber(value) {
		return 0, false
	}
	mantissa, exponent, _ := strings.Cut(strings.ToLower(string(value)), "e")
	whole, fraction, _ := strings.Cut(strings.TrimPrefix(mantissa, "-"), ".")
	digits := whole + fraction
	significant := strings.TrimRight(digits, "0")
	zeros, _ := strconv.ParseInt(exponent, 10, 32) // the nearest int32 if it is beyond; 0 without exponent
	zeros += int64(len(digits) - len(significant) - len(fraction))
	significant = strings.TrimLeft(significant, "0")
	if significant == "" {
		return 0, true
	}
	if zeros < 0 {
		return 0, false
	}
	if mantissa[0] == '-' {
		significant = "-" + significant
	}
	n, _ = strconv.ParseInt(significant+strings.Repeat("0", int(min(zeros, 20))), 10, 64) // the nearest int64 likewise
	return n, true
}

// IsNumber reports whether value is a JSON number. It may be any text, such as that of a query parameter.
func IsNumber(value []byte) bool {
	digit := func(c byte) bool { return '0' <= c && c <= '9' }
	return len(value) > 0 && (value[0] == '-' || digit(value[0])) && digit(value[len(value)-1]) && json.Valid(value)
}

func Number(lo, hi float64) Rule {
	return func(wrong *Problems, path string, value []byte) {
		if f, err := strconv.ParseFloat(string(value), 64); err != nil || f < lo || f > hi {
			wrong.Add(path, fmt.Sprintf("must be a number from %v to %v", lo, hi))
		}
	}
}

const loneSurrogate = "must not have half of a surrogate pair"

// String accepts any string without a lone surrogate, which UTF-8 cannot represent.
func String(dst *string) Rule {
	return func(wrong *Problems, path string, value []byte) {
		var s string
		switch {
		case value[0] != '"' || json.Unmarshal(value, &s) != nil:
			wrong.Add(path, "must be a string")
		case hasLoneSurrogate(value):
			wrong.Add(path, loneSurrogate)
		default:
			*dst = s
		}
	}
}

// Raw accepts any value and keeps its spelling.
func Raw(dst *[]byte) Rule {
	return func(_ *Problems, _ string, value []byte) { *dst = value }
}

func Bool(dst *bool) Rule {
	return func(wrong *Problems, path string, value []byte) {
		if value[0] != 't' && value[0] != 'f' {
			wrong.Add(path, "must be true or false")
			return
		}
		*dst = value[0] == 't'
	}
}

func AnyString(wrong *Problems, path string, value []byte) {
	String(new(string))(wrong, path, value)
}

func AnyInt(wrong *Problems, path string, value []byte) {
	Int(new(int64), 0, MaxInt)(wrong, path, value)
}

func AnyNumber(wrong *Problems, path string, value []byte) {
	if !IsNumber(value) {
		wrong.Add(path, "must be a number")
	}
}

func AbsoluteURL(wrong *Problems, path string, value []byte) {
	var s string // stays empty if value is not a string
	String(&s)(new(Problems), path, value)
	if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		wrong.Add(path, "must be an absolute http or https URL")
	}
}

// objectOf accepts an object whose members keep rules. It passes over members that are not in rules.
func objectOf(rules Rules) Rule {
	return func(wrong *Problems, path string, value []byte) { readMembers(wrong, path, value, rules) }
}

// MapOf accepts an object each of whose members keeps the rule for its name.
func MapOf(rule func(name string) Rule) Rule {
	return func(wrong *Problems, path string, value []byte) { ReadObject(wrong, path, value, rule) }
}

// readMembers does what objectOf does, and returns the names of the members that it read.
func readMembers(wrong *Problems, path string, value []byte, rules Rules) map[string]bool {
	return ReadObject(wrong, path, value, func(name string) Rule { return rules[name] })
}

// ReadObject reads the members of the value at path, which must be an object, by the rule for each name, and returns
// the names that it read. It passes over those that have no rule.
func ReadObject(wrong *Problems, path string, value []byte, rule func(name string) Rule) map[string]bool {
	seen := make(map[string]bool)
	members := json.NewDecoder(bytes.NewReader(value))
	if start, err := members.Token(); err != nil || start != json.Delim('{') {
		wrong.Add(path, "must be an object")
		return seen
	}
	for members.More() {
		before := members.InputOffset()
		token, _ := members.Token() // value is valid, so there are no errors
		name, _ := token.(string)
		spelling := value[before:members.InputOffset()]
		var member json.RawMessage
		if err := members.Decode(&member); err != nil {
			break
		}
		read := rule(name)
		if read == nil {
			continue
		}
		path := path
		if !wrong.isFull() { // else no sentence needs it
			path = Path(path, name)
		}
		switch {
		case hasLoneSurrogate(spelling): // different names would become the same
			wrong.Add(path, loneSurrogate)
		case seen[name]:
			wrong.Add(path, "is duplicated")
		default:
			seen[name] = true
			read(wrong, path, member)
		}
	}
	return seen
}

// ReadElements reads the elements of the value at path, which must be an array, by rule.
func ReadElements(wrong *Problems, path string, value []byte, rule Rule) {
	elements := json.NewDecoder(bytes.NewReader(value))
	if start, err := elements.Token(); err != nil || start != json.Delim('[') {
		wrong.Add(path, "must be an array")
		return
	}
	for i := 0; elements.More(); i++ {
		var element json.RawMessage
		if err := elements.Decode(&element); err != nil { // value is valid, so there are no errors
			return
		}
		path := path
		if !wrong.isFull() { // else no sentence needs it
			path = fmt.Sprintf("%s[%d]", path, i)
		}
		rule(wrong, path, element)
	}
}

// Path returns path.name, or path["name"] if name has other bytes than IsWord. A long name is cut.
func Path(path, name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	plain := name != ""
	for _, c := range []byte(name) {
		plain = plain && IsWord(c)
	}
	switch {
	case !plain:
		return path + "[" + strconv.Quote(name) + "]"
	case path == "":
		return name
	}
	return path + "." + name
}

// IsWord reports whether c is one of A-Z a-z 0-9 _ -.
func IsWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// SkipSpace returns data from its first byte on that is not white space (RFC 8259, section 2).
func SkipSpace(data []byte) []byte { return bytes.TrimLeft(data, " \t\n\r") }

// hasLoneSurrogate reports whether a valid JSON string's spelling escapes half of a surrogate pair, which encoding/json
// silently replaces by U+FFFD.
func hasLoneSurrogate(spelling []byte) bool {
	for {
		start := bytes.IndexByte(spelling, '\\')
		if start < 0 {
			return false
		}
		spelling = spelling[start:]
		size := len(`\n`)
		if r := escapedUnit(spelling); utf16.IsSurrogate(r) {
			size = len(`\ud83d\ude00`)
			if utf16.DecodeRune(r, escapedUnit(spelling[size/2:])) == utf8.RuneError {
				return true
			}
		}
		spelling = spelling[size:]
	}
}

// escapedUnit returns the UTF-16 code unit of the \u escape that spelling starts with, or -1 if it starts with none.
func escapedUnit(spelling []byte) rune {
	if !bytes.HasPrefix(spelling, []byte(`\u`)) {
		return -1
	}
	unit, _ := strconv.ParseUint(string(spelling[2:6]), 16, 16)
	return rune(unit)
}

// Shorten returns name for use in a sentence.
func Shorten(name string) string {
	if len(name) > 64 {
		return strings.ToValidUTF8(name[:64], "") + "…"
	}
	return name
}
