package connlimit

import (
	"strings"
	"testing"
)

func TestHeaderScan(t *testing.T) {
	const request = "GET / HTTP/1.1\r\n"
	tests := []struct {
		name, sent string
		lines      int
		ended, ok  bool
	}{
		{"nothing", "", 0, false, true},
		{"part of a line", "GET / HT", 0, false, true},
		{"a line", request, 1, false, true},
		{"a header", request + "Host: x\r\n\r\n", 3, true, true},
		{"without carriage returns", "GET / HTTP/1.1\nHost: x\n\n", 3, true, true},
		{"a line of spaces", request + " \r\n", 2, false, true},
		{"a carriage return within a line", request + "a\rb\r\n", 2, false, true},
		{"a carriage return alone", request + "\r", 1, false, true},
		{"two carriage returns", request + "\r\r\n", 2, false, true},
		{"a body of many lines", request + "\r\n" + strings.Repeat("\n", 1000), 2, true, true},
		{"as many lines as may be", request + strings.Repeat("a:\r\n", maxHeaderLines-2) + "\r\n", maxHeaderLines, true, true},
		{"one more", request + strings.Repeat("a:\r\n", maxHeaderLines-1) + "\r\n", maxHeaderLines + 1, true, false},
		{"more, and no end", request + strings.Repeat("a:\n", maxHeaderLines), maxHeaderLines + 1, false, false},
		{"empty lines before it", "\r\n\n\r\n" + request + "Host: x\r\n\r\n", 6, true, true},
		{"only empty lines", strings.Repeat("\n", maxHeaderLines+1), maxHeaderLines + 1, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, len(test.sent) + 1} { // as it may be cut up by the network
				var h headerScan
				ok := true
				for rest := test.sent; rest != ""; {
					n := min(size, len(rest))
					ok = h.add([]byte(rest[:n]))
					rest = rest[n:]
				}
				if h.lines != test.lines || h.ended != test.ended || ok != test.ok {
					t.Errorf("in pieces of %d: %d lines, ended: %v, few enough: %v; want %d, %v, %v",
						size, h.lines, h.ended, ok, test.lines, test.ended, test.ok)
				}
			}
		})
	}
}
