package gateway

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
)

// maxSpelling bounds the bytes of an escape that spells one byte of a key: \u0000, or \\u0000 in a string in a string.
const maxSpelling = 7

// removed stands where an endpoint's key was.
const removed = "[removed]"

// withoutKey returns text without key, however many escapes of JSON spell it, also those of JSON in a string of JSON.
// It takes time linear in the length of text, and returns text itself if the key does not occur.
func withoutKey(text []byte, key string) []byte {
	if key == "" {
		return text
	}
	if bytes.IndexByte(text, '\\') < 0 {
		if !bytes.Contains(text, []byte(key)) {
			return text
		}
		return bytes.ReplaceAll(text, []byte(key), []byte(removed))
	}
	spelled, plain := unescape([]byte(key)), unescape(text)
	at := bytes.Index(plain, spelled)
	if at < 0 || len(spelled) == 0 {
		return text
	}
	clean := make([]byte, 0, len(text))
	for read := 0; len(text) > 0; { // bytes of plain before text
		_, known, size := nextByte(text)
		if read < at || at < 0 {
			clean = append(clean, text[:size]...)
		}
		if text = text[size:]; known {
			read++
		}
		if at >= 0 && read == at+len(spelled) {
			clean = append(clean, removed...)
			if at = bytes.Index(plain[read:], spelled); at >= 0 {
				at += read
			}
		}
	}
	return clean
}

// unescape returns what text spells, but for its backslashes.
func unescape(text []byte) []byte {
	plain := make([]byte, 0, len(text))
	for len(text) > 0 {
		c, known, size := nextByte(text)
		if known {
			plain = append(plain, c)
		}
		text = text[size:]
	}
	return plain
}

// nextByte returns the byte that the first size bytes of text spell. It is unknown if they are only backslashes.
func nextByte(text []byte) (c byte, known bool, size int) {
	for size < len(text) && text[size] == '\\' {
		size++
	}
	switch {
	case size == 0:
		return text[0], true, 1
	case len(text) < size+len("u0000") || text[size] != 'u':
		return 0, false, size
	}
	code, err := strconv.ParseUint(string(text[size+1:size+5]), 16, 32)
	if err != nil {
		return 0, false, size
	}
	return byte(min(code, 0xFF)), code != '\\', size + len("u0000") // no key has a byte 0xFF
}

// setWithoutKey sets a header to values, without the key.
func setWithoutKey(h http.Header, name string, values []string, key string) {
	for i, value := range values {
		if key != "" && (strings.Contains(value, key) || strings.Contains(value, `\`)) {
			values = append(append(values[:i:i], string(withoutKey([]byte(value), key))), values[i+1:]...)
		}
	}
	h[name] = values
}
