// Package webpage serves a page whose files are built into the binary.
package webpage

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"time"
)

// index is the file that stands for the whole page.
const index = "index.html"

// policy lets the page run its own scripts and call its own origin, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page is the files of a page by name. Its methods may be called concurrently.
type Page map[string]file

type file struct {
	content           []byte
	contentType, etag string
}

// New reads a page: a folder with index.html and files of the types .js, .css and .svg. The error says which file is of
// another type, or cannot be read.
func New(folder fs.FS) (Page, error) {
	types := map[string]string{".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
	entries, err := fs.ReadDir(folder, ".")
	if err != nil {
		return nil, err
	}
	page := make(Page)
	for _, entry := range entries {
		contentType, ok := types[path.Ext(entry.Name())]
		if !ok {
			return nil, fmt.Errorf("%s has no content type", entry.Name())
		}
		content, err := fs.ReadFile(folder, entry.Name())
		if err != nil {
			return nil, err
		}
		page[entry.Name()] = file{content, contentType + "; charset=utf-8", fmt.Sprintf(`"%.8x"`, sha256.Sum256(content))}
	}
	return page, nil
}

// Serve sends a file of the page, index.html if name is empty, or 304 if the client has it. It returns false, and sends
// nothing, if the page has no such file. The client must ask each time, so that it never runs the files of two versions
// together. Files are sent whole, whatever Range says.
func (p Page) Serve(w http.ResponseWriter, r *http.Request, name string) bool {
	name = cmp.Or(name, index)
	file, ok := p[name]
	if !ok {
		return false
	}
	h := w.Header()
	h.Set("Content-Type", file.contentType)
	h.Set("ETag", file.etag)
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	whole := *r
	whole.Header = maps.Clone(r.Header)
	whole.Header.Del("Range")
	http.ServeContent(w, &whole, name, time.Time{}, bytes.NewReader(file.content))
	return true
}
