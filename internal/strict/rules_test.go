package strict

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// refusal reads value by rule and returns why the rule refuses it, "" if it does not.
func refusal(t *testing.T, rule Rule, value string) string {
	t.Helper()
	var wrong Problems
	ok := rule(&wrong, []byte(value))
	if ok != (len(wrong.Sentences) == 0) || len(wrong.Sentences) > 1 || wrong.More > 0 {
		t.Errorf("%.40s: the rule returns %t and adds %q and %d more", value, ok, wrong.Sentences, wrong.More)
	}
	return strings.Join(wrong.Sentences, "")
}

func TestStringField(t *testing.T) {
	for in, want := range map[string]string{
		`""`: "", `"a"`: "a", `"\u0061\n\\\"\/"`: "a\n\\\"/", `"\ud83d\ude00"`: "😀", `"\uD83D\uDE00"`: "😀",
		`"�\ufffd"`: "\ufffd\ufffd", `"\\ud800"`: `\ud800`, `"\\\\udc00"`: `\\udc00`,
	} {
		var got string
		if problem := refusal(t, String(&got), in); problem != "" || got != want {
			t.Errorf("%s: got %q, %q, want %q", in, got, problem, want)
		}
		if text, ok := Text([]byte(in)); text != want || !ok {
			t.Errorf("%s: the text is %q, %t, want %q", in, text, ok, want)
		}
	}
	for in, want := range map[string]string{
		`1`: "must be a string", `null`: "must be a string", `{}`: "must be a string",
		`"\ud800"`: loneSurrogate, `"\udc00\ud800"`: loneSurrogate, `"\ud83d \ude00"`: loneSurrogate,
		`"\ud83d\\ude00"`: loneSurrogate,
		`"x\uD800\u0061"`: loneSurrogate, `"\ud83d\ud83d\ude00"`: loneSurrogate,
		`"\\\ud800"`: loneSurrogate, `"\ud83d\ude00\udc00"`: loneSurrogate,
	} {
		got := "before"
		if problem := refusal(t, String(&got), in); problem != want || got != "before" {
			t.Errorf("%s: got %q, %q, want %q", in, got, problem, want)
		}
		if text, ok := Text([]byte(in)); text != "" || ok {
			t.Errorf("%s: the text is %q, %t", in, text, ok)
		}
	}
}

// A whole number is accepted in every spelling that JSON has for it, exactly, whatever its exponent.
func TestIntFieldSpellings(t *testing.T) {
	zeros := strings.Repeat("0", 1_000_000)
	for in, want := range map[string]int64{
		`0`: 0, `-0`: 0, `0.0`: 0, `-0.0e5`: 0, `0e999999999`: 0, `0e-99999999999999999999`: 0, `0.` + zeros: 0,
		`1`: 1, `1.0`: 1, `1.000`: 1, `1e0`: 1, `1E+0`: 1, `1e-0`: 1, `1e2`: 100, `1E2`: 100, `1.5e1`: 15, `0.01e2`: 1,
		`100e-2`: 1, `120.0e-1`: 12,
		`10`: 10, `-7`: -7, `-7.0`: -7, `-70e-1`: -7, `1e15`: 1e15, `1` + zeros + `e-1000000`: 1, `0.` + zeros + `1e1000001`: 1,
		`9007199254740991`: MaxInt, `9007199254740991.0`: MaxInt, `9007199254740.991e3`: MaxInt, `-9007199254740991`: -MaxInt,
	} {
		got := int64(-1)
		if problem := refusal(t, Int(&got, -MaxInt, MaxInt), in); problem != "" || got != want {
			t.Errorf("%.40s: got %d, %q, want %d", in, got, problem, want)
		}
	}
	const whole, bounds = "must be a whole number ≥ 0", "must be a whole number from 0 to 9007199254740991"
	for in, want := range map[string]string{
		`-1`: whole, `1.5`: whole, `0.1`: whole, `1e-1`: whole, `15e-2`: whole, `9007199254740991.5`: whole, `1e-999999999999`: whole,
		`-1e400`: whole, `-9007199254740992`: whole, `0.` + zeros + `1`: whole,
		`9007199254740992`: bounds, `9007199254740992.0`: bounds, `9007199254740991.5e1`: bounds, `1e16`: bounds, `1e400`: bounds,
		`1e99999999999999999999`: bounds, `99999999999999999999`: bounds, `1` + zeros: bounds,
		`null`: whole, `true`: whole, `"1"`: whole, `"1`: whole, `[1]`: whole, `{}`: whole,
		// Values of query parameters are not always JSON.
		``: whole, `-`: whole, `+1`: whole, ` 1`: whole, `1 `: whole, "1\n": whole, `01`: whole, `1.`: whole, `.5`: whole,
		`1e`: whole, `1_0`: whole,
		`0x10`: whole, `1,2`: whole, `١`: whole, `e1`: whole, `-e1`: whole, `NaN`: whole, `Inf`: whole, `1 2`: whole,
	} {
		got := int64(-1)
		if problem := refusal(t, Int(&got, 0, MaxInt), in); problem != want || got != -1 {
			t.Errorf("%.40s: got %d, %q, want %q", in, got, problem, want)
		}
	}
	for in, want := range map[string]string{
		`0`: "must be a whole number from 1 to 5", `6`: "must be a whole number from 1 to 5",
		`-1e99`: "must be a whole number from 1 to 5",
		`null`:  "must be a whole number from 1 to 5", `5.5`: "must be a whole number from 1 to 5",
	} {
		if problem := refusal(t, Int(new(int64), 1, 5), in); problem != want {
			t.Errorf("%s: got %q, want %q", in, problem, want)
		}
	}
}

// Int agrees with exact arithmetic.
func FuzzIntField(f *testing.F) {
	for _, s := range []string{"1", "-0", "1.0", "1e2", "100e-2", "9007199254740991.5", "123456789.0e-3", "0.001e3",
		"1e19", "-1e19", "01", "+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var n int64
		problem := refusal(t, Int(&n, -MaxInt, MaxInt), s)
		if !json.Valid([]byte(s)) && problem == "" {
			t.Fatalf("%q was accepted as %d", s, n)
		}
		isNumber := json.Valid([]byte(s)) && strings.Trim(s, "+-.0123456789Ee") == ""
		if IsNumber([]byte(s)) != isNumber {
			t.Fatalf("that %q is a number is %t", s, !isNumber)
		}
		_, exponent, _ := strings.Cut(strings.ToLower(s), "e")
		if !isNumber || len(exponent) > 4 {
			return
		}
		want, ok := new(big.Rat).SetString(s)
		inRange := ok && want.IsInt() && want.Num().CmpAbs(big.NewInt(MaxInt)) <= 0
		if inRange != (problem == "") || inRange && want.Num().Int64() != n {
			t.Errorf("%q: got %d, %q, want %s", s, n, problem, want)
		}
	})
}

// Every rule refuses the JSON values that are not of its kind, and null always.
func TestRules(t *testing.T) {
	values := []string{`null`, `true`, `false`, `0`, `1`, `-1.5e3`, `100`, `101`, `"a"`, `"true"`, `"1"`, `[]`, `[{}]`, `[0]`, `{}`, `{"a":1}`}
	for name, test := range map[string]struct {
		rule    Rule
		problem string
		want    []string
	}{
		"Bool":      {Bool(new(bool)), "must be true or false", []string{`true`, `false`}},
		"AnyNumber": {AnyNumber, "must be a number", []string{`0`, `1`, `-1.5e3`, `100`, `101`}},
		"Int":       {anyInt, "must be a whole number ≥ 0", []string{`0`, `1`, `100`, `101`}},
		"Seconds":   {Seconds(new(int64), 1, 100), "must be a whole number of seconds from 1 to 100", []string{`1`, `100`}},
		"AnyString": {AnyString, "must be a string", []string{`"a"`, `"true"`, `"1"`}},
		"Number":    {Number(new(float64), 0, 100), "must be a number from 0 to 100", []string{`0`, `1`, `100`}},
		"MapOf":     {MapOf(func(string) Rule { return anyInt }), "must be an object", []string{`{}`, `{"a":1}`}},
		"ArrayOf":   {ArrayOf(MapOf(func(string) Rule { return nil })), "must be an array", []string{`[]`, `[{}]`}},
		"Raw":       {Raw(new([]byte)), "", values},
	} {
		t.Run(name, func(t *testing.T) {
			var accepted []string
			for _, value := range values {
				switch problem := refusal(t, test.rule, value); {
				case problem == "":
					accepted = append(accepted, value)
				case problem != test.problem && problem != "[0] must be an object":
					t.Errorf("%s: %q, want %q", value, problem, test.problem)
				}
			}
			if fmt.Sprint(accepted) != fmt.Sprint(test.want) {
				t.Errorf("accepts %q, want %q", accepted, test.want)
			}
		})
	}
}

// A rule that accepts a value stores it, and one that refuses it stores nothing.
func TestStoredValues(t *testing.T) {
	seconds, number, yes, raw := int64(-1), -1.0, true, []byte(nil)
	got := func() string { return fmt.Sprintf("%d %v %t %q", seconds, number, yes, raw) }
	for _, test := range []struct {
		rule              Rule
		accepts, refuses  string
		before, afterward string
	}{
		{Seconds(&seconds, 0, 1e6), `36e2`, `-2`, `-1 -1 true ""`, `3600 -1 true ""`},
		{Number(&number, 0, 100), `0.25`, `100.5`, `3600 -1 true ""`, `3600 0.25 true ""`},
		{Bool(&yes), `false`, `null`, `3600 0.25 true ""`, `3600 0.25 false ""`},
		{Bool(&yes), `true`, `0`, `3600 0.25 false ""`, `3600 0.25 true ""`},
		{Raw(&raw), `[ 1 ]`, ``, `3600 0.25 true ""`, `3600 0.25 true "[ 1 ]"`},
	} {
		if test.refuses != "" && (refusal(t, test.rule, test.refuses) == "" || got() != test.before) {
			t.Errorf("%s: got %s, want %s", test.refuses, got(), test.before)
		}
		if refusal(t, test.rule, test.accepts) != "" || got() != test.afterward {
			t.Errorf("%s: got %s, want %s", test.accepts, got(), test.afterward)
		}
	}
}
