package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"tollgate/internal/strict"
)

// hostileConfig has endpoints, each with members that are not known and as long as those that are.
func hostileConfig(endpoints, members int) []byte {
	var b strings.Builder
	b.WriteString(`{"providers":{"text":{"endpoints":{`)
	for i := range endpoints {
		fmt.Fprintf(&b, `"%d":{`, i)
		for j := range members {
			fmt.Fprintf(&b, `"%010d_token":1,`, j)
		}
		b.WriteString(`"api_key":""},`)
	}
	return []byte(strings.TrimSuffix(b.String(), ",") + `}}}}`)
}

// manyProblems is a config of n bytes, each member of which is wrong, below a path that is long when it is quoted.
func manyProblems(n int) []byte {
	const wrong = `,"":7`
	name := strings.Repeat(`\u0000`, 64)
	return []byte(`{"providers":{"text":{"endpoints":{"` + name + `":{"models":{"` + name + `":7` +
		strings.Repeat(wrong, n/len(wrong)) + `}}}}}}`)
}

// A config's unknown members are compared with known ones up to a bound, which leaves room for all that are misspelled
// in an ordinary config; and its problems are worded up to a bound.
func TestLinearConfig(t *testing.T) {
	c, err := parseConfig(hostileConfig(474, 100))
	if err != nil || c.compared != maxCompared {
		t.Fatalf("%d members are compared; %v", c.compared, err)
	}
	c, err = parseConfig(bytes.Replace(hostileConfig(9, 100), []byte(`"api_key"`), []byte(`"apikey"`), 9))
	if err != nil || len(c.warnings) != 9 ||
		c.warnings[8] != "providers.text.endpoints.8.apikey is not known: did you mean api_key?" {
		t.Errorf("warnings %q; %v", c.warnings, err)
	}
	if n := testing.AllocsPerRun(10, func() { nearest("max_outptu_tokens", []string{"max_input_tokens", "max_output_tokens"}) }); n > 0 {
		t.Errorf("a comparison makes %v allocations", n)
	}
	_, err = parseConfig(manyProblems(1 << 18))
	wrong, _ := err.(*configError)
	if wrong == nil || len(wrong.problems) < 10_000 {
		t.Fatal("the config has too few problems to prove something")
	}
	if n := len(strings.Join(wrong.problems, "")); n > strict.MaxProblems*1000 {
		t.Errorf("the problems have %d bytes", n)
	}
}

// The distance is what a table without bounds says it is.
func FuzzEditDistance(f *testing.F) {
	for _, pair := range [][2]string{{"", ""}, {"url", "ulr"}, {"ab", "ba"}, {"api_key", "apikey"}, {"ca", "abc"}, {"tokens", "token"}} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = a[:min(len(a), maxComparedBytes)], b[:min(len(b), maxComparedBytes)]
		table := make([][]int, len(a)+1)
		for i := range table {
			table[i] = make([]int, len(b)+1)
			for j := range table[i] {
				switch {
				case i == 0 || j == 0:
					table[i][j] = i + j
					continue
				case a[i-1] == b[j-1]:
					table[i][j] = table[i-1][j-1]
				default:
					table[i][j] = 1 + min(table[i-1][j-1], table[i-1][j], table[i][j-1])
				}
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					table[i][j] = min(table[i][j], table[i-2][j-2]+1)
				}
			}
		}
		if got := editDistance(a, b); got != table[len(a)][len(b)] || got != editDistance(b, a) {
			t.Errorf("editDistance(%q, %q) = %d, want %d", a, b, got, table[len(a)][len(b)])
		}
	})
}

func BenchmarkHostileConfig(b *testing.B) {
	for _, c := range []struct {
		name   string
		config []byte
	}{
		{"spelling", hostileConfig(474, 100)}, {"problems", manyProblems(1 << 20)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.config)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = parseConfig(c.config)
			}
		})
	}
}
