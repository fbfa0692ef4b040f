package main

import (
	"image/png"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The page and its files have the headers of the contract, and come again only if they have changed.
func TestAdminPage(t *testing.T) {
	t.Parallel()
	s := newService(t)
	index := s.do(t, "GET", "/admin", "")
	files := regexp.MustCompile(`(?:src|href)="(/admin/page/[^"]+)"`).FindAllStringSubmatch(index.body, -1)
	if len(files) != 3 {
		t.Fatalf("the page names the files %q", files)
	}
	types := map[string]string{".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
	for _, url := range []string{"/admin", "/admin/", files[0][1], files[1][1], files[2][1], "/admin/page/api.js"} {
		got := s.do(t, "GET", url, "")
		if got.status != 200 || len(got.body) < 100 {
			t.Errorf("%s: got %d %s", url, got.status, got.body)
		}
		ext := path.Ext(url)
		if ext == "" {
			ext = ".html"
		}
		etag := got.header.Get("ETag")
		for name, want := range map[string]string{
			"Content-Type": types[ext] + "; charset=utf-8",
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
				"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options":     "nosniff",
			"Referrer-Policy":            "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin",
			"Cache-Control":              "no-cache",
		} {
			got.wantHeader(t, name, want)
		}
		if len(etag) < 10 {
			t.Errorf("%s: ETag %q", url, etag)
		}
		for tag, want := range map[string]int{
			etag: http.StatusNotModified, "W/" + etag: http.StatusNotModified, `"a", ` + etag: http.StatusNotModified, `"other"`: 200, `"`: 200,
		} {
			if again := s.do(t, "GET", url, "", "If-None-Match: "+tag); again.status != want || again.header.Get("ETag") != etag {
				t.Errorf("%s, If-None-Match %s: got %d, %s, want %d", url, tag, again.status, again.header.Get("ETag"), want)
			}
		}
		for _, bytes := range []string{"bytes=9999999-", "bytes=0-3", "bytes=0-3,6-9", "x"} {
			if part := s.do(t, "GET", url, "", "Range: "+bytes); part.status != 200 || part.body != got.body {
				t.Errorf("%s, Range %s: got %d and %d bytes", url, bytes, part.status, len(part.body))
			}
		}
		s.do(t, "HEAD", url, "").wantHeader(t, "Content-Length", strconv.Itoa(len(got.body)))
	}
	for _, url := range []string{"/admin/page/", "/admin/page/nothing.js", "/admin/page/..%2fpage.go", "/admin/page/page"} {
		s.do(t, "GET", url, "").want(t, 404, `{"error":"Not found"}`)
	}
	s.do(t, "POST", "/admin", "").want(t, 405, `{"error":"Method not allowed"}`)
	off := newService(t, "ADMIN_PAGE=false")
	for _, url := range []string{"/admin", "/admin/", "/admin/page/app.js"} {
		off.do(t, "GET", url, "").want(t, 404, `{"error":"Not found"}`)
	}
}

// The page weighs little, and has nothing in it that would make markup or code of what users have entered.
func TestAdminPageFiles(t *testing.T) {
	t.Parallel()
	const most = 120_000 // bytes
	dangerous := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|document\.write` +
		`|DOMParser|srcdoc|\beval\b|new Function|javascript:|\.style\b` +
		`|localStorage|sessionStorage|document\.cookie|(?:src|href|import|url)\W+https?:`)
	weight := 0
	err := fs.WalkDir(pageFiles, "page", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := pageFiles.ReadFile(name)
		weight += len(content)
		text := string(content)
		if found := dangerous.FindString(text); found != "" {
			t.Errorf("%s has %q", name, found)
		}
		if lines := strings.Count(text, "\n"); lines >= 300 {
			t.Errorf("%s has %d lines, want fewer than 300", name, lines)
		}
		for i, line := range strings.Split(text, "\n") {
			if len([]rune(line)) > 120 {
				t.Errorf("%s:%d has more than 120 columns", name, i+1)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if weight >= most {
		t.Errorf("the page weighs %d bytes, want less than %d", weight, most)
	}
	index, _ := pageFiles.ReadFile("page/" + "index.html")
	if inline := regexp.MustCompile(`<script[^>]*>[^<]|<style|\son\w+=|\sstyle=`).Find(index); inline != nil {
		t.Errorf("the document has inline code or style: %s", inline)
	}
}

// allRoutes returns the routes of a server that serves everything.
func allRoutes() []route { return append(new(server).routes(), pageRoutes(nil)...) }

// The README shows a picture of the page, which TestIntegrationPage/picture takes.
func TestAdminPagePicture(t *testing.T) {
	t.Parallel()
	const path, most = "docs/admin.png", 100_000 // bytes
	content := readFile(t, path)
	picture, err := png.DecodeConfig(strings.NewReader(content))
	if err != nil || picture.Width != 1200 || len(content) >= most {
		t.Errorf("%s: got %d bytes, %+v, %v, want less than %d bytes and 1200 pixels a line", path, len(content), picture, err, most)
	}
	if !strings.Contains(readFile(t, "README.md"), "]("+path+")") {
		t.Errorf("README.md does not show %s", path)
	}
}
