package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	maxBodyBytes   = 1 << 20
	smallBodyBytes = 4 << 10 // as much is reserved before it has come
	slotWait       = 40 * time.Millisecond
	maxAmount      = 1<<53 - 1 // the largest whole number that JSON's readers agree on (RFC 8259, section 6)
)

// writeJSON answers with v as one compact object and a newline. Nothing is written if v cannot be encoded.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return writeBody(w, status, body.Bytes())
}

// Values of headers that all answers have. Nobody changes them.
var (
	contentType  = []string{"application/json; charset=utf-8"}
	cacheControl = []string{"no-store"} // answers carry keys, balances and configs (RFC 6749, section 5.1)
)

// writeBody answers with body, which is compact JSON and a newline. It returns nil, for the sake of handlers.
func writeBody(w http.ResponseWriter, status int, body []byte) error {
	h := w.Header()
	h["Content-Type"] = contentType
	h["Cache-Control"] = cacheControl
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone away is no error of ours
	return nil
}

const errBrokenBody = badRequest("Body could not be read to its end")

// readBody returns the request's body. Where that has more than smallBodyBytes it takes one of slots, if there are any,
// until the request is answered. Errors: errBodyTooLarge beyond maxBodyBytes, badRequest when it breaks off, ErrUnavailable
// where no slot is free for slotWait.
func readBody(w http.ResponseWriter, r *http.Request, slots chan struct{}) ([]byte, error) {
	if 0 <= r.ContentLength && r.ContentLength <= smallBodyBytes {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, errBrokenBody
		}
		return body, nil
	}
	var body bytes.Buffer
	rest := http.MaxBytesReader(w, r.Body, maxBodyBytes)
	_, err := io.CopyN(&body, rest, smallBodyBytes+1)
	if err == nil {
		if slots != nil {
			select {
			case slots <- struct{}{}:
				w.(*answer).slots = slots
			case <-time.After(slotWait):
				return nil, fmt.Errorf("%w for so long a body: others are held", ErrUnavailable)
			}
		}
		_, err = body.ReadFrom(rest)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errBodyTooLarge
	}
	if err != nil && err != io.EOF {
		return nil, errBrokenBody
	}
	return body.Bytes(), nil
}

// readJSON reads body into what the known fields point to. It is stricter than encoding/json, which takes repeated members,
// TOKENS for tokens, null for 0, broken UTF-8 and halves of surrogate pairs: here body must be one object of exactly
// the known fields, each at most once, the required ones present. Anything else is a badRequest that says what and where.
func readJSON(body []byte, known fields, required ...string) error {
	if err := checkJSON(body); err != nil {
		return badRequest("Invalid JSON: " + err.Error())
	}
	if body[firstByte(body)] != '{' {
		return badRequest("Body must be a JSON object")
	}
	var wrong problems
	seen := readObject(&wrong, "", body, func(name string) field {
		if f, ok := known[name]; ok {
			return f
		}
		return func(wrong *problems, path string, _ []byte) { wrong.add(path, "is not a known member") }
	})
	for _, name := range required {
		if !seen[name] {
			wrong.add(name, "is missing")
		}
	}
	if len(wrong) > 0 {
		return badRequest(wrong[0])
	}
	return nil
}

// checkJSON reports why data is not exactly one JSON value in valid UTF-8 (RFC 8259, section 8.1).
func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		at := 0
		for at < len(data) {
			r, size := utf8.DecodeRune(data[at:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			at += size
		}
		return fmt.Errorf("no valid UTF-8 at byte %d", at+1)
	}
	if json.Valid(data) {
		return nil
	}
	var discard json.RawMessage
	err := json.Unmarshal(data, &discard)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("%s at byte %d", syntax, syntax.Offset)
	}
	return err
}

// A field takes in one JSON value, which is valid JSON and stands at path, or says what is wrong with it.
type field func(wrong *problems, path string, value []byte)

type fields map[string]field

// problems lists what is wrong with a document, in its order, as sentences that begin with a member's path.
type problems []string

func (p *problems) add(path, rule string) { *p = append(*p, path+" "+rule) }

// wholeNumber is written in plain digits, without fraction or exponent: 1.0 and 1e3 are refused.
func wholeNumber(dst *int64, min, max int64) field {
	return func(wrong *problems, path string, value []byte) {
		n, err := strconv.ParseInt(string(value), 10, 64)
		switch {
		case err == nil && min <= n && n <= max && strconv.FormatInt(n, 10) == string(value): // no +1, -0, 007
			*dst = n
		case max < maxAmount || n > max: // n is the largest int64 where value is beyond it
			wrong.add(path, fmt.Sprintf("must be a whole number from %d to %d", min, max))
		default:
			wrong.add(path, fmt.Sprintf("must be a whole number ≥ %d", min))
		}
	}
}

// text is any string but one with half of a surrogate pair, which no UTF-8 can hold.
func text(dst *string) field {
	return func(wrong *problems, path string, value []byte) {
		s, err := unquote(value)
		if err != nil {
			wrong.add(path, err.Error())
			return
		}
		*dst = s
	}
}

// rawJSON is any value, as it is spelled.
func rawJSON(dst *[]byte) field {
	return func(_ *problems, _ string, value []byte) { *dst = value }
}

func boolean(wrong *problems, path string, value []byte) {
	if value[0] != 't' && value[0] != 'f' {
		wrong.add(path, "must be true or false")
	}
}

func number(min, max float64) field {
	return func(wrong *problems, path string, value []byte) {
		if f, err := strconv.ParseFloat(string(value), 64); err != nil || f < min || f > max {
			wrong.add(path, fmt.Sprintf("must be a number from %v to %v", min, max))
		}
	}
}

func anyNumber(wrong *problems, path string, value []byte) {
	if value[0] != '-' && (value[0] < '0' || value[0] > '9') {
		wrong.add(path, "must be a number")
	}
}

func absoluteURL(wrong *problems, path string, value []byte) {
	s, err := unquote(value)
	if err == nil {
		var u *url.URL
		if u, err = url.Parse(s); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" {
			return
		}
	}
	wrong.add(path, "must be an absolute http or https URL")
}

// object has the known members, each at most once; whatever else it has is left as it is.
func object(known fields) field {
	return func(wrong *problems, path string, value []byte) { readMembers(wrong, path, value, known) }
}

// each is an object whose every member is as the field that member returns for its name.
func each(member func(name string) field) field {
	return func(wrong *problems, path string, value []byte) { readObject(wrong, path, value, member) }
}

// readMembers reads the known members of the object at path, passes over the others, and says which it read.
func readMembers(wrong *problems, path string, value []byte, known fields) map[string]bool {
	return readObject(wrong, path, value, func(name string) field { return known[name] })
}

// readObject reads the value at path, which must be an object, with the fields that member returns for its members'
// names, and says which names it read. Members for which it returns nil are passed over; the others may not be repeated.
func readObject(wrong *problems, path string, value []byte, member func(name string) field) map[string]bool {
	seen := make(map[string]bool)
	if value[firstByte(value)] != '{' {
		wrong.add(path, "must be an object")
		return seen
	}
	eachMember(value, func(name string, broken error, value []byte) {
		read := member(name)
		if read == nil {
			return
		}
		path := memberPath(path, name)
		if broken != nil { // two such names may look the same
			wrong.add(path, broken.Error())
			return
		}
		if seen[name] {
			wrong.add(path, "is there twice")
			return
		}
		seen[name] = true
		read(wrong, path, value)
	})
	return seen
}

// memberPath is path.name, or path["name"] where name is not plain. A name of any length does not make a long path.
func memberPath(path, name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return path + "[" + strconv.Quote(name) + "]"
		}
	}
	if name == "" {
		return path + `[""]`
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// eachMember calls f with the name and the value, as it is spelled, of each member of object in order; broken is an error
// where unquote finds fault with the name. object must be one valid JSON object, as checkJSON has found it.
func eachMember(object []byte, f func(name string, broken error, value []byte)) {
	at := firstByte(object) + 1 // behind {
	for {
		at += firstByte(object[at:])
		if object[at] == '}' {
			return
		}
		end := at + valueLength(object[at:])
		name, broken := unquote(object[at:end])
		at = end + firstByte(object[end:]) + 1 // behind :
		at += firstByte(object[at:])
		end = at + valueLength(object[at:])
		f(name, broken, object[at:end])
		at = end + firstByte(object[end:])
		if object[at] == ',' {
			at++
		}
	}
}

// firstByte is the index of the first byte that is no white space (RFC 8259, section 2).
func firstByte(data []byte) int {
	for i, c := range data {
		if c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return i
		}
	}
	return len(data)
}

// valueLength is the length of the JSON value that valid starts with.
func valueLength(valid []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(valid); i++ {
		switch c := valid[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			if inString = !inString; !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case (c == '}' || c == ']') && depth > 0:
			if depth--; depth == 0 {
				return i + 1
			}
		case depth == 0 && bytes.IndexByte([]byte(",]} \t\n\r"), c) >= 0: // behind a number, true, false or null
			return i
		}
	}
	return len(valid)
}

// unquote is the string that a valid JSON value spells. On an error it still gives the nearest string there is.
func unquote(value []byte) (string, error) {
	if value[0] != '"' {
		return "", errors.New("must be a string")
	}
	inner := value[1 : len(value)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), nil
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return "", errors.New("must be a string")
	}
	if hasLoneSurrogate(inner) {
		return s, errors.New("must not have half of a surrogate pair")
	}
	return s, nil
}

// hasLoneSurrogate tells whether a valid JSON string's inside escapes half of a surrogate pair, which encoding/json
// turns into U+FFFD without a word.
func hasLoneSurrogate(inner []byte) bool {
	escaped := func(at int) rune {
		if at+6 > len(inner) || inner[at] != '\\' || inner[at+1] != 'u' {
			return -1
		}
		n, _ := strconv.ParseUint(string(inner[at+2:at+6]), 16, 16)
		return rune(n)
	}
	for i := 0; i < len(inner); i++ {
		if inner[i] != '\\' {
			continue
		}
		if r := escaped(i); utf16.IsSurrogate(r) {
			if utf16.DecodeRune(r, escaped(i+6)) == utf8.RuneError {
				return true
			}
			i += 6
		}
		i++
	}
	return false
}
