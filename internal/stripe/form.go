package stripe

import (
	"net/url"
	"slices"
)

// A form has the parameters of a request.
type form url.Values

// set sets the parameter at a path: the path line_items, 0, price is line_items[0][price]. It does nothing if value is
// empty, which to Stripe means to unset what is there.
func (f form) set(value string, path ...string) {
	if value == "" {
		return
	}
	name := path[0]
	for _, step := range path[1:] {
		name += "[" + step + "]"
	}
	url.Values(f).Set(name, value)
}

// setMap sets a parameter in the one at a path for each of values.
func (f form) setMap(values map[string]string, path ...string) {
	for name, value := range values {
		f.set(value, append(slices.Clip(path), name)...)
	}
}

// encode returns the form as application/x-www-form-urlencoded, in the order of the parameters' names. It escapes the
// brackets too, which Stripe takes as well as plain ones.
func (f form) encode() string { return url.Values(f).Encode() }
