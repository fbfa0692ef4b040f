package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

const maxJSONDepth = 500 // arrays and objects inside each other

// A jsonVisitor is shown the values of a JSON document, each after those inside it.
type jsonVisitor interface {
	// enters reports whether the values inside the one at path are to be shown.
	enters(path []byte) bool

	// visit takes the value at path, which starts at byte from of the document, and reports whether to go on. A path is
	// like messages[].content[].type. In names that have one, "." and "[" are replaced by NUL. The path is valid only
	// during the call.
	visit(path, value []byte, from int) bool
}

// A jsonWalker reads JSON documents (RFC 8259) strictly, in one pass and, from the second document on, without
// allocating.
type jsonWalker struct {
	data    []byte
	at      int
	path    []byte
	hidden  bool // what is being read is not to be shown
	visitor jsonVisitor
}

// walk shows data to v. An error says that data is not valid JSON, or nested too deep, or that v did not want to go on.
// Some of data has been shown then.
func (w *jsonWalker) walk(data []byte, v jsonVisitor) error {
	*w = jsonWalker{data: data, path: w.path[:0], visitor: v}
	if !w.value(0) || w.peek() != 0 || w.at < len(data) {
		return fmt.Errorf("not valid JSON at byte %d", w.at+1)
	}
	return nil
}

// peek moves to the next byte that is not white space and returns it, or 0 at the end.
func (w *jsonWalker) peek() byte {
	for ; w.at < len(w.data); w.at++ {
		switch c := w.data[w.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// value reads a value and reports whether it is valid, as the following methods do.
func (w *jsonWalker) value(depth int) (ok bool) {
	c := w.peek()
	from := w.at
	switch {
	case depth == maxJSONDepth:
	case c == '{':
		ok = w.container('}', depth+1)
	case c == '[':
		ok = w.container(']', depth+1)
	case c == '"':
		ok = w.string()
	default:
		ok = w.scalar()
	}
	if ok && !w.hidden {
		ok = w.visitor.visit(w.path, w.data[from:w.at], from)
	}
	return ok
}

// container reads an array or object that ends with end.
func (w *jsonWalker) container(end byte, depth int) bool {
	w.at++
	if w.peek() == end {
		w.at++
		return true
	}
	outer, wasHidden := len(w.path), w.hidden
	w.hidden = wasHidden || !w.visitor.enters(w.path)
	for {
		if end == '}' && !w.name() {
			return false
		} else if end == ']' && !w.hidden {
			w.path = append(w.path, "[]"...)
		}
		if !w.value(depth) {
			return false
		}
		w.path = w.path[:outer]
		switch c := w.peek(); c {
		case ',':
			w.at++
		case end:
			w.at++
			w.hidden = wasHidden
			return true
		default:
			return false
		}
	}
}

// name reads a member's name, which it appends to the path, and the colon.
func (w *jsonWalker) name() bool {
	if w.peek() != '"' {
		return false
	}
	from := w.at
	if !w.string() {
		return false
	}
	name := w.data[from:w.at]
	if w.peek() != ':' {
		return false
	}
	w.at++
	if w.hidden {
		return true
	}
	if len(w.path) > 0 {
		w.path = append(w.path, '.')
	}
	for _, c := range unquoted(name) {
		if c == '.' || c == '[' {
			c = 0
		}
		w.path = append(w.path, c)
	}
	if len(w.path) == 0 { // "" at the top: else the members of its value would look like top-level ones
		w.path = append(w.path, 0)
	}
	return true
}

// isPlain has the bytes that stand for themselves in a string. Whether they are UTF-8 is not checked.
var isPlain = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return set
}()

func (w *jsonWalker) string() bool {
	data := w.data
	for at := w.at + 1; at < len(data); at++ {
		if isPlain[data[at]] {
			continue
		}
		w.at = at
		switch data[at] {
		case '"':
			w.at++
			return true
		case '\\':
			if !w.escape() {
				return false
			}
			at = w.at
		default: // a control character
			return false
		}
	}
	w.at = len(data)
	return false
}

// escape moves to the last byte of an escape.
func (w *jsonWalker) escape() bool {
	if w.at++; w.at == len(w.data) {
		return false
	}
	if w.data[w.at] != 'u' {
		return bytes.IndexByte([]byte(`"\/bfnrt`), w.data[w.at]) >= 0
	}
	if len(w.data)-w.at <= 4 {
		return false
	}
	_, err := strconv.ParseUint(string(w.data[w.at+1:w.at+5]), 16, 16)
	w.at += 4
	return err == nil
}

// scalar reads a number, true, false or null.
func (w *jsonWalker) scalar() bool {
	for _, word := range []string{"null", "true", "false"} {
		if bytes.HasPrefix(w.data[w.at:], []byte(word)) {
			w.at += len(word)
			return true
		}
	}
	w.accept("-")
	ok := w.accept("0") || w.digits()
	if ok && w.accept(".") {
		ok = w.digits()
	}
	if ok && w.accept("eE") {
		w.accept("+-")
		ok = w.digits()
	}
	return ok
}

func (w *jsonWalker) digits() bool {
	const digits = "0123456789"
	ok := w.accept(digits)
	for w.accept(digits) {
	}
	return ok
}

// accept moves over the next byte if it is one of set.
func (w *jsonWalker) accept(set string) bool {
	ok := w.at < len(w.data) && strings.IndexByte(set, w.data[w.at]) >= 0
	if ok {
		w.at++
	}
	return ok
}

// unquoted returns what a valid JSON string spells, and other values as they are.
func unquoted(value []byte) []byte {
	if value[0] != '"' {
		return value
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return value[1 : len(value)-1]
	}
	var s string
	_ = json.Unmarshal(value, &s) // value is valid
	return []byte(s)
}

// shorten returns name for use in a sentence.
func shorten(name string) string {
	if len(name) > 64 {
		return strings.ToValidUTF8(name[:64], "") + "…"
	}
	return name
}
