package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const maxJSONDepth = 500 // arrays and objects inside each other

// A jsonTable has the functions that read a JSON document into a T, by the path of the value that they read. The path
// of the document itself is "", that of its member a is "a", that of each element of a is "a[]", and that of the member
// b of such an element is "a[].b".
type jsonTable[T any] map[string]jsonRow[T]

// A jsonRow has the functions for the values at a path. Each may be nil.
type jsonRow[T any] struct {
	enter func(to *T)              // called before the value is read
	read  func(to *T, v jsonValue) // called with the value after everything inside it was read

	// each is called for each member of an object, whether or not the table has the member, before the member's read.
	each func(to *T, object *jsonShape[T], name []byte, v jsonValue)

	// same, unless it is "", is the path whose rows also read the value at this path and everything inside it. With a path
	// inside itself, it describes a tree of any depth.
	same string
}

// A jsonValue is a value in a document.
type jsonValue struct {
	path string // in the table; "" if the table does not have it
	text []byte // as it is spelled, without white space around it; shares the document's memory
	from int    // where text starts in the document
}

// isNull reports whether the value is null, which counts as absent.
func (v jsonValue) isNull() bool { return v.text[0] == 'n' }

// under returns t for values at parent instead of documents.
func (t jsonTable[T]) under(parent string) jsonTable[T] {
	below := make(jsonTable[T], len(t))
	for path, row := range t {
		if row.same != "" {
			row.same = parent + "." + row.same
		}
		below[parent+"."+path] = row
	}
	return below
}

// joined returns a table with the rows of all tables.
func joined[T any](tables ...jsonTable[T]) jsonTable[T] {
	rows := make(jsonTable[T])
	for _, table := range tables {
		maps.Copy(rows, table)
	}
	return rows
}

// A jsonShape has what a table says of the value at a path, and the shapes of the values inside it, so that no path has
// to be built while a document is read. The shape of a value that is not to be read is nil.
type jsonShape[T any] struct {
	jsonRow[T]
	path     string
	members  map[string]*jsonShape[T]
	elements *jsonShape[T]
}

// newJSONShape returns the shape of a document that is read by the rows of all tables.
func newJSONShape[T any](tables ...jsonTable[T]) *jsonShape[T] {
	rows := joined(tables...)
	shapes := make(map[string]*jsonShape[T])
	var at func(path string) *jsonShape[T]
	at = func(path string) *jsonShape[T] {
		row := rows[path]
		if row.same != "" {
			return at(row.same)
		}
		if shapes[path] == nil {
			shapes[path] = &jsonShape[T]{jsonRow: row, path: path, members: make(map[string]*jsonShape[T])}
		}
		return shapes[path]
	}
	for path := range rows {
		for path != "" {
			parent, isElement := strings.CutSuffix(path, "[]")
			if isElement {
				at(parent).elements = at(path)
			} else {
				dot := strings.LastIndexByte(path, '.')
				parent = path[:max(dot, 0)]
				at(parent).members[path[dot+1:]] = at(path)
			}
			path = parent
		}
	}
	return at("")
}

// A jsonWalker reads JSON documents (RFC 8259) strictly, in one pass, and allocates nothing but room for the longest
// name with escapes. What a value costs depends on its own name and text only, not on where it is or what was before
// it.
type jsonWalker[T any] struct {
	jsonScanner
	to      *T
	stopped bool
	name    []byte // what the last name with escapes spells
}

// walk reads data into to by the functions of shape. An error means that data is not valid JSON, or nested deeper than
// maxJSONDepth, or that stop was called. A part of data has been read then.
func (w *jsonWalker[T]) walk(data []byte, shape *jsonShape[T], to *T) error {
	*w = jsonWalker[T]{jsonScanner: jsonScanner{data: data}, to: to, name: w.name}
	if !w.value(shape, nil, nil, 0) || w.peek() != 0 || w.at < len(data) {
		return fmt.Errorf("not valid JSON at byte %d", w.at+1)
	}
	return nil
}

// stop ends the walk when the function that calls it has returned.
func (w *jsonWalker[T]) stop() { w.stopped = true }

// value reads the next value and reports whether the walk goes on: the value is valid, and stop was not called. If the
// value is a member of an object whose shape has each, object is that shape and name the member's name.
func (w *jsonWalker[T]) value(shape, object *jsonShape[T], name []byte, depth int) (ok bool) {
	c := w.peek()
	from := w.at
	if shape != nil && shape.enter != nil {
		shape.enter(w.to)
	}
	switch {
	case depth == maxJSONDepth:
	case c == '{' || c == '[':
		ok = w.container(shape, c+2, depth+1) // in ASCII, { and [ are two before } and ]
	case c == '"':
		ok = w.string()
	default:
		ok = w.scalar()
	}
	if !ok {
		return false
	}
	v := jsonValue{text: w.data[from:w.at], from: from}
	if shape != nil {
		v.path = shape.path
	}
	if object != nil {
		object.each(w.to, object, w.unescaped(name), v)
	}
	if shape != nil && shape.read != nil {
		shape.read(w.to, v)
	}
	return !w.stopped
}

// container reads an array or object, which ends with end, and reports whether the walk goes on.
func (w *jsonWalker[T]) container(shape *jsonShape[T], end byte, depth int) bool {
	w.at++
	if w.peek() == end {
		w.at++
		return true
	}
	var inner, object *jsonShape[T]
	if shape != nil && end == ']' {
		inner = shape.elements
	} else if shape != nil && shape.each != nil {
		object = shape
	}
	for {
		var name []byte
		if end == '}' {
			if name = w.memberName(); name == nil {
				return false
			} else if shape != nil {
				inner = shape.members[string(w.unescaped(name))]
			}
		}
		if !w.value(inner, object, name, depth) {
			return false
		}
		switch c := w.peek(); c {
		case ',':
			w.at++
		case end:
			w.at++
			return true
		default:
			return false
		}
	}
}

// unescaped returns what a name spells, until the next call.
func (w *jsonWalker[T]) unescaped(name []byte) []byte {
	if bytes.IndexByte(name, '\\') < 0 {
		return name[1 : len(name)-1]
	}
	w.name = appendUnquoted(w.name[:0], name)
	return w.name
}

// A jsonScanner reads the parts of a JSON document, one after the other. Its methods that return a bool report whether
// the next part is a valid one.
type jsonScanner struct {
	data []byte
	at   int
}

// peek moves to the next byte that is not white space and returns it, or 0 at the end.
func (w *jsonScanner) peek() byte {
	for ; w.at < len(w.data); w.at++ {
		switch c := w.data[w.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// memberName reads a member's name and the colon after it. It returns the name as it is spelled, with its quotation
// marks, or nil if there is no valid one.
func (w *jsonScanner) memberName() []byte {
	if w.peek() != '"' {
		return nil
	}
	from := w.at
	if !w.string() {
		return nil
	}
	name := w.data[from:w.at]
	if w.peek() != ':' {
		return nil
	}
	w.at++
	return name
}

// isPlain has the bytes that stand for themselves in a string. Those of UTF-8 are among them, and are not checked.
var isPlain = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return set
}()

// string reads a string.
func (w *jsonScanner) string() bool {
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

// escape moves from the backslash of an escape to its last byte.
func (w *jsonScanner) escape() bool {
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
func (w *jsonScanner) scalar() bool {
	word := ""
	switch w.peek() {
	case 'n':
		word = "null"
	case 't':
		word = "true"
	case 'f':
		word = "false"
	}
	if word != "" && bytes.HasPrefix(w.data[w.at:], []byte(word)) {
		w.at += len(word)
		return true
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

// digits reads one digit or more.
func (w *jsonScanner) digits() bool {
	from := w.at
	for w.at < len(w.data) && '0' <= w.data[w.at] && w.data[w.at] <= '9' {
		w.at++
	}
	return w.at > from
}

// accept moves over the next byte if it is one of set.
func (w *jsonScanner) accept(set string) bool {
	ok := w.at < len(w.data) && strings.IndexByte(set, w.data[w.at]) >= 0
	if ok {
		w.at++
	}
	return ok
}

// jsonString returns s as a JSON string.
func jsonString(s string) string {
	quoted, _ := json.Marshal(s) // every string can be encoded
	return string(quoted)
}

// unquoted returns what a valid JSON string spells, and any other value as it is.
func unquoted(value []byte) []byte {
	if value[0] != '"' {
		return value
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return value[1 : len(value)-1]
	}
	return appendUnquoted(nil, value)
}

// appendUnquoted appends what a valid JSON string spells to dst. Half of a surrogate pair becomes U+FFFD.
func appendUnquoted(dst, value []byte) []byte {
	rest := value[1 : len(value)-1]
	for {
		at := bytes.IndexByte(rest, '\\')
		if at < 0 {
			return append(dst, rest...)
		}
		dst = append(dst, rest[:at]...)
		c := rest[at+1]
		rest = rest[at+2:]
		if c != 'u' {
			if control := strings.IndexByte("bfnrt", c); control >= 0 {
				c = "\b\f\n\r\t"[control]
			}
			dst = append(dst, c)
			continue
		}
		unit := hexUnit(rest)
		rest = rest[4:]
		if utf16.IsSurrogate(unit) {
			second := rune(-1)
			if bytes.HasPrefix(rest, []byte(`\u`)) {
				second = hexUnit(rest[2:])
			}
			if unit = utf16.DecodeRune(unit, second); unit != utf8.RuneError {
				rest = rest[6:]
			}
		}
		dst = utf8.AppendRune(dst, unit)
	}
}

// hexUnit returns the UTF-16 code unit that the first four bytes of digits spell.
func hexUnit(digits []byte) rune {
	unit, _ := strconv.ParseUint(string(digits[:4]), 16, 16)
	return rune(unit)
}
