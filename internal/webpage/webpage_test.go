package webpage

import (
	"net/http/httptest"
	"testing"
	"testing/fstest"
)

// The document stands for the page, other files have their types, and what the page does not have is not served.
func TestServe(t *testing.T) {
	page, err := New(fstest.MapFS{"index.html": {Data: []byte("<p>")}, "a.js": {Data: []byte("let a")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, contentType, body string
		ok                      bool
	}{
		{"", "text/html; charset=utf-8", "<p>", true},
		{"index.html", "text/html; charset=utf-8", "<p>", true},
		{"a.js", "text/javascript; charset=utf-8", "let a", true},
		{"b.js", "", "", false},
		{"../a.js", "", "", false},
	} {
		w := httptest.NewRecorder()
		ok := page.Serve(w, httptest.NewRequest("GET", "/", nil), test.name)
		if contentType := w.Header().Get("Content-Type"); ok != test.ok || contentType != test.contentType || w.Body.String() != test.body {
			t.Errorf("%q: got %v, %q, %q, want %v, %q, %q", test.name, ok, contentType, w.Body, test.ok, test.contentType, test.body)
		}
	}
}

// A file without a known type would be served wrongly.
func TestUnknownType(t *testing.T) {
	if _, err := New(fstest.MapFS{"index.html": {}, "photo.jpeg": {}}); err == nil || err.Error() != "photo.jpeg has no content type" {
		t.Errorf("got %v", err)
	}
}
