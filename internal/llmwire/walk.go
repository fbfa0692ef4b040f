package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"tollgate/internal/strict"
)

const maxJSONDepth = 500 // arrays and objects inside each other

// A jsonTable has the functions that read a JSON document into a T, by the path of the value that they read. The path
// of the document itself is "", that of its member a is "a", that of each element of a is "a[]", and that of the member
// b of such an element is "a[].b". A member * stands for all members of its object that have no path of their own.
type jsonTable[T any] map[string]jsonRow[T]

// A jsonRow has the functions for the values at a path. Each may be nil.
type jsonRow[T any] struct {
	enter func(to *T)              // called before the value is read
	read  func(to *T, v jsonValue) // called with the value after everything inside it was read

	// each is called for each member of an object, whether or not the table has the member, before the member's read.
	each func(to *T, object *jsonShape[T], name []byte, v jsonValue)

	// same, unless it is "", is the path whose rows also read the value at this path and everything inside it. With a path
	// inside itself, it describes a tree of any depth. If orArray is true, the value may also be an array of such values.
	same    string
	orArray bool
}

// A jsonValue is a value in a document.
type jsonValue struct {
	path string // in the table; "" if the table does not have it
	text []byte // as it is spelled, without white space around it; shares the document's memory
	from int    // where text starts in the document

	// escapes is by how many bytes the escapes in text are longer than what they spell.
	escapes int
}

// isNull reports whether the value is null, which counts as absent.
func (v jsonValue) isNull() bool { return v.text[0] == 'n' }

// stringBytes returns the length of what a string spells, and 0 for any other value.
func (v jsonValue) stringBytes() int64 {
	if v.text[0] != '"' {
		return 0
	}
	return int64(len(v.text) - len(`""`) - v.escapes)
}

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
	other    *jsonShape[T] // of members that are not in members
	elements *jsonShape[T]

	byLength [][]jsonMember[T] // members, by the length of their names: this is faster than a map; nil if it is not set
}

type jsonMember[T any] struct {
	name  string
	shape *jsonShape[T]
}

// index sets byLength.
func (s *jsonShape[T]) index() {
	for name, shape := range s.members {
		for len(s.byLength) <= len(name) {
			s.byLength = append(s.byLength, nil)
		}
		s.byLength[len(name)] = append(s.byLength[len(name)], jsonMember[T]{name, shape})
	}
}

// member returns the shape of a member, nil if it is not to be read.
func (s *jsonShape[T]) member(name []byte) *jsonShape[T] {
	if s.byLength == nil {
		if member := s.members[string(name)]; member != nil {
			return member
		}
	} else if len(name) < len(s.byLength) {
		for i := range s.byLength[len(name)] {
			if m := &s.byLength[len(name)][i]; m.name[0] == name[0] && m.name == string(name) {
				return m.shape
			}
		}
	}
	return s.other
}

// newJSONShape returns the shape of a document that is read by the rows of all tables.
func newJSONShape[T any](tables ...jsonTable[T]) *jsonShape[T] {
	rows := joined(tables...)
	shapes := make(map[string]*jsonShape[T])
	var at func(path string) *jsonShape[T]
	at = func(path string) *jsonShape[T] {
		row := rows[path]
		if row.same != "" && !row.orArray {
			return at(row.same)
		}
		if shapes[path] == nil {
			shapes[path] = &jsonShape[T]{jsonRow: row, path: path, members: make(map[string]*jsonShape[T])}
			if row.same != "" {
				one := at(row.same)
				*shapes[path] = jsonShape[T]{jsonRow: one.jsonRow, path: path, members: one.members, elements: one}
			}
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
				if name := path[dot+1:]; name == "*" {
					at(parent).other = at(path)
				} else {
					at(parent).members[name] = at(path)
				}
			}
			path = parent
		}
	}
	for _, shape := range shapes {
		shape.index()
	}
	return at("")
}

// A jsonWalker reads JSON documents (RFC 8259) strictly, in one pass, and allocates nothing but room for the longest
// name with escapes. What a value costs depends on its own name and text only, not on where it is or what was before
// it.
type jsonWalker[T any] struct {
	scan    strict.Scanner
	to      *T
	stopped bool
	name    []byte // what the last name with escapes spells
}

// walk reads data into to by the functions of shape. An error means that data is not valid JSON, or nested deeper than
// maxJSONDepth, or that stop was called. A part of data has been read then.
func (w *jsonWalker[T]) walk(data []byte, shape *jsonShape[T], to *T) error {
	*w = jsonWalker[T]{scan: strict.Scanner{Data: data}, to: to, name: w.name}
	if !w.value(shape, nil, nil, 0) || w.scan.Peek() != 0 || w.scan.At < len(data) {
		return fmt.Errorf("not valid JSON at byte %d", w.scan.At+1)
	}
	return nil
}

// stop ends the walk when the function that calls it has returned.
func (w *jsonWalker[T]) stop() { w.stopped = true }

// value reads the next value and reports whether the walk goes on: the value is valid, and stop was not called. If the
// value is a member of an object whose shape has each, object is that shape and name the member's name.
func (w *jsonWalker[T]) value(shape, object *jsonShape[T], name []byte, depth int) (ok bool) {
	c := w.scan.Peek()
	from, escapes := w.scan.At, w.scan.Escapes
	if shape != nil && shape.enter != nil {
		shape.enter(w.to)
	}
	if shape != nil && (c == '{' || c == '[') && depth < maxJSONDepth {
		ok = w.container(shape, c+2, depth+1) // in ASCII, { and [ are two before } and ]
	} else {
		ok = w.scan.Value(maxJSONDepth - depth)
	}
	if !ok {
		return false
	}
	v := jsonValue{text: w.scan.Data[from:w.scan.At], from: from, escapes: w.scan.Escapes - escapes}
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
	w.scan.At++
	if w.scan.Peek() == end {
		w.scan.At++
		return true
	}
	inner := shape.elements
	var object *jsonShape[T]
	if end == '}' && shape.each != nil {
		object = shape
	}
	for {
		var name []byte
		if end == '}' {
			if name = w.scan.Name(); name == nil {
				return false
			}
			inner = shape.member(w.unescaped(name))
		}
		if !w.value(inner, object, name, depth) {
			return false
		}
		switch w.scan.Peek() {
		case ',':
			w.scan.At++
		case end:
			w.scan.At++
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
	w.name, _ = strict.AppendUnquoted(w.name[:0], name)
	return w.name
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
	text, _ := strict.AppendUnquoted(nil, value)
	return text
}
