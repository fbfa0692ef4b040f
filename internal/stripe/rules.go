package stripe

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"tollgate/internal/strict"
)

// decode reads a document, one JSON value, by a rule. Errors wrap ErrSyntax or ErrShape.
func decode(document []byte, rule strict.Rule) error {
	if err := strict.Check(document); err != nil {
		return fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	var wrong strict.Problems
	if !rule(&wrong, bytes.TrimRight(strict.SkipSpace(document), " \t\r\n")) {
		return fmt.Errorf("%w: %s", ErrShape, wrong.Sentences[0])
	}
	return nil
}

// object accepts an object whose members keep rules and which has those in required. Other members are passed over.
func object(rules strict.Rules, required ...string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		seen, ok := strict.ReadObject(wrong, value, func(name string) strict.Rule { return rules[name] })
		return wrong.Require(seen, required...) && ok
	}
}

// orNull accepts null, which leaves things as they are, and what rule accepts.
func orNull(rule strict.Rule) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool { return value[0] == 'n' || rule(wrong, value) }
}

// id accepts an ID that Stripe has made: 1 to 255 of A-Z a-z 0-9 _ -. It is safe in a path and in the name of a record.
func id(dst *string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		text, _ := strict.Text(value)
		if !isID(text) {
			return wrong.Add("must be an ID of 1 to 255 letters, digits, _ and -")
		}
		*dst = text
		return true
	}
}

func isID(text string) bool {
	isOther := func(c byte) bool { return !strict.IsWord(c) }
	return text != "" && len(text) <= 255 && !slices.ContainsFunc([]byte(text), isOther)
}

// reference accepts a reference to another object: an ID that rule accepts, or the object itself, where a request or an
// old version has expanded it.
func reference(rule strict.Rule) strict.Rule {
	expanded := object(strict.Rules{"id": rule}, "id")
	return func(wrong *strict.Problems, value []byte) bool {
		if value[0] == '{' {
			return expanded(wrong, value)
		}
		return rule(wrong, value)
	}
}

// oneOf accepts one of names.
func oneOf[S ~string](dst *S, names ...S) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		text, _ := strict.Text(value)
		if !slices.Contains(names, S(text)) {
			var list strings.Builder
			for _, name := range names {
				list.WriteString(", " + string(name))
			}
			return wrong.Add("must be one of " + list.String()[2:])
		}
		*dst = S(text)
		return true
	}
}

// amount accepts an amount of money in the smallest unit of a currency, or a quantity.
func amount(dst *int64) strict.Rule { return strict.Int(dst, -strict.MaxInt, strict.MaxInt) }

const maxSeconds = 253402300799 // the end of the year 9999, beyond which times have no RFC 3339

// seconds accepts a time, in Unix seconds.
func seconds(dst *time.Time) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var n int64
		if !strict.Int(&n, 0, maxSeconds)(wrong, value) {
			return false
		}
		*dst = time.Unix(n, 0).UTC()
		return true
	}
}

// metadata accepts null and an object of strings.
func metadata(dst *map[string]string) strict.Rule {
	return orNull(func(wrong *strict.Problems, value []byte) bool {
		*dst = make(map[string]string)
		return strict.MapOf(func(name string) strict.Rule {
			return func(wrong *strict.Problems, value []byte) bool {
				var text string
				ok := strict.String(&text)(wrong, value)
				(*dst)[name] = text
				return ok
			}
		})(wrong, value)
	})
}

const maxPage = 100 // elements of a list, as Stripe documents it

// shortPage is the number of elements from which on a page may not be all there is: Stripe fills a page to that, unless
// others are asked for.
const shortPage = 10

// list accepts a page of a list, appends its elements to dst, and says in more whether there is another page. A short
// page need not say so.
func list[T any](dst *[]T, more *bool, element func(*T) strict.Rule) strict.Rule {
	n, saysMore := 0, false
	page := object(strict.Rules{
		"data": strict.ArrayOf(func(wrong *strict.Problems, value []byte) bool {
			if n++; n > maxPage { // each costs a microsecond, even if Stripe has signed them
				return wrong.Add("is one too many")
			}
			*dst = append(*dst, *new(T))
			return element(&(*dst)[len(*dst)-1])(wrong, value)
		}),
		"has_more": func(wrong *strict.Problems, value []byte) bool {
			saysMore = true
			return strict.Bool(more)(wrong, value)
		},
	}, "data")
	return func(wrong *strict.Problems, value []byte) bool {
		ok := page(wrong, value)
		if ok && !saysMore && n >= shortPage {
			return wrong.AddMember("has_more", "is missing")
		}
		return ok
	}
}
