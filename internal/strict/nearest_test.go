package strict

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"url", "api_key", "max_input_tokens", "max_output_tokens", "output", strings.Repeat("x", MaxNearestBytes)}
	for name, want := range map[string]string{
		"api_key": "api_key", "apikey": "api_key", "aip_key": "api_key", "api_keyss": "api_key", "apik_ey": "api_key",
		"pi_ke": "api_key", "p_ke": "", "api_keysss": "", "API_KEY": "",
		"urls": "url", "uri": "url", "ul": "url", "x": "", "u": "", "": "", "uxx": "", "ou": "",
		"max_outptu_tokens": "max_output_tokens", "max_imput_tokens": "max_input_tokens", "max_tokens": "",
		strings.Repeat("x", MaxNearestBytes-1): strings.Repeat("x", MaxNearestBytes),
		strings.Repeat("x", MaxNearestBytes+1): "",
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	long := strings.Repeat("y", MaxNearestBytes+1)
	if got := Nearest(long[1:], []string{long}); got != "" {
		t.Errorf("a known name is too long: got %q", got)
	}
	if got := Nearest("tokes", []string{"tokens", "token"}); got != "tokens" { // of two that are as near, the first
		t.Errorf("got %q", got)
	}
	if n := testing.AllocsPerRun(10, func() { Nearest("max_outptu_tokens", known) }); n > 0 {
		t.Errorf("a comparison makes %v allocations", n)
	}
}

// The distance is what a table without bounds says it is.
func FuzzEditDistance(f *testing.F) {
	for _, pair := range [][2]string{{"", ""}, {"url", "ulr"}, {"ab", "ba"}, {"api_key", "apikey"}, {"ca", "abc"}, {"tokens", "token"}} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = a[:min(len(a), MaxNearestBytes)], b[:min(len(b), MaxNearestBytes)]
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
