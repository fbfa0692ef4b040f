package llmwire

import (
	"slices"
	"strings"

	"tollgate/internal/strict"
)

// A column says what something in a request can do to its cost.
type column int

const (
	unlisted column = iota // as refused
	known                  // cannot raise the cost beyond what is read of the request
	ruled                  // has a rule of its own, in the shape of requests
	refused                // may raise it
)

// A listing has names in columns, each in one of them. A name that ends in * stands for all that begin so. It is plain
// data, so that it can be compared with the types of the official SDKs.
type listing struct{ known, ruled, refused []string }

// A columnTable has the columns of names.
type columnTable struct {
	exact    map[string]column
	prefixes []string // in the column known
}

// newColumnTable returns the table of all listings.
func newColumnTable(listings ...listing) columnTable {
	t := columnTable{exact: make(map[string]column)}
	for _, l := range listings {
		for _, name := range l.known {
			if prefix, ok := strings.CutSuffix(name, "*"); ok {
				t.prefixes = append(t.prefixes, prefix)
			} else {
				t.exact[name] = known
			}
		}
		for _, name := range l.ruled {
			t.exact[name] = ruled
		}
		for _, name := range l.refused {
			t.exact[name] = refused
		}
	}
	return t
}

// of returns the column of a name.
func (t columnTable) of(name []byte) column {
	c, listed := t.exact[string(name)]
	if listed {
		return c
	}
	for _, prefix := range t.prefixes {
		if len(name) > len(prefix) && string(name[:len(prefix)]) == prefix {
			return known
		}
	}
	return unlisted
}

// names returns the names in a column, in no order.
func (t columnTable) names(c column) (names []string) {
	for name, of := range t.exact {
		if of == c {
			names = append(names, name)
		}
	}
	return names
}

// requestRules are what is known of the requests of a format, beside how they are read.
type requestRules struct {
	members        columnTable // of the top-level members
	tools          columnTable // of the types of tools: those that are known run at the client, and the ruled may
	parts          columnTable // of the types of parts that only this format has, beside partTypes
	messages       string      // what requests have instead of messages[]; "" if they have these
	isStored       bool        // the provider keeps the response, unless the request says otherwise
	mayLimitToZero bool        // max_tokens may be 0, which fills the provider's cache
}

// checkMember notes a top-level member that may raise the cost. One that is known to is as absent if it is off.
func (r *Request) checkMember(name []byte, v jsonValue) {
	switch c := r.rules.members.of(name); {
	case c == known, c == ruled, v.isNull(), c == refused && v.isOff():
	default:
		r.addUnknown(string(name))
	}
}

func (r *Request) addUnknown(name string) {
	if name = strict.Shorten(name); !slices.Contains(r.Unknown, name) {
		r.Unknown = append(r.Unknown, name)
	}
}

// isOff reports whether the value says that a feature is not wanted.
func (v jsonValue) isOff() bool {
	switch string(v.text) {
	case "null", "false", "[]":
		return true
	}
	return false
}
