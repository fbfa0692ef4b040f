package redisdb

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What three Sentinels say, or two or five, and which server is the master then. A reply is address:epoch, "-" if the
// Sentinel does not respond, or "?" if it knows no such master.
func TestChooseMaster(t *testing.T) {
	const lost, recent, beaten = 1, 2, 4
	tests := []struct {
		name    string
		replies string
		inUse   string // "" at start
		state   int
		failed  string
		want    string
	}{
		// At start.
		{"all agree", "M:0 M:0 M:0", "", 0, "", "M:0"},
		{"the first is wrong", "O:0 M:0 M:0", "", 0, "", "M:0"},
		{"the last is wrong", "M:0 M:0 O:0", "", 0, "", "M:0"},
		{"the first is old", "O:1 M:2 M:2", "", 0, "", "M:2"},
		{"one knows the failover", "M:1 M:1 R:2", "", 0, "", "R:2"},
		{"one responds", "- M:3 -", "", 0, "", "M:3"},
		{"one knows the name", "? M:3 ?", "", 0, "", "M:3"},
		{"none responds", "- - -", "", 0, "", ""},
		{"none knows the name", "? ? -", "", 0, "", ""},
		{"a draw", "O:0 M:0 -", "", 0, "", "O:0"},
		{"a draw, the first is lost", "O:0 M:0 -", "O:0", lost, "", "M:0"},
		{"a draw, the second is lost", "O:0 M:0 -", "M:0", lost, "", "O:0"},
		{"the first is newer, and lost", "O:5 M:3 M:3", "O:5", lost, "", "M:3"},
		{"it was left for the others'", "O:5 M:3 M:3", "M:3", 0, "O:5", "M:3"},

		// One epoch.
		{"one names another", "O:0 M:0 M:0", "M:0", 0, "", "M:0"},
		{"one names another, one is silent", "O:0 M:0 -", "M:0", 0, "", "M:0"},
		{"the only one that responds names another", "O:0 - -", "M:0", 0, "", "M:0"},
		{"the same, and it is lost", "O:0 - -", "M:0", lost, "", "O:0"},
		{"most name another", "M:0 O:0 O:0", "M:0", 0, "", "O:0"},
		{"most name another since a failover", "M:4 O:4 O:4", "M:4", recent, "", "O:4"},
		{"one names it by its host's name", "localhost:0 127.0.0.1:0 127.0.0.1:0", "127.0.0.1:0", 0, "", "127.0.0.1:0"},
		{"that is in use", "localhost:0 127.0.0.1:0 127.0.0.1:0", "localhost:0", 0, "", "127.0.0.1:0"},
		{"each names another", "A:0 B:0 C:0", "B:0", 0, "", "B:0"},
		{"each names another, and it is lost", "A:0 B:0 C:0", "A:0", lost, "", "B:0"},
		{"most of five that respond, not of all", "M:0 O:0 O:0 - -", "M:0", 0, "", "M:0"},
		{"the same, and it is lost", "M:0 O:0 O:0 - -", "M:0", lost, "", "O:0"},
		{"lost, and all name it", "M:0 M:0 M:0", "M:0", lost, "", "M:0"},
		{"lost, and most name it", "M:0 M:0 O:0", "M:0", lost, "", "M:0"},
		{"two Sentinels", "M:0 O:0", "M:0", 0, "", "M:0"},
		{"one Sentinel names another", "O:0", "M:0", 0, "", "O:0"},

		// A higher epoch.
		{"a failover", "R:2 R:2 R:2", "M:1", 0, "", "R:2"},
		{"a failover that one knows", "M:1 R:2 M:1", "M:1", 0, "", "R:2"},
		{"the same, later", "M:1 R:2 M:1", "R:2", recent, "", "R:2"},
		{"the same, much later", "M:1 R:2 M:1", "R:2", 0, "", "R:2"},
		{"two failovers", "M:1 R:2 S:3", "R:2", recent, "", "S:3"},
		{"back to the first", "M:3 M:3 -", "R:2", recent, "", "M:3"},

		// A lower epoch.
		{"one is old", "O:0 M:1 M:1", "M:1", 0, "", "M:1"},
		{"all who respond are old", "O:0 - -", "M:1", 0, "", "M:1"},
		{"moved by hand, one is away", "- N:0 N:0", "M:1", 0, "", "N:0"},
		{"the same, soon after a failover", "- N:0 N:0", "M:1", recent, "", "M:1"},
		{"the same, and it is lost", "- N:0 N:0", "M:1", lost, "", "N:0"},
		{"the one that has promoted it does not respond yet", "- M:1 M:1", "R:2", lost | recent, "", "R:2"},
		{"moved by hand, one was left out", "M:1 N:0 N:0", "M:1", 0, "", "M:1"},
		{"the same, after a while", "M:1 N:0 N:0", "M:1", beaten, "", "N:0"},
		{"the same, at start", "M:1 N:0 N:0", "", 0, "", "M:1"},
		{"the same, at start, after a while", "M:1 N:0 N:0", "", beaten, "", "N:0"},
		{"the same, soon after a failover", "M:1 N:0 N:0", "M:1", recent | beaten, "", "N:0"},
		{"the same, and it is lost", "M:1 N:0 N:0", "M:1", lost, "", "N:0"},
		{"the same, later", "M:1 N:0 N:0", "N:0", 0, "M:1", "N:0"},
		{"the same, and that is lost too", "M:1 N:0 N:0", "N:0", lost, "M:1", "N:0"},
		{"most name the one that was left", "M:1 M:1 N:0", "N:0", 0, "M:1", "M:1"},
		{"a failover after it", "M:1 S:1 S:1", "N:0", recent, "M:1", "S:1"},
		{"one of three, and it is lost", "N:0 - -", "M:1", lost, "", "N:0"},
		{"two differ, and it is lost", "N:0 O:0 -", "M:1", lost, "", "M:1"},
		{"the same server, configured anew", "- M:0 M:0", "M:7", 0, "", "M:0"},
		{"all respond, one Sentinel in the URL", "N:0", "M:1", 0, "", "N:0"},

		// Nobody names one.
		{"none responds any more", "- - -", "M:1", 0, "", "M:1"},
		{"none, and it is lost", "- - -", "M:1", lost, "", "M:1"},
		{"renamed", "? ? ?", "M:1", lost, "", "M:1"},
		{"renamed by most", "? ? M:1", "M:1", 0, "", "M:1"},
	}
	for _, test := range tests {
		var replies []sentinelReply
		for i, text := range strings.Fields(test.replies) {
			r := sentinelReply{sentinel: "s" + strconv.Itoa(i), namedMaster: parseNamed(text)}
			switch text {
			case "-":
				r.err = errSilent
			case "?":
				r.err = errNoSuchMaster
			}
			replies = append(replies, r)
		}
		inUse := masterInUse{
			parseNamed(test.inUse), test.state&lost != 0, test.state&recent != 0, test.state&beaten != 0, parseNamed(test.failed),
		}
		if got := chooseMaster(replies, inUse); got != parseNamed(test.want) {
			t.Errorf("%s: %s, %q in use (%d): got %v, want %s", test.name, test.replies, test.inUse, test.state, got, test.want)
		}
	}
}

// parseNamed parses address:epoch. Any other text is no master.
func parseNamed(text string) (m namedMaster) {
	if address, epoch, ok := strings.Cut(text, ":"); ok {
		n, _ := strconv.ParseInt(epoch, 10, 64)
		m = namedMaster{address, n}
	}
	return m
}

// Whatever three Sentinels say again and again, the choice is the same the third time as the second, if the server can
// be reached: there is no flapping.
func TestChooseMasterIsStable(t *testing.T) {
	words := []sentinelReply{
		{err: errSilent}, {err: errNoSuchMaster}, {namedMaster: namedMaster{"A", 0}}, {namedMaster: namedMaster{"A", 1}},
		{namedMaster: namedMaster{"B", 0}}, {namedMaster: namedMaster{"B", 1}}, {namedMaster: namedMaster{"C", 1}},
	}
	pick := func(n int) sentinelReply { return words[n%len(words)] }
	starts := []namedMaster{{}, {"A", 0}, {"A", 1}, {"B", 1}, {"C", 2}}
	for n := range len(words) * len(words) * len(words) {
		replies := []sentinelReply{pick(n), pick(n / len(words)), pick(n / len(words) / len(words))}
		for _, start := range starts {
			for _, lost := range []bool{false, true} {
				first := chooseMaster(replies, masterInUse{namedMaster: start, lost: lost})
				failed := namedMaster{}
				if start.epoch > first.epoch {
					failed = start
				}
				second := chooseMaster(replies, masterInUse{namedMaster: first, failed: failed})
				third := chooseMaster(replies, masterInUse{namedMaster: second, failed: failed})
				if second != first || third != second {
					t.Errorf("%v, %v in use, lost %v: %v, then %v, then %v", replies, start, lost, first, second, third)
				}
			}
		}
	}
}

func TestDissent(t *testing.T) {
	m := namedMaster{"10.0.0.1:6379", 3}
	other := sentinelReply{"s2:26379", namedMaster{"10.0.0.9:6379", 0}, nil}
	tests := []struct {
		replies []sentinelReply
		want    string
		unknown bool
	}{
		{[]sentinelReply{{"s1:26379", m, nil}, {"s2:26379", m, nil}}, "", false},
		{[]sentinelReply{{"s1:26379", m, nil}, {sentinel: "s2:26379", err: errSilent}}, "", false},
		{[]sentinelReply{{sentinel: "s1:26379", err: errSilent}, {sentinel: "s2:26379", err: errSilent}}, "", false},
		{[]sentinelReply{{"s1:26379", m, nil}, other, {sentinel: "s3:26379", err: errors.New("EOF")}},
			"s1:26379 names 10.0.0.1:6379 (epoch 3), s2:26379 names 10.0.0.9:6379 (epoch 0), s3:26379 names none (EOF)", false},
		{[]sentinelReply{{"s1:26379", m, nil}, {sentinel: "s2:26379", err: errNoSuchMaster}},
			"s1:26379 names 10.0.0.1:6379 (epoch 3), s2:26379 names none (no Sentinel knows a master of that name)", false},
		{[]sentinelReply{{sentinel: "s1:26379", err: errSilent}, {sentinel: "s2:26379", err: errNoSuchMaster}},
			"s1:26379 names none (no reply yet), s2:26379 names none (no Sentinel knows a master of that name)", true},
	}
	for _, test := range tests {
		if got := dissent(test.replies, m); got != test.want {
			t.Errorf("%v:\n got %q\nwant %q", test.replies, got, test.want)
		}
		if got := nameUnknown(test.replies); got != test.unknown {
			t.Errorf("%v: the name is unknown: %v", test.replies, got)
		}
	}
}

// The log says that Sentinels disagree, and that they agree again, when that has lasted for a while.
func TestDissentLog(t *testing.T) {
	began := time.Now()
	var d dissentLog
	tests := []struct {
		at       time.Duration
		disagree bool
		want     bool
	}{
		{0, false, false},
		{1, true, false}, // a failover
		{2, false, false},
		{3, true, false},
		{3 + dissentDelay - 1, true, false},
		{3 + dissentDelay, true, true},
		{time.Minute, true, false}, // once
		{time.Minute + 1, false, false},
		{time.Minute + 2, true, false},
		{2 * time.Minute, false, false},
		{2*time.Minute + dissentDelay, false, true},
		{3 * time.Minute, false, false},
	}
	for i, test := range tests {
		if got := d.note(began.Add(test.at), test.disagree); got != test.want {
			t.Errorf("%s", fmt.Sprintf("row %d: got %v, want %v", i, got, test.want))
		}
	}
}
