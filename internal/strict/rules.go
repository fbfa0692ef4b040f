package strict

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// MaxInt is the largest whole number that all JSON readers agree on (RFC 8259, section 6).
const MaxInt = 1<<53 - 1

// A Rule reads a value and reports whether it accepts it. If it does not, it adds the reason to wrong. The value is
// valid JSON without white space around it, and shares the document's memory.
type Rule func(wrong *Problems, value []byte) bool

// Rules has the rules of members by their names.
type Rules map[string]Rule

// ReadObject reads the members of an object by the rule for each name. It passes over members whose rule is nil,
// however often they occur; others must not be duplicated. seen has the names of the members that have a rule, and is
// nil if the value is not an object. ok reports whether everything was accepted.
func ReadObject(wrong *Problems, value []byte, rule func(name string) Rule) (seen map[string]bool, ok bool) {
	if value[0] != '{' {
		return nil, wrong.Add("must be an object")
	}
	seen, ok = make(map[string]bool), true
	for spelling, member := range children(value) {
		name, whole := unquote(spelling)
		read := rule(name)
		if read == nil {
			continue
		}
		wrong.path = append(wrong.path, step{name, -1})
		switch {
		case !whole: // different names would become the same
			ok = wrong.Add(loneSurrogate)
		case seen[name]:
			ok = wrong.Add("is duplicated")
		default:
			seen[name] = true
			ok = read(wrong, member) && ok
		}
		wrong.leave()
	}
	return seen, ok
}

// MapOf returns ReadObject as a Rule.
func MapOf(rule func(name string) Rule) Rule {
	return func(wrong *Problems, value []byte) bool {
		_, ok := ReadObject(wrong, value, rule)
		return ok
	}
}

// ArrayOf accepts an array if rule accepts each element.
func ArrayOf(rule Rule) Rule {
	return func(wrong *Problems, value []byte) bool {
		if value[0] != '[' {
			return wrong.Add("must be an array")
		}
		ok, at := true, len(wrong.path)
		wrong.path = append(wrong.path, step{})
		for _, element := range children(value) {
			ok = rule(wrong, element) && ok
			wrong.path[at].index++
		}
		wrong.leave()
		return ok
	}
}

// Lenient accepts any value, and calls note with each reason for which rule does not accept it. What rule has
// read of such a value stays.
func Lenient(rule Rule, note func(sentence string)) Rule {
	return func(wrong *Problems, value []byte) bool {
		ignored := Problems{path: wrong.path}
		if !rule(&ignored, value) {
			for _, sentence := range ignored.Sentences {
				note(sentence)
			}
		}
		return true
	}
}

// Raw accepts any value and keeps its spelling, which shares the document's memory.
func Raw(dst *[]byte) Rule {
	return func(_ *Problems, value []byte) bool {
		*dst = value
		return true
	}
}

// Bool accepts true and false.
func Bool(dst *bool) Rule {
	return func(wrong *Problems, value []byte) bool {
		if value[0] != 't' && value[0] != 'f' {
			return wrong.Add("must be true or false")
		}
		*dst = value[0] == 't'
		return true
	}
}

const loneSurrogate = "must not have half of a surrogate pair"

// String accepts any string but one with half of a surrogate pair, which UTF-8 cannot represent.
func String(dst *string) Rule {
	return func(wrong *Problems, value []byte) bool {
		s, ok := Text(value)
		switch {
		case ok:
			*dst = s
			return true
		case value[0] == '"':
			return wrong.Add(loneSurrogate)
		}
		return wrong.Add("must be a string")
	}
}

// AnyString accepts what String accepts.
func AnyString(wrong *Problems, value []byte) bool { return String(new(string))(wrong, value) }

// Text returns the string that a valid JSON value spells. ok is false, and text empty, if String would refuse the
// value.
func Text(value []byte) (text string, ok bool) {
	if value[0] != '"' {
		return "", false
	}
	if text, ok = unquote(value); !ok {
		return "", false
	}
	return text, true
}

// unquote is AppendUnquoted for strings.
func unquote(spelling []byte) (text string, ok bool) {
	if bytes.IndexByte(spelling, '\\') < 0 {
		return string(spelling[1 : len(spelling)-1]), true
	}
	unquoted, ok := AppendUnquoted(nil, spelling)
	return string(unquoted), ok
}

// Int accepts a whole number from lo to hi, in any spelling that JSON has for it: 100, 100.0 and 1e2 are the same.
// Neither bound may be beyond ±MaxInt.
func Int(dst *int64, lo, hi int64) Rule {
	return func(wrong *Problems, value []byte) bool {
		n, ok := parseWhole(value)
		switch {
		case ok && lo <= n && n <= hi:
			*dst = n
			return true
		case hi < MaxInt || n > hi:
			return wrong.Add(fmt.Sprintf("must be a whole number from %d to %d", lo, hi))
		}
		return wrong.Add(fmt.Sprintf("must be a whole number ≥ %d", lo))
	}
}

// Seconds accepts what Int accepts, and words its refusal for a duration in seconds.
func Seconds(dst *int64, lo, hi int64) Rule {
	return func(wrong *Problems, value []byte) bool {
		n, ok := parseWhole(value)
		if !ok || n < lo || n > hi {
			return wrong.Add(fmt.Sprintf("must be a whole number of seconds from %d to %d", lo, hi))
		}
		*dst = n
		return true
	}
}

// Number accepts a number from lo to hi, after it is rounded to the nearest float64.
func Number(dst *float64, lo, hi float64) Rule {
	return func(wrong *Problems, value []byte) bool {
		f, err := strconv.ParseFloat(string(value), 64)
		if err != nil || f < lo || f > hi {
			return wrong.Add(fmt.Sprintf("must be a number from %v to %v", lo, hi))
		}
		*dst = f
		return true
	}
}

// AnyNumber accepts any number, even one that no float64 can hold.
func AnyNumber(wrong *Problems, value []byte) bool {
	return IsNumber(value) || wrong.Add("must be a number")
}

// IsNumber reports whether value, which may be any text, is a JSON number.
func IsNumber(value []byte) bool {
	s := Scanner{Data: value}
	return s.number() && s.At == len(value)
}

// parseWhole returns the whole number that value, which may be any text, spells as a JSON number. It never rounds; for
// a number beyond the int64 it returns the nearest int64. ok is false if value is anything else.
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
	significant += strings.Repeat("0", int(min(zeros, 20)))
	n, _ = strconv.ParseInt(significant, 10, 64) // the nearest int64 if it is beyond
	return n, true
}
