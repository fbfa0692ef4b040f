package strict

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// A sentence names the place by its path. Names that are no words are quoted, and long ones are cut.
func TestPaths(t *testing.T) {
	long := strings.Repeat("é", 33)
	for document, want := range map[string]string{
		`7`: "must be an object", `{"a":7}`: "a must be an array", `{"a":[7]}`: "a[0] must be an object",
		`{"a":[{},{},{"b":7}]}`:           "a[2].b is odd",
		`{"a-b_C9":[{"a.b":7}]}`:          `a-b_C9[0]["a.b"] is odd`,
		`{"":[{"":7}]}`:                   `[""][0][""] is odd`,
		`{"é\n\"":[{"x":7}]}`:             `["é\n\""][0].x is odd`,
		`{"` + long + `":[{"x":7}]}`:      `["` + long[:64] + `…"][0].x is odd`,
		`{"a":[{"b":7}],"c":[{"b":7}]}`:   "a[0].b is odd, c[0].b is odd",
		`{"a":[{"b":7,"c":7}],"d":7}`:     "a[0].b is odd, a[0].c is odd, d must be an array",
		`{"a":[{"a":0},{}],"b":{},"a":0}`: "b must be an array, a is duplicated",
	} {
		odd := func(wrong *Problems, value []byte) bool { return value[0] != '7' || wrong.Add("is odd") }
		var wrong Problems
		MapOf(func(string) Rule { return ArrayOf(MapOf(func(string) Rule { return odd })) })(&wrong, []byte(document))
		if got := strings.Join(wrong.Sentences, ", "); got != want {
			t.Errorf("%s: got %s, want %s", document, got, want)
		}
	}
}

// A rule can name a member that is not there, and the place remains the same.
func TestMemberPaths(t *testing.T) {
	var wrong Problems
	MapOf(func(string) Rule {
		return func(wrong *Problems, _ []byte) bool {
			ok := wrong.AddMember("x y", "is odd")
			return wrong.Add("lies below "+wrong.MemberPath("z")) || ok
		}
	})(&wrong, []byte(`{"a":1}`))
	if got, want := strings.Join(wrong.Sentences, ", "), `a["x y"] is odd, a lies below a.z`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := wrong.MemberPath("z"); got != "z" {
		t.Errorf("in the document the path is %s", got)
	}
}

// Problems are put into words up to a bound, and counted beyond it.
func TestMaxProblems(t *testing.T) {
	for _, n := range []int{1, MaxProblems, MaxProblems + 1, 5000} {
		err := Decode([]byte(`{"a":[`+strings.TrimSuffix(strings.Repeat("7,", n), ",")+`]}`), Rules{"a": ArrayOf(AnyString)})
		bad, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("the error is %v", err)
		}
		sentences := bad.Problems.Sentences
		if len(sentences) != min(n, MaxProblems) || bad.Problems.More != n-len(sentences) {
			t.Errorf("of %d problems there are %d sentences and %d more", n, len(sentences), bad.Problems.More)
		}
		if want := fmt.Sprintf("a[%d] must be a string", len(sentences)-1); sentences[len(sentences)-1] != want {
			t.Errorf("the last is %q, want %q", sentences[len(sentences)-1], want)
		}
	}
}
