package websocket

import "unicode/utf8"

// A textCheck checks that the parts of a text, one after another, are valid UTF-8. A part may end within a character.
type textCheck struct {
	begun [utf8.UTFMax]byte // the bytes of a character whose end has not come
	n     int               // how many these are
}

// add checks the next part. It reports whether all so far can be the beginning of a valid text: it is false as soon as
// the first byte that cannot be right has come.
func (t *textCheck) add(p []byte) bool {
	for t.n > 0 && len(p) > 0 {
		t.begun[t.n] = p[0]
		t.n++
		p = p[1:]
		if utf8.FullRune(t.begun[:t.n]) { // complete, or invalid
			if !utf8.Valid(t.begun[:t.n]) {
				return false
			}
			t.n = 0
		}
	}
	whole := len(p)
	for i := len(p) - 1; i >= 0 && i > len(p)-utf8.UTFMax; i-- {
		if utf8.RuneStart(p[i]) {
			if !utf8.FullRune(p[i:]) {
				whole = i
			}
			break
		}
	}
	t.n += copy(t.begun[t.n:], p[whole:])
	return utf8.Valid(p[:whole])
}

// isComplete reports whether the text so far does not end within a character.
func (t *textCheck) isComplete() bool { return t.n == 0 }
