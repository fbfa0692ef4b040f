package telemetry

import (
	"fmt"
	"strings"
	"testing"
)

func TestTraceID(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "-00f067aa0ba902b7-01"
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{"00-" + id + parent}, id},
		{[]string{"00-" + id + "-00f067aa0ba902b7-ff"}, id},
		{[]string{"cc-" + id + parent}, id}, // a later version
		{[]string{"cc-" + id + parent + "-what the future will be like"}, id},
		{[]string{"cc-" + id + parent + ".what"}, ""},
		{[]string{"cc-" + id + parent + "-\x00"}, ""},
		{[]string{"cc-" + id + parent + "-" + strings.Repeat("x", 100)}, ""},
		{[]string{"00-" + id + parent + "-x"}, ""},
		{[]string{"00-" + id + parent, "00-" + id + parent}, ""},
		{[]string{"ff-" + id + parent}, ""},
		{[]string{"0-" + id + parent}, ""},
		{[]string{"00-" + strings.ToUpper(id) + parent}, ""},
		{[]string{"00-" + strings.Repeat("0", 32) + parent}, ""},
		{[]string{"00-" + id + "-0000000000000000-01"}, ""},
		{[]string{"00-" + id[1:] + "x" + parent}, ""},
		{[]string{"00-" + id[1:] + "\n" + parent}, ""},
		{[]string{"00_" + id + parent}, ""},
		{[]string{"00-" + id + "_00f067aa0ba902b7-01"}, ""},
		{[]string{"00-" + id + "-00f067aa0ba902b7_01"}, ""},
		{[]string{"00-" + id + "-00f067aa0ba902b7-0"}, ""},
		{[]string{""}, ""},
	} {
		if got := TraceID(test.lines); got != test.want {
			t.Errorf("%q: got %q, want %q", test.lines, got, test.want)
		}
	}
}

func TestTraceState(t *testing.T) {
	members := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("k%d=1", i))
		}
		return strings.Join(all, ",")
	}
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{""}, ""},
		{[]string{" , "}, ""},
		{[]string{"congo=t61rcWkgMzE"}, "congo=t61rcWkgMzE"},
		{[]string{"a=1, b@c=2", "3_-*/=x y"}, "a=1, b@c=2,3_-*/=x y"},
		{[]string{"a=1,,b=2"}, "a=1,,b=2"},
		{[]string{members(32)}, members(32)},
		{[]string{members(33)}, ""},
		{[]string{"a=" + strings.Repeat("x", 256)}, "a=" + strings.Repeat("x", 256)},
		{[]string{"a=" + strings.Repeat("x", 257)}, ""},
		{[]string{strings.Repeat("a", 257) + "=x"}, ""},
		{[]string{"a=" + strings.Repeat("x", 255), "b=" + strings.Repeat("x", 254)}, ""},
		{[]string{"a=1", "a=2"}, ""},
		{[]string{"a"}, ""},
		{[]string{"a="}, ""},
		{[]string{"=1"}, ""},
		{[]string{"A=1"}, ""},
		{[]string{"_a=1"}, ""},
		{[]string{"a=1=2"}, ""},
		{[]string{"a b=1"}, ""},
		{[]string{"a=\x01"}, ""},
		{[]string{"a=é"}, ""},
	} {
		if got := TraceState(test.lines); got != test.want {
			t.Errorf("%q: got %q, want %q", test.lines, got, test.want)
		}
	}
}
