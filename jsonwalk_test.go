package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// visits notes what a jsonWalker shows.
type visits struct {
	closed string // a path that is not entered
	seen   []string
}

func (v *visits) enters(path []byte) bool { return string(path) != v.closed }

func (v *visits) visit(path, value []byte, from int) bool {
	v.seen = append(v.seen, fmt.Sprintf("%s=%s@%d", path, value, from))
	return string(path) != "stop"
}

func TestJSONWalk(t *testing.T) {
	for _, test := range []struct{ document, closed, want string }{
		{`1`, "-", `=1@0`},
		{` "a" `, "-", `="a"@1`},
		{`[]`, "-", `=[]@0`},
		{`{"a":[1,{"b":null}]}`, "-", `a[]=1@6 a[].b=null@13 a[]={"b":null}@8 a=[1,{"b":null}]@5 ={"a":[1,{"b":null}]}@0`},
		{`{"a":[1,{"b":null}],"c":2}`, "a",
			`a=[1,{"b":null}]@5 c=2@24 ={"a":[1,{"b":null}],"c":2}@0`},
		{`{"\u0061.b[":{"":1}}`, "-", "a\x00b\x00.=1@17 a\x00b\x00={\"\":1}@13 ={\"\\u0061.b[\":{\"\":1}}@0"},
		{`[[1]]`, "-", `[][]=1@2 []=[1]@1 =[[1]]@0`},
	} {
		v := &visits{closed: test.closed}
		if err := new(jsonWalker).walk([]byte(test.document), v); err != nil {
			t.Errorf("%s: %v", test.document, err)
		}
		if got := strings.Join(v.seen, " "); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", test.document, got, test.want)
		}
	}
	v := &visits{closed: "-"}
	if err := new(jsonWalker).walk([]byte(`{"a":1,"stop":2,"b":3}`), v); err == nil || len(v.seen) != 2 {
		t.Errorf("visited %s; %v", v.seen, err)
	}
	deepest := strings.Repeat("[", maxJSONDepth-1) + "0" + strings.Repeat("]", maxJSONDepth-1)
	if err := new(jsonWalker).walk([]byte(deepest), new(visits)); err != nil {
		t.Error(err)
	}
	if err := new(jsonWalker).walk([]byte("["+deepest+"]"), new(visits)); err == nil {
		t.Error("a document that is nested too deep was read")
	}
}

// The walker takes exactly what encoding/json takes.
func FuzzJSONWalk(f *testing.F) {
	for _, document := range []string{
		``, ` `, `0`, `-0`, `01`, `-`, `1.`, `.5`, `1.5e+7`, `1e`, `true`, `tru`, `nullx`, `"`, `"\u00e9\n"`, `"\x"`, `"\u12"`,
		"\"\x00\"", "\"\x7f\xff\"", `"\u+123"`, `"\u12_4"`, `[`, `[]`, `[,]`, `[1,]`, `[1 2]`, `{`, `{}`, `{"a"}`, `{"a":}`,
		`{"a":1,}`, `{"a":1 "b":2}`, `{1:2}`, `{"a":[{"b":[]}]}`, `1 1`, `[1]]`, `{"a":1}x`, `"a"b`, `[tru"e"]`, "[1\x00]",
		`[1:2]`, `{"a":1:2}`, `{"a","b"}`, "\ufeff1", `"\`, `"\u`, `[1}`, `{"a":1]`, `"\ud800"`,
	} {
		f.Add([]byte(document))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if strings.Count(string(document), "[")+strings.Count(string(document), "{") >= maxJSONDepth {
			return
		}
		v := new(visits)
		err := new(jsonWalker).walk(document, v)
		if json.Valid(document) != (err == nil) {
			t.Fatalf("%q: %v", document, err)
		}
		if n := len(v.seen); err == nil && v.seen[n-1] != fmt.Sprintf("=%s@%d", strings.TrimSpace(string(document)),
			strings.Index(string(document), strings.TrimSpace(string(document)))) {
			t.Fatalf("%q: at last %s", document, v.seen[n-1])
		}
	})
}
