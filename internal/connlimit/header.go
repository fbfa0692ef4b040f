package connlimit

import "bytes"

// maxHeaderLines bounds the lines of a header that net/http gets to see. It would take 0.2 MB for 12 KiB of short
// lines, so that 2,500 connections with such headers took 400 MB; with the bound they take 14 MB. A handler that
// refuses fewer fields than that can make a response of its own.
const maxHeaderLines = 200

// tooManyHeaderLines is the response to a header with more lines.
const tooManyHeaderLines = "HTTP/1.1 431 Request Header Fields Too Large\r\n" +
	"Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\n" +
	"Content-Length: 29\r\n\r\n{\"error\":\"Too many headers\"}\n"

// headerScan counts the lines of a header as they come. The request line is one, and so is the empty line at the end.
type headerScan struct {
	lines int  // that are complete
	size  int  // bytes of the line that has begun
	first byte // of these
	begun bool // a line that is not empty has come; net/http may skip empty ones before it
	ended bool // the empty line after it has come; what follows is the body
}

// add scans the next bytes. It reports whether there are at most maxHeaderLines so far.
func (h *headerScan) add(p []byte) bool {
	for len(p) > 0 && !h.ended {
		line, rest, complete := bytes.Cut(p, []byte("\n"))
		if h.size == 0 && len(line) > 0 {
			h.first = line[0]
		}
		h.size += len(line)
		if !complete {
			break
		}
		empty := h.size == 0 || h.size == 1 && h.first == '\r'
		h.ended, h.begun = empty && h.begun, h.begun || !empty
		h.lines, h.size = h.lines+1, 0
		p = rest
	}
	return h.lines <= maxHeaderLines
}
