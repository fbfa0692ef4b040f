package strict

import (
	"strconv"
	"strings"
)

// MaxProblems is how many problems of a document are put into words. A hostile document has very many, each with a long
// path.
const MaxProblems = 100

// Problems collects what is wrong with a document while it is read. The zero value is ready for use.
type Problems struct {
	// Sentences has the first MaxProblems problems in the document's order. A sentence starts with the path of a value,
	// such as a.b[0], unless it is about the whole document. It quotes names, never values.
	Sentences []string
	// More is the number of problems beyond MaxProblems.
	More int

	path []step // from the document to the value being read
}

// A step leads from a value to one inside it.
type step struct {
	name  string // of a member
	index int    // of an element; -1 if it leads to a member
}

// Add adds that the value being read breaks rule, which is worded like "must be a string". It returns false, for a Rule
// to return.
func (p *Problems) Add(rule string) bool {
	if len(p.Sentences) == MaxProblems {
		p.More++
		return false
	}
	p.Sentences = append(p.Sentences, strings.TrimPrefix(p.pathText()+" "+rule, " "))
	return false
}

// AddMember is like Add, but about the named member of the object being read, which need not exist.
func (p *Problems) AddMember(name, rule string) bool {
	p.path = append(p.path, step{name, -1})
	defer p.leave()
	return p.Add(rule)
}

// Require adds that each of names that is not in seen is missing, and reports whether none is missing. The value being
// read was read by ReadObject, which returned seen. If seen is nil, the value was no object: nothing is added, and it
// reports false.
func (p *Problems) Require(seen map[string]bool, names ...string) bool {
	ok := seen != nil
	for _, name := range names {
		if seen != nil && !seen[name] {
			ok = p.AddMember(name, "is missing")
		}
	}
	return ok
}

// MemberPath returns the path of the named member of the object being read, which need not exist.
func (p *Problems) MemberPath(name string) string { return joinPath(p.pathText(), step{name, -1}) }

// leave takes the last step back.
func (p *Problems) leave() { p.path = p.path[:len(p.path)-1] }

// pathText returns the path of the value being read, "" for the document.
func (p *Problems) pathText() (path string) {
	for _, s := range p.path {
		path = joinPath(path, s)
	}
	return path
}

// joinPath returns path[index] for an element. For a member it returns path.name, or path["name"] if the name has other
// bytes than IsWord.
func joinPath(path string, to step) string {
	if to.index >= 0 {
		return path + "[" + strconv.Itoa(to.index) + "]"
	}
	name := Shorten(to.name)
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

// Shorten returns name for use in a sentence: its first 64 bytes, less a character that is cut, and … if it is longer.
func Shorten(name string) string {
	if len(name) > 64 {
		return strings.ToValidUTF8(name[:64], "") + "…"
	}
	return name
}

// IsWord reports whether c is one of A-Z a-z 0-9 _ -.
func IsWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}
