package billtest

import (
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
)

// at returns the value at a path of names below v, or nil if v has no such path.
func at(v any, path ...string) any {
	for _, name := range path {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	return v
}

// elements returns the elements of the array at a path below v.
func elements(v any, path ...string) []any {
	array, _ := at(v, path...).([]any)
	return array
}

// text returns the string at a path below v.
func text(v any, path ...string) string {
	s, _ := at(v, path...).(string)
	return s
}

var digits = regexp.MustCompile(`^[0-9]+$`)

// count returns the first count at a path: a number of at least 0, rounded up, or a string of digits.
func count(v any, path ...string) (n int64, ok bool) {
	spelling, isNumber := "", false
	switch v := at(v, path...).(type) {
	case json.Number:
		spelling, isNumber = v.String(), true
	case string:
		spelling = v
	}
	if !isNumber && !digits.MatchString(spelling) {
		return 0, false
	}
	number, ok := new(big.Rat).SetString(spelling)
	if !ok || number.Sign() < 0 {
		return 0, false
	}
	up := new(big.Int).Add(number.Num(), number.Denom())
	up.Sub(up, big.NewInt(1)).Div(up, number.Denom())
	if !up.IsInt64() || up.Int64() > 1<<53-1 {
		return 1<<53 - 1, true
	}
	return up.Int64(), true
}

// set sets the counts of a kind to what stands at a path, if that is a count.
func (c Counts) set(kind string, v any, path ...string) {
	if n, ok := count(v, path...); ok {
		c[kind] = n
	}
}

// labels are the members of what a model says that it has not said.
var labels = []string{
	"id", "type", "role", "index", "stop_reason", "stop_sequence", "call_id", "status", "phase", "logprobs",
}

// contentBytes returns the bytes of all strings in v, but for labels, and of the JSON that a tool is called with.
func contentBytes(v any) (n int64) {
	switch v := v.(type) {
	case string:
		return int64(len(v))
	case []any:
		for _, element := range v {
			n += contentBytes(element)
		}
	case map[string]any:
		for name, value := range v {
			object, isObject := value.(map[string]any)
			switch {
			case slices.Contains(labels, name):
			case isObject && name == "input":
				n += int64(len(compact(object)) - len("{}"))
			default:
				n += contentBytes(value)
			}
		}
	}
	return n
}

// compact returns the JSON of v, without spaces.
func compact(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
