package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/websocket"
)

const benchSound = 4096 // bytes of base64 in an event

// The events of a session of benchProvider: each part of the user's sound is answered with one of the model's.
var (
	benchAppend = []byte(`{"type":"input_audio_buffer.append","audio":"` + strings.Repeat("AAAA", benchSound/4) + `"}`)
	benchAnswer = []byte(`{"type":"response.output_audio.delta","event_id":"event_42","response_id":"resp_1","item_id":"item_1",` +
		`"output_index":0,"content_index":0,"delta":"` + strings.Repeat("AAAA", benchSound/4) + `"}`)
)

var (
	benchServers = &websocket.Side{}
	benchClients = &websocket.Side{}
)

// benchSession answers each binary message and each event of benchAppend's length with benchAnswer.
func benchSession(w http.ResponseWriter, r *http.Request) {
	conn, err := benchServers.Accept(w, r, "", nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer conn.Finish()
	_ = conn.Send(websocket.Text, []byte(createdEvent))
	for {
		part, err := conn.Next()
		if err != nil {
			return
		}
		if part.Last && len(part.Data) == len(benchAppend) {
			_ = conn.Send(websocket.Text, benchAnswer)
		}
	}
}

// A benchTalk is a session of the benchmarks, as its client has it.
type benchTalk struct{ *websocket.Conn }

// openTalk opens a session at address, with the key if that is not "", and waits for its first event.
func openTalk(b *testing.B, address, key string) benchTalk {
	b.Helper()
	header := http.Header{}
	if key != "" {
		header.Set("Authorization", "Bearer "+key)
	}
	conn, response, err := benchClients.Dial(b.Context(), http.DefaultTransport, "ws://"+address, header)
	if err != nil {
		b.Fatal(err, response)
	}
	talk := benchTalk{conn}
	talk.receive(b, `{"type":"session.created"`)
	return talk
}

// receive waits for a message that begins with prefix, and passes over others.
func (talk benchTalk) receive(b *testing.B, prefix string) {
	b.Helper()
	for isIt := false; ; {
		part, err := talk.Next()
		if err != nil {
			b.Fatal(err)
		}
		if part.First {
			isIt = strings.HasPrefix(string(part.Data), prefix)
		}
		if isIt && part.Last {
			return
		}
	}
}

// exchange sends n events in a row and waits for the answers to them.
func (talk benchTalk) exchange(b *testing.B, n int) {
	b.Helper()
	for range n {
		if err := talk.Send(websocket.Text, benchAppend); err != nil {
			b.Fatal(err)
		}
	}
	for range n {
		talk.receive(b, `{"type":"response.output_audio.delta"`)
	}
}

// benchTollgate starts the benchmarks' provider and a tollgate in front of it, each in a process of its own. open opens
// a session, with one of as many keys as are needed for many.
func benchTollgate(b *testing.B, settings ...string) (p *process, provider string, open func() benchTalk) {
	b.Helper()
	provider = startBenchServer(b, "provider", freeAddress).address(b)
	r := redistest.New(b, "--appendonly", "no")
	settings = append(append([]string{"REDIS_URL=" + r.URL()}, benchSettings...), settings...)
	p = startCommand(b, exec.Command(buildBinary(b, "")), settings)
	s := &service{url: "http://" + p.address(b)}
	tenant, key, opened := "", "", 0
	open = func() benchTalk {
		if opened%250 == 0 { // within the share of one tenant
			tenant = newTenantIn(b, r, framesConfig(maxAmount, provider))
		}
		if opened%50 == 0 { // within the share of one key
			key = s.login(b, tenant)
		}
		opened++
		return openTalk(b, s.address()+"/"+tenant+realtimePath, key)
	}
	return p, provider, open
}

// BenchmarkRealtimeIdle measures what a session takes in which nothing happens, with both connections, after one event
// has passed in each direction.
func BenchmarkRealtimeIdle(b *testing.B) {
	const sessions = 500
	for b.Loop() {
		p, _, open := benchTollgate(b, "GOGC=25", "MAX_CONNECTIONS=8192") // with little garbage: what counts is what is needed
		first := open()
		first.exchange(b, 1)
		before := residentKiB(b, p.cmd.Process.Pid)
		for range sessions {
			talk := open()
			talk.exchange(b, 1)
			defer talk.Abort()
		}
		after := residentKiB(b, p.cmd.Process.Pid)
		b.ReportMetric(float64(after-before)*1024/sessions, "B/session")
		fmt.Printf("resident: %d KiB, with %d sessions %d KiB\n", before, sessions, after)
		first.Abort()
	}
}

// BenchmarkRealtimeFrame measures what tollgate adds to a session: to the time of a lone event and its answer, which is
// two relayed frames, and to that of many in a row. The runs with and without tollgate are interleaved.
func BenchmarkRealtimeFrame(b *testing.B) {
	for b.Loop() {
		_, provider, open := benchTollgate(b)
		talks := []benchTalk{openTalk(b, provider+realtimePath, ""), open()}
		for _, inRow := range []int{1, 16} {
			var micros [2][]float64 // of a frame, in each round
			for range 18 {
				for i, talk := range talks {
					const frames = 8000
					began := time.Now()
					for range frames / 2 / inRow {
						talk.exchange(b, inRow)
					}
					micros[i] = append(micros[i], float64(time.Since(began).Nanoseconds())/1000/frames)
				}
			}
			direct, through := median(micros[0]), median(micros[1])
			b.ReportMetric(through-direct, fmt.Sprintf("added-µs/frame-%d", inRow))
			b.ReportMetric(through/direct, fmt.Sprintf("ratio-%d", inRow))
			fmt.Printf("%d events in a row: %.1f µs a frame, without tollgate %.1f [%.1f … %.1f]\n", inRow, through, direct,
				slices.Min(micros[0]), slices.Max(micros[0]))
		}
		for _, talk := range talks {
			talk.Abort()
		}
	}
}
