package websocket

import (
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/websockettest"
)

// autobahnGroups are the groups of cases of Autobahn's test suite, and what covers each.
var autobahnGroups = []struct{ id, about, by string }{
	{"1.1", "text messages of all lengths", "TestConformance, TestRelayedEqualsSent"},
	{"1.2", "binary messages of all lengths", "TestConformance, TestRelayedEqualsSent"},
	{"2", "pings and pongs", "TestConformance"},
	{"3", "reserved bits", "TestConformance"},
	{"4.1", "reserved opcodes of data frames", "TestConformance"},
	{"4.2", "reserved opcodes of control frames", "TestConformance"},
	{"5", "fragmentation", "TestConformance"},
	{"6", "UTF-8: valid, invalid, split, cut", "TestConformance, TestTextCheck"},
	{"7.1", "frames after a close, close within a message", "TestConformance"},
	{"7.3", "the payload of a close", "TestConformance"},
	{"7.5", "bad UTF-8 in a reason", "TestConformance"},
	{"7.7", "valid close codes", "TestCloseCodes"},
	{"7.9", "invalid close codes", "TestCloseCodes"},
	{"7.13", "close codes beyond 4999", "TestCloseCodes"},
	{"9.1", "text messages up to 16 MiB", "TestLargeMessages"},
	{"9.2", "binary messages up to 16 MiB", "TestLargeMessages"},
	{"9.3", "fragmented text messages", "TestLargeMessages"},
	{"9.4", "fragmented binary messages", "TestLargeMessages"},
	{"9.5", "text messages in small pieces of TCP", "TestRelayedEqualsSent, FuzzFrames"},
	{"9.6", "binary messages in small pieces of TCP", "TestRelayedEqualsSent, FuzzFrames"},
	{"9.7", "the time of text messages", "BenchmarkRoundTrip"},
	{"9.8", "the time of binary messages", "BenchmarkRoundTrip"},
	{"10", "messages that are fragmented by the library", "TestRelayedEqualsSent"},
	{"12", "permessage-deflate", "TestAcceptNoExtension: it is never agreed to"},
	{"13", "permessage-deflate with options", "TestAcceptNoExtension: it is never agreed to"},
}

// A conformanceCase is what one side of a relay sends, and what comes of it.
type conformanceCase struct {
	group  string // of Autobahn's cases, or "–"
	name   string
	frames []wire
	reply  string // what the sender gets
	passed string // what the other side gets; X! is how it is told that the sender is lost
}

var (
	text    = func(s string) wire { return wire{First: 0x81, Payload: s} }
	begin   = func(s string) wire { return wire{First: 0x01, Payload: s} }
	more    = func(s string) wire { return wire{First: 0x00, Payload: s} }
	end     = func(s string) wire { return wire{First: 0x80, Payload: s} }
	bin     = func(s string) wire { return wire{First: 0x82, Payload: s} }
	ping    = func(s string) wire { return wire{First: 0x89, Payload: s} }
	pong    = func(s string) wire { return wire{First: 0x8a, Payload: s} }
	bye     = closeFrame(CloseNormal, "bye")
	goodbye = `X1000"bye"`
	reply   = `X1000""`
	long    = strings.Repeat("*", maxControl+1)
)

var conformanceCases = []conformanceCase{
	{"1.1", "text", []wire{text("Hello"), bye}, reply, `T"Hello" ` + goodbye},
	{"1.1", "empty text", []wire{text(""), bye}, reply, `T"" ` + goodbye},
	{"1.1", "125 bytes", []wire{text(long[1:]), bye}, reply, `T"` + long[1:] + `" ` + goodbye},
	{"1.1", "126 bytes", []wire{text(long), bye}, reply, `T"` + long + `" ` + goodbye},
	{"1.1", "16,370 bytes", []wire{text(strings.Repeat("*", MaxPart)), bye}, reply, `T(16370) ` + goodbye},
	{"1.1", "65,536 bytes", []wire{text(strings.Repeat("*", 65536)), bye}, reply, `t(16370) c(16370) c(16370) c(16370) C"` +
		strings.Repeat("*", 56) + `" ` + goodbye},
	{"1.2", "binary", []wire{bin("\x00\xff\xfe"), bye}, reply, `B"\x00\xff\xfe" ` + goodbye},
	{"1.2", "empty binary", []wire{bin(""), bye}, reply, `B"" ` + goodbye},

	{"2", "ping without payload", []wire{ping(""), bye}, `Q"" ` + reply, goodbye},
	{"2", "ping with payload", []wire{ping("\x00\xff"), bye}, `Q"\x00\xff" ` + reply, goodbye},
	{"2", "ping of 125 bytes", []wire{ping(long[1:]), bye}, `Q"` + long[1:] + `" ` + reply, goodbye},
	{"2", "ping of 126 bytes", []wire{ping(long), bye}, "X1002", "X!"},
	{"2", "pings in order", []wire{ping("1"), ping("2"), ping("3"), bye}, `Q"1" Q"2" Q"3" ` + reply, goodbye},
	{"2", "pong that nobody asked for", []wire{pong("a"), text("b"), bye}, reply, `T"b" ` + goodbye},
	{"2", "pong of 126 bytes", []wire{pong(long), bye}, "X1002", "X!"},
	{"2", "ping that claims 64 bits of length", []wire{{First: 0x89, Form: websockettest.Length64, Claims: 1 << 16}}, "X1002", "X!"},

	{"3", "RSV1", []wire{text("a"), {First: 0xc1, Payload: "b"}}, "X1002", `T"a" X!`},
	{"3", "RSV2", []wire{{First: 0xa2, Payload: "b"}}, "X1002", "X!"},
	{"3", "RSV3", []wire{{First: 0x91, Payload: "b"}}, "X1002", "X!"},
	{"3", "all of them on a ping", []wire{{First: 0xf9}}, "X1002", "X!"},
	{"3", "RSV1 on a continuation", []wire{begin("a"), {First: 0xc0, Payload: "b"}}, "X1002", `t"a" X!`},
	{"3", "RSV1 on a close", []wire{{First: 0xc8}}, "X1002", "X!"},

	{"4.1", "opcode 3", []wire{text("a"), {First: 0x83}}, "X1002", `T"a" X!`},
	{"4.1", "opcode 4", []wire{{First: 0x84, Payload: "a"}}, "X1002", "X!"},
	{"4.1", "opcode 5", []wire{{First: 0x85}}, "X1002", "X!"},
	{"4.1", "opcode 6", []wire{{First: 0x86}}, "X1002", "X!"},
	{"4.1", "opcode 7 within a message", []wire{begin("a"), {First: 0x87}}, "X1002", `t"a" X!`},
	{"4.2", "opcode 11", []wire{{First: 0x8b}}, "X1002", "X!"},
	{"4.2", "opcode 12", []wire{{First: 0x8c, Payload: "a"}}, "X1002", "X!"},
	{"4.2", "opcode 13", []wire{{First: 0x8d}}, "X1002", "X!"},
	{"4.2", "opcode 14", []wire{{First: 0x8e}}, "X1002", "X!"},
	{"4.2", "opcode 15 within a message", []wire{begin("a"), {First: 0x8f}}, "X1002", `t"a" X!`},

	{"5", "fragmented ping", []wire{{First: 0x09, Payload: "a"}, end("b")}, "X1002", "X!"},
	{"5", "fragmented pong", []wire{{First: 0x0a, Payload: "a"}}, "X1002", "X!"},
	{"5", "fragmented close", []wire{{First: 0x08}}, "X1002", "X!"},
	{"5", "two fragments", []wire{begin("a"), end("b"), bye}, reply, `t"a" C"b" ` + goodbye},
	{"5", "ping between fragments", []wire{begin("a"), ping("p"), end("b"), bye}, `Q"p" ` + reply, `t"a" C"b" ` + goodbye},
	{"5", "empty fragments", []wire{begin(""), more(""), more("x"), end(""), bye}, reply, `t"" c"" c"x" C"" ` + goodbye},
	{"5", "continuation of nothing", []wire{end("a"), text("b")}, "X1002", "X!"},
	{"5", "first of a continuation of nothing", []wire{more("a"), text("b")}, "X1002", "X!"},
	{"5", "continuation after a message", []wire{begin("a"), end("b"), end("c")}, "X1002", `t"a" C"b" X!`},
	{"5", "text within a text", []wire{begin("a"), text("b")}, "X1002", `t"a" X!`},
	{"5", "binary within a text", []wire{begin("a"), {First: 0x02, Payload: "b"}}, "X1002", `t"a" X!`},
	{"5", "fragmented binary", []wire{{First: 0x02, Payload: "\xff"}, end("\xfe"), bye}, reply, `b"\xff" C"\xfe" ` + goodbye},

	{"6", "characters of all lengths", []wire{text("aé€\U0001f600"), bye}, reply, `T"aé€😀" ` + goodbye},
	{"6", "split within characters", []wire{begin("\xe2"), more("\x82"), end("\xac"), bye}, reply, `t"\xe2" c"\x82" C"\xac" ` + goodbye},
	{"6", "invalid byte", []wire{text("a\xffb")}, "X1007", "X!"},
	{"6", "invalid byte in a second fragment", []wire{begin("a"), end("\xffb")}, "X1007", `t"a" X!`},
	{"6", "invalid across fragments", []wire{begin("\xe2\x82"), more("b")}, "X1007", `t"\xe2\x82" X!`},
	{"6", "cut character", []wire{text("a\xe2\x82")}, "X1007", "X!"},
	{"6", "cut character, empty last fragment", []wire{begin("\xf0\x9f"), end("")}, "X1007", `t"\xf0\x9f" X!`},
	{"6", "overlong", []wire{text("\xc0\xaf")}, "X1007", "X!"},
	{"6", "surrogate", []wire{text("\xed\xa0\x80")}, "X1007", "X!"},
	{"6", "beyond U+10FFFF", []wire{text("\xf4\x90\x80\x80")}, "X1007", "X!"},
	{"6", "beyond U+10FFFF, known at once", []wire{begin("a\xf4"), more("\x90")}, "X1007", `t"a\xf4" X!`},
	{"6", "U+FFFF and U+10FFFF", []wire{text("\uffff\U0010ffff"), bye}, reply, "T\"\\uffff\\U0010ffff\" " + goodbye},
	{"6", "the next text begins anew", []wire{begin("\xe2\x82"), end("\xac"), text("a"), bye}, reply,
		`t"\xe2\x82" C"\xac" T"a" ` + goodbye},

	{"7.1", "close", []wire{bye}, reply, goodbye},
	{"7.1", "text after a close", []wire{bye, text("a")}, reply, goodbye},
	{"7.1", "ping after a close", []wire{bye, ping("a")}, reply, goodbye},
	{"7.1", "close twice", []wire{bye, bye}, reply, goodbye},
	{"7.1", "close within a message", []wire{begin("a"), bye, end("b")}, reply, `t"a" ` + goodbye},
	{"7.3", "empty close", []wire{{First: 0x88}}, `X""`, `X""`},
	{"7.3", "one byte", []wire{{First: 0x88, Payload: "\x03"}}, "X1002", "X!"},
	{"7.3", "code without reason", []wire{closeFrame(4001, "")}, `X4001""`, `X4001""`},
	{"7.3", "reason of 123 bytes", []wire{closeFrame(1000, long[3:])}, reply, `X1000"` + long[3:] + `"`},
	{"7.3", "reason of 124 bytes", []wire{closeFrame(1000, long[2:])}, "X1002", "X!"},
	{"7.5", "reason that is not UTF-8", []wire{closeFrame(1000, "a\xff")}, "X1007", "X!"},
	{"7.5", "reason that ends within a character", []wire{closeFrame(1000, "a\xe2\x82")}, "X1007", "X!"},

	{"–", "mask the wrong way round", []wire{{First: 0x81, Payload: "a", Flip: true}}, "X1002", "X!"},
	{"–", "mask the wrong way round on a ping", []wire{{First: 0x89, Flip: true}}, "X1002", "X!"},
	{"–", "mask the wrong way round on a close", []wire{{First: 0x88, Flip: true}}, "X1002", "X!"},
	{"–", "mask the wrong way round on a continuation", []wire{begin("a"), {First: 0x80, Flip: true}}, "X1002", `t"a" X!`},
	{"–", "125 in 16 bits", []wire{{First: 0x81, Payload: long[1:], Form: websockettest.Length16}}, "X1002", "X!"},
	{"–", "0 in 64 bits", []wire{{First: 0x81, Form: websockettest.Length64}}, "X1002", "X!"},
	{"–", "126 in 64 bits", []wire{{First: 0x81, Payload: long, Form: websockettest.Length64}}, "X1002", "X!"},
	{"–", "65,535 in 64 bits", []wire{{First: 0x82, Claims: 65535, Form: websockettest.Length64}}, "X1002", "X!"},
	{"–", "a length of 2^63", []wire{{First: 0x82, Claims: 1 << 63}}, "X1009", "X!"},
	{"–", "a length of 2^64-1", []wire{{First: 0x81, Claims: 1<<64 - 1}}, "X1009", "X!"},
	{"–", "a frame beyond 16 MiB", []wire{{First: 0x82, Claims: 16<<20 + 1}}, "X1009", "X!"},
	{"–", "a message beyond 16 MiB", []wire{begin("a"), {First: 0x00, Claims: 16 << 20}}, "X1009", `t"a" X!`},
	{"–", "lengths whose sum overflows", []wire{begin("a"), {First: 0x00, Claims: 1<<64 - 1}}, "X1009", `t"a" X!`},

	{"–", "silence", nil, "X1001", "X!"},
	{"–", "half a header", []wire{text("a"), {First: 0x81, Claims: 300}}, "X1001", `T"a" X!`},
	{"–", "half a payload", []wire{{First: 0x81, Payload: "abc", Claims: 4}}, "X1001", "X!"},
	{"–", "half a control frame", []wire{begin("a"), {First: 0x89, Payload: "abc", Claims: 4}}, "X1001", `t"a" X!`},
	{"–", "half a long frame", []wire{{First: 0x82, Payload: strings.Repeat("*", MaxPart+1), Claims: MaxPart + 2}}, "X1001", "b(16370) X!"},
	{"–", "pings within a message that never ends", []wire{begin("a"), ping("1"), ping("2")}, `Q"1" Q"2" X1001`, `t"a" X!`},
}

// Whatever a client or a server sends, RFC 6455 says what it gets and what the other side sees.
func TestConformance(t *testing.T) {
	covered := map[string]bool{"–": true}
	for _, test := range conformanceCases {
		covered[test.group] = true
		for _, sender := range []string{"client", "server"} {
			t.Run(test.group+" "+test.name+" from the "+sender, func(t *testing.T) {
				t.Parallel()
				if strings.Contains(test.reply, "X1001") { // after a time
					synctest.Test(t, func(t *testing.T) { test.run(t, sender == "client", newPiped) })
					return
				}
				test.run(t, sender == "client", func(side *Side, isServer bool) (*Conn, *peer) {
					return newPeer(t, side, isServer)
				})
			})
		}
	}
	for _, group := range autobahnGroups {
		if strings.HasPrefix(group.by, "TestConformance") != covered[group.id] {
			t.Errorf("group %s has cases: %t, but is covered by %s", group.id, covered[group.id], group.by)
		}
	}
}

// protocolReason is the reason of a close frame that says what is wrong.
var protocolReason = regexp.MustCompile(`(X(?:1001|1002|1007|1009|1011))"[^"]*"`)

// run runs a case between the peers that newPeer makes.
func (test conformanceCase) run(t *testing.T, isClient bool, newPeer func(*Side, bool) (*Conn, *peer)) {
	sending, receiving := &Side{IdleTimeout: time.Minute}, &Side{}
	relay, lost := &Relay{}, "X1001"
	var sender, other *peer
	if isClient {
		relay.Client, sender = newPeer(sending, true)
		relay.Server, other = newPeer(receiving, false)
	} else {
		relay.Client, other = newPeer(receiving, true)
		relay.Server, sender = newPeer(sending, false)
		lost = "X1011"
	}
	ended := startRelay(relay)
	sender.Send(t, test.frames...)
	if got := protocolReason.ReplaceAllString(show(sender.Wait(t)), "$1"); got != test.reply {
		t.Errorf("the sender gets\n%s, want\n%s", got, test.reply)
	}
	want := strings.Replace(test.passed, "X!", lost, 1)
	if got := protocolReason.ReplaceAllString(show(other.Wait(t)), "$1"); got != want {
		t.Errorf("the other side gets\n%s, want\n%s", got, want)
	}
	waitFor(t, ended)
}
