package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// visits notes what a jsonWalker shows.
type visits struct {
	walker jsonWalker[visits]
	seen   []string
	names  []string // of the members of the document
}

func (v *visits) read(value jsonValue) {
	v.seen = append(v.seen, fmt.Sprintf("%s=%s@%d", value.path, value.text, value.from))
	if value.path == "stop" {
		v.walker.stop()
	}
}

func (v *visits) enter() { v.seen = append(v.seen, "(") }

func (v *visits) each(object *jsonShape[visits], name []byte, value jsonValue) {
	v.seen = append(v.seen, fmt.Sprintf("%s/%s:%s=%s@%d", object.path, name, value.path, value.text, value.from))
	v.names = append(v.names, string(name))
}

func TestJSONWalk(t *testing.T) {
	read := jsonRow[visits]{read: (*visits).read}
	each := jsonRow[visits]{each: (*visits).each}
	for _, test := range []struct {
		document string
		table    jsonTable[visits]
		want     string
	}{
		{`1`, jsonTable[visits]{"": read}, `=1@0`},
		{` "a" `, jsonTable[visits]{"": read}, `="a"@1`},
		{`[]`, jsonTable[visits]{"": read}, `=[]@0`},
		{`[]`, jsonTable[visits]{}, ``},
		{`{"a":[1,{"b":null}]}`, jsonTable[visits]{"": read, "a": read, "a[]": read, "a[].b": read},
			`a[]=1@6 a[].b=null@13 a[]={"b":null}@8 a=[1,{"b":null}]@5 ={"a":[1,{"b":null}]}@0`},
		{`{"a":[1,{"b":null}],"c":2,"d":3}`, jsonTable[visits]{"c": read, "a": read}, `a=[1,{"b":null}]@5 c=2@24`},
		{`{"a":{"b":1,"a":2,"c":{"b":3}},"b":4,"c":[{"b":5}]}`, jsonTable[visits]{"a.b": read, "c.b": read}, `a.b=1@10`},
		{`[{"a":1,"b":[{"a":2}]},3,[{"a":4}]]`, jsonTable[visits]{"[].a": read}, `[].a=1@6`},
		{`{"\u0061":{"b\n\"\\\/\ud83d\ude00\ud800":1},"a.b":2,"a[]":3,"":4,"A":5}`,
			jsonTable[visits]{"a.b\n\"\\/😀\ufffd": read, "a.b": read, "a[]": read}, "a.b\n\"\\/😀\ufffd=1@41"},
		{`[[1]]`, jsonTable[visits]{"": read, "[]": read, "[][]": read}, `[][]=1@2 []=[1]@1 =[[1]]@0`},
		{`{"a":1,"\u0061":{"x":2},"":3}`, jsonTable[visits]{"": each, "a": read, "a.x": read},
			`/a:a=1@5 a=1@5 a.x=2@21 /a:a={"x":2}@16 a={"x":2}@16 /:=3@27`},
		{`{"a":{"b":1,"c":{"d":2}}}`, jsonTable[visits]{"a": each}, `a/b:=1@10 a/c:={"d":2}@16`},
		{`[{"a":1}]`, jsonTable[visits]{"": each, "a": read}, ``},
		{`{"t":[1,{"x":{"t":[{"v":2}]},"t":[3]},[4]]}`,
			jsonTable[visits]{"t[]": {enter: (*visits).enter, read: (*visits).read}, "t[].x.t[]": {same: "t[]"}, "t[].v": read},
			`( t[]=1@6 ( ( t[].v=2@24 t[]={"v":2}@19 t[]={"x":{"t":[{"v":2}]},"t":[3]}@8 ( t[]=[4]@38`},
		{`{"m":{"m":1,"n":2},"n":3}`, jsonTable[visits]{"m.m": {same: "m"}, "m": read, "m.n": read},
			`m=1@10 m.n=2@16 m={"m":1,"n":2}@5`},
		{`{"a":1,"stop":2,"b":3}`, jsonTable[visits]{"a": read, "stop": read, "b": read}, `a=1@5 stop=2@14`},
	} {
		v := new(visits)
		err := v.walker.walk([]byte(test.document), newJSONShape(test.table), v)
		if isStopped := strings.Contains(test.want, "stop"); isStopped != (err != nil) {
			t.Errorf("%s: %v", test.document, err)
		}
		if got := strings.Join(v.seen, " "); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", test.document, got, test.want)
		}
	}
	for _, shape := range []*jsonShape[visits]{nil, newJSONShape(jsonTable[visits]{"[]": {same: "[][]"}, "[][]": {}})} {
		deepest := strings.Repeat("[", maxJSONDepth-1) + "0" + strings.Repeat("]", maxJSONDepth-1)
		if err := new(visits).walker.walk([]byte(deepest), shape, new(visits)); err != nil {
			t.Error(err)
		}
		if err := new(visits).walker.walk([]byte("["+deepest+"]"), shape, new(visits)); err == nil {
			t.Error("a document that is nested too deep was read")
		}
	}
}

// A table that is put under a path reads there what it would read at the top.
func TestJSONTableUnder(t *testing.T) {
	read := jsonRow[visits]{read: (*visits).read}
	inner := jsonTable[visits]{"t[]": read, "t[].v": read, "t[].t[]": {same: "t[]"}}
	v := new(visits)
	document := []byte(`{"a":{"t":[{"t":[{"v":1}]}]},"t":[2]}`)
	if err := v.walker.walk(document, newJSONShape(inner.under("a"), inner.under("b[]")), v); err != nil {
		t.Fatal(err)
	}
	const want = `a.t[].v=1@22 a.t[]={"v":1}@17 a.t[]={"t":[{"v":1}]}@11`
	if got := strings.Join(v.seen, " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The walker takes exactly what encoding/json takes, whether or not a value is shown, and shows the same names and
// values.
func FuzzJSONWalk(f *testing.F) {
	for _, document := range []string{
		``, ` `, `0`, `-0`, `01`, `-`, `1.`, `.5`, `1.5e+7`, `1e`, `true`, `tru`, `nullx`, `"`, `"\u00e9\n"`, `"\x"`,
		`"\u12"`,
		"\"\x00\"", "\"\x7f\xff\"", `"\u+123"`, `"\u12_4"`, `[`, `[]`, `[,]`, `[1,]`, `[1 2]`, `{`, `{}`, `{"a"}`, `{"a":}`,
		`{"a":1,}`, `{"a":1 "b":2}`, `{1:2}`, `{"a":[{"b":[]}]}`, `1 1`, `[1]]`, `{"a":1}x`, `"a"b`, `[tru"e"]`, "[1\x00]",
		`{"\u0061\n":1,"\ud83d\ude00\ud800\ud800\u0061":[{"a":[2]}],"\/\b":{}}`,
		`[1:2]`, `{"a":1:2}`, `{"a","b"}`, "\ufeff1", `"\`, `"\u`, `[1}`, `{"a":1]`, `"\ud800"`,
	} {
		f.Add([]byte(document))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if strings.Count(string(document), "[")+strings.Count(string(document), "{") >= maxJSONDepth {
			return
		}
		v := new(visits)
		shape := newJSONShape(jsonTable[visits]{
			"": {read: (*visits).read, each: (*visits).each}, "[]": {enter: (*visits).enter}, "[][]": {same: "[]"},
			"a": {read: (*visits).read}, "a[]": {read: (*visits).read}, "a[].a[]": {same: "a[]"},
		})
		err := v.walker.walk(document, shape, v)
		hidden := new(visits).walker.walk(document, nil, nil)
		if json.Valid(document) != (err == nil) || fmt.Sprint(err) != fmt.Sprint(hidden) {
			t.Fatalf("%q: %v; hidden: %v", document, err, hidden)
		}
		if err != nil {
			return
		}
		text := strings.Trim(string(document), " \t\r\n")
		if got := v.seen[len(v.seen)-1]; got != fmt.Sprintf("=%s@%d", text, strings.Index(string(document), text)) {
			t.Fatalf("%q: at last %s", document, got)
		}
		if text[0] == '{' {
			checkMembers(t, document, v)
		}
	})
}

// checkMembers compares the members that v was shown with those that encoding/json finds.
func checkMembers(t *testing.T, document []byte, v *visits) {
	decoder := json.NewDecoder(bytes.NewReader(document))
	_, _ = decoder.Token()
	n := 0
	for ; decoder.More(); n++ {
		token, err := decoder.Token()
		var value json.RawMessage
		if err != nil || decoder.Decode(&value) != nil {
			t.Fatal(err)
		}
		if n == len(v.names) || string([]rune(v.names[n])) != token { // encoding/json mends what is not UTF-8
			t.Fatalf("%q: member %d is %q; shown %q", document, n, token, v.names)
		}
		of := fmt.Sprintf("=%s@%d", value, int(decoder.InputOffset())-len(value))
		if !slices.ContainsFunc(v.seen, func(seen string) bool { return strings.HasSuffix(seen, of) }) {
			t.Fatalf("%q: %s was not shown: %q", document, of, v.seen)
		}
	}
	if n != len(v.names) {
		t.Fatalf("%q: %d members, shown %q", document, n, v.names)
	}
}
