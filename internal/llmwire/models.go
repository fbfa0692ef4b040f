package llmwire

import (
	"errors"
	"unicode"
	"unicode/utf8"
)

const (
	maxModelNames     = 1000     // of a provider's list
	maxModelNameBytes = 256      // of one name
	maxModelListBytes = 64 << 10 // of all names of a list together
)

// ModelNames returns the names of the models in a provider's list, in its order. It reads the shapes that the lists of
// all formats have. Names that are empty, longer than 256 bytes or not printable are left out, and what is beyond the
// first 1,000 names or 64 KiB of them. The error says that body is no list.
func ModelNames(body []byte) ([]string, error) {
	var w jsonWalker[modelList]
	var list modelList
	if err := w.walk(body, modelListShape, &list); err != nil {
		return nil, err
	}
	if !list.isList {
		return nil, errors.New("it has no array data")
	}
	return list.names, nil
}

// A modelList is what is read of a provider's list of models.
type modelList struct {
	isList bool
	names  []string
	bytes  int
}

var modelListShape = newJSONShape(jsonTable[modelList]{
	"data":      {read: (*modelList).readData},
	"data[].id": {read: (*modelList).readID},
})

func (l *modelList) readData(v jsonValue) { l.isList = v.text[0] == '[' }

func (l *modelList) readID(v jsonValue) {
	if v.text[0] != '"' || len(v.text) > 6*maxModelNameBytes+2 || len(l.names) == maxModelNames {
		return
	}
	name := unquoted(v.text)
	if len(name) == 0 || len(name) > min(maxModelNameBytes, maxModelListBytes-l.bytes) || !isPrintable(name) {
		return
	}
	l.names = append(l.names, string(name))
	l.bytes += len(name)
}

// isPrintable reports whether text is UTF-8 without control characters and the like.
func isPrintable(text []byte) bool {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
		text = text[size:]
	}
	return true
}
