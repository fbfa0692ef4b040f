package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A workload is a kind of request. Each of tokens is one request's bearer token, in turn.
type workload struct {
	method, path string
	tokens       []string
	header, body string
}

const (
	oneToken = `{"tokens":1}`
	serial   = "000000000000" // is replaced by a number of its own in each request
)

// requests are the bytes that a workload sends.
func (w workload) requests() [][]byte {
	var all [][]byte
	for _, token := range w.tokens {
		all = append(all, fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: tollgate\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\n%s%s\r\n\r\n%s", w.method, w.path, len(w.body), w.header, bearer(token), w.body))
	}
	return all
}

// drive sends requests in turn over some connections, each with one under way. A request costs it two system calls and
// no allocation: its processor time is about that of wrk.
type drive struct {
	address     string
	connections int
	requests    [][]byte
	more        func(n int) bool // reports whether the n-th request, from 0, is sent
	rate        int              // requests a second; 0: each once its connection is free
	isTimed     bool
}

// during returns a drive for that long.
func during(d time.Duration, address string, connections int, requests [][]byte) drive {
	end := time.Now().Add(d)
	return drive{address: address, connections: connections, requests: requests,
		more: func(int) bool { return time.Now().Before(end) }}
}

// driven is what a drive led to.
type driven struct {
	requests int
	took     time.Duration
	times    []time.Duration // sorted: of each request, from when it was due
	firsts   []time.Duration // sorted: from when the provider sent the first event of a stream until it came
}

// run sends the requests. Every response must be 200.
func (d drive) run(b *testing.B) (total driven) {
	b.Helper()
	serials := time.Now().UnixNano() / 1000 % 1_000_000 * 1_000_000 // no other run has these
	var sent, slots atomic.Int64
	var mu sync.Mutex
	var clients sync.WaitGroup
	began := time.Now()
	due := func() time.Time {
		if d.rate == 0 {
			return time.Now()
		}
		at := began.Add(time.Duration(slots.Add(1)) * time.Second / time.Duration(d.rate))
		time.Sleep(time.Until(at))
		return at
	}
	for range d.connections {
		c, err := net.Dial("tcp", d.address)
		if err != nil {
			b.Fatal(err)
		}
		clients.Go(func() {
			defer c.Close()
			var own driven
			responses := bufio.NewReader(c)
			request := make([]byte, 0, 4096)
			for n := int(sent.Add(1)) - 1; d.more(n); n = int(sent.Add(1)) - 1 {
				request = append(request[:0], d.requests[n%len(d.requests)]...)
				if at := bytes.Index(request, []byte(serial)); at >= 0 {
					strconv.AppendInt(request[:at], 1e11+(serials+int64(n))%1e11, 10)
				}
				from := due()
				_, err := c.Write(request)
				first := time.Duration(0)
				if err == nil {
					first, err = readResponse(responses)
				}
				if err != nil {
					b.Errorf("%s: %v", bytes.SplitN(request, []byte("\r\n"), 2)[0], err)
					return
				}
				own.requests++
				if d.isTimed {
					own.times = append(own.times, time.Since(from))
				}
				if first > 0 && d.isTimed {
					own.firsts = append(own.firsts, first)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.requests += own.requests
			total.times = append(total.times, own.times...)
			total.firsts = append(total.firsts, own.firsts...)
		})
	}
	clients.Wait()
	total.took = time.Since(began)
	slices.Sort(total.times)
	slices.Sort(total.firsts)
	return total
}

var (
	contentLength = []byte("content-length: ")
	chunked       = []byte("transfer-encoding: chunked")
	sentAt        = []byte("sent at ") // begins the content of a stream's first event, before the time
)

// readResponse reads one response, which must be a 200 with a length or in chunks, and allocates nothing. Of a stream it
// returns how long the first event was under way from benchProvider.
func readResponse(r *bufio.Reader) (first time.Duration, err error) {
	size, isChunked := -1, false
	for n := 0; ; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if n == 0 && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			rest, _ := r.Peek(r.Buffered())
			return 0, fmt.Errorf("got %q", slices.Concat(line, rest))
		}
		if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
			size = number(bytes.TrimSpace(line[len(contentLength):]), 10)
		}
		isChunked = isChunked || len(line) > len(chunked) && bytes.EqualFold(line[:len(chunked)], chunked)
		if len(line) == 2 {
			break
		}
	}
	if !isChunked {
		if size < 0 {
			return 0, fmt.Errorf("no Content-Length")
		}
		_, err = r.Discard(size)
		return 0, err
	}
	for n := 0; size != 0; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		size = number(bytes.TrimSpace(line), 16)
		if n == 0 {
			part, _ := r.Peek(min(size, r.Size()))
			if at := bytes.Index(part, sentAt); at >= 0 {
				first = time.Duration(time.Now().UnixNano() - int64(number(part[at+len(sentAt):], 10)))
			}
		}
		if _, err := r.Discard(size + len("\r\n")); err != nil {
			return 0, err
		}
	}
	return first, nil
}

// number returns the number at the beginning of text.
func number(text []byte, base int) (n int) {
	for _, c := range text {
		digit := int(c - '0')
		if c >= 'a' {
			digit = int(c-'a') + 10
		} else if c >= 'A' {
			digit = int(c-'A') + 10
		}
		if digit < 0 || digit >= base {
			break
		}
		n = n*base + digit
	}
	return n
}
