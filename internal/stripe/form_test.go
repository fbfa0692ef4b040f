package stripe

import (
	"net/url"
	"reflect"
	"testing"
)

// Paths become brackets, values are escaped, and empty ones, which would unset what is there, are left out.
func TestForm(t *testing.T) {
	for _, test := range []struct {
		value string
		path  []string
		want  string
	}{
		{"payment", []string{"mode"}, "mode=payment"},
		{"c", []string{"a", "b", "0", "c"}, "a%5Bb%5D%5B0%5D%5Bc%5D=c"},
		{"a b+c&d=e%f/g:h[i]{j}#?", []string{"x"}, "x=a+b%2Bc%26d%3De%25f%2Fg%3Ah%5Bi%5D%7Bj%7D%23%3F"},
		{"ä\n\x00", []string{"x"}, "x=%C3%A4%0A%00"},
		{"v", []string{"metadata", "a&b=c d"}, "metadata%5Ba%26b%3Dc+d%5D=v"},
		{"", []string{"x"}, ""},
	} {
		f := make(form)
		f.set(test.value, test.path...)
		if got := f.encode(); got != test.want {
			t.Errorf("%q %q: got %s, want %s", test.path, test.value, got, test.want)
		}
	}
	f := make(form)
	f.set("1", "b")
	f.setMap(map[string]string{"y": "2", "x": "3", "z": ""}, "a", "m")
	f.setMap(nil, "n")
	if got, want := f.encode(), "a%5Bm%5D%5Bx%5D=3&a%5Bm%5D%5By%5D=2&b=1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	back, err := url.ParseQuery(f.encode())
	if want := (url.Values{"a[m][x]": {"3"}, "a[m][y]": {"2"}, "b": {"1"}}); err != nil || !reflect.DeepEqual(back, want) {
		t.Errorf("got %v, %v, want %v", back, err, want)
	}
	if got := form(nil).encode(); got != "" {
		t.Errorf("no form is %q", got)
	}
}
