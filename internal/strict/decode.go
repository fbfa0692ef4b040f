// Package strict reads JSON documents by rules and puts into words what is wrong with them. It refuses what
// encoding/json accepts in silence: duplicated members, TOKENS for tokens, null for 0, invalid UTF-8 and half of a
// surrogate pair.
//
// Decode reads an object by a Rule for each member. Rules for objects and arrays are made from the rules for the values
// in them. Below them, a Scanner splits JSON into values. Nearest finds the name that a misspelled one stands for.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// An Error says why a document was refused.
type Error struct {
	Problems Problems // at least one
}

// Error returns the first problem's sentence.
func (e *Error) Error() string { return e.Problems.Sentences[0] }

// Decode reads body, one JSON object, by rules. Members that are not in rules and duplicated members are refused, and
// the members in required must exist. The error is an *Error.
func Decode(body []byte, rules Rules, required ...string) error {
	return decode(body, rules, required, func(wrong *Problems, _ []byte) bool {
		return wrong.Add("is not a known member")
	})
}

// DecodeOpen is like Decode, but accepts members that are not in rules, unless they are duplicated.
func DecodeOpen(body []byte, rules Rules, required ...string) error {
	return decode(body, rules, required, func(*Problems, []byte) bool { return true })
}

// decode reads body by rules, and the members that are not in rules by other.
func decode(body []byte, rules Rules, required []string, other Rule) error {
	var wrong Problems
	start := SkipSpace(body)
	if err := Check(body); err != nil {
		if _, ok := errors.AsType[*json.SyntaxError](err); ok && len(start) > 0 && start[0] != '{' && start[0] != '[' {
			err = errors.New("the body does not start with {") // encoding/json would explain form data as a misspelt literal
		}
		wrong.Add("Invalid JSON: " + err.Error())
		return &Error{wrong}
	}
	if start[0] != '{' {
		wrong.Add("Body must be a JSON object")
		return &Error{wrong}
	}
	seen, ok := ReadObject(&wrong, start, func(name string) Rule {
		if rule, ok := rules[name]; ok {
			return rule
		}
		return other
	})
	if !wrong.Require(seen, required...) || !ok {
		return &Error{wrong}
	}
	return nil
}

// SkipSpace returns data from its first byte on that is not white space (RFC 8259, section 2).
func SkipSpace(data []byte) []byte { return bytes.TrimLeft(data, " \t\n\r") }

// byteOrderMarks start files that some editors save as UTF-8, UTF-16 or UTF-32. JSON has none (RFC 8259, section 8.1).
var byteOrderMarks = []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff", "\x00\x00\xfe\xff"}

// Check returns an error, worded for a client, unless data is exactly one JSON value in valid UTF-8, nested at most
// 10,000 deep.
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
