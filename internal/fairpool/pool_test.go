package fairpool

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// take adds n for a member of a group.
func take(p *Pool, group, member string, n int64) error { return p.Claim(group, member).Add(n) }

// TestShares takes parts of a pool of 80, of which a member's share is 10 and a group's is 40, one after the other.
func TestShares(t *testing.T) {
	type step struct {
		group, member string
		n             int64
		want          error
	}
	tests := map[string][]step{
		"a share":            {{"a", "1", 10, nil}},
		"nothing":            {{"a", "1", 0, nil}},
		"a member alone":     {{"a", "1", 30, nil}, {"a", "1", 1, ErrShare}},
		"a member at once":   {{"a", "1", 31, ErrShare}},
		"a group of members": {{"a", "1", 10, nil}, {"a", "2", 10, nil}, {"a", "3", 10, nil}, {"a", "4", 10, nil}},
		"more than a group's": {
			{"a", "1", 10, nil}, {"a", "2", 10, nil}, {"a", "3", 20, ErrShare}, {"a", "3", 10, nil}, {"a", "4", 11, ErrShare},
			{"a", "4", 10, nil}, {"a", "5", 1, ErrShare},
		},
		"the last quarter is others'": {{"a", "1", 30, nil}, {"a", "2", 10, nil}, {"a", "3", 1, ErrShare}},
		"a member beyond its share leaves half of the pool": {
			{"b", "1", 10, nil}, {"b", "2", 10, nil}, {"b", "3", 10, nil}, {"a", "1", 11, ErrShare}, {"a", "1", 10, nil},
		},
		"another group's share stays": {
			{"a", "1", 30, nil}, {"a", "2", 10, nil}, {"b", "1", 11, ErrShare}, {"b", "1", 10, nil}, {"b", "2", 10, nil},
			{"b", "3", 10, nil}, {"b", "4", 10, nil}, {"b", "4", 1, ErrShare}, {"c", "1", 1, ErrFull},
		},
		"full through two others": {
			{"a", "1", 30, nil}, {"a", "2", 10, nil}, {"b", "1", 10, nil}, {"b", "2", 10, nil}, {"b", "3", 10, nil},
			{"b", "4", 8, nil}, {"c", "1", 2, nil}, {"c", "1", 1, ErrFull}, {"c", "1", 20, ErrShare},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			p := New(80, 0.5)
			for i, s := range steps {
				if err := p.Claim(s.group, s.member).Check(s.n); err != s.want {
					t.Errorf("step %d: Check: got %v, want %v", i, err, s.want)
				}
				if err := take(p, s.group, s.member, s.n); err != s.want {
					t.Fatalf("step %d: got %v, want %v", i, err, s.want)
				}
			}
		})
	}
}

// A member that is given a share of its own has that, up to its group's, until it has an eighth again.
func TestMemberShare(t *testing.T) {
	p := New(80, 0.5)
	for _, other := range []string{"1", "2", "3", "4"} {
		if err := take(p, "b", other, 10); err != nil {
			t.Fatal(err)
		}
	}
	c := p.Claim("a", "1")
	for i, step := range []struct{ set, share, n, want int64 }{
		{0, 10, 11, 0}, {20, 20, 21, 0}, {20, 20, 20, 20}, {1000, 1000, 21, 20}, {1000, 1000, 20, 40}, {0, 10, 1, 40},
		{5, 5, 0, 40},
	} {
		c.SetShare(step.set)
		if got := c.Another().Share(); got != step.share {
			t.Errorf("step %d: the share is %d, want %d", i, got, step.share)
		}
		_ = c.Add(step.n)
		if used := p.Stats().Used - 40; used != step.want {
			t.Errorf("step %d: %d are used, want %d", i, used, step.want)
		}
	}
	if err := c.AddUpTo(40); err != nil {
		t.Errorf("what it has is not its own: %v", err)
	}
	(*Claim)(nil).SetShare(1)
}

// TestAddUpTo takes what a claim lacks, and what another claim of the same member has does not count as its own.
func TestAddUpTo(t *testing.T) {
	p := New(80, 0.5)
	a, b := p.Claim("a", "1"), p.Claim("a", "1")
	for _, step := range []struct {
		claim      *Claim
		upTo, used int64
		want       error
	}{{a, 5, 5, nil}, {a, 5, 5, nil}, {a, 3, 5, nil}, {a, 9, 9, nil}, {b, 9, 18, nil}, {b, 100, 18, ErrShare}, {b, 9, 18, nil}} {
		if err := step.claim.Check(step.upTo); err != step.want {
			t.Errorf("Check(%d): got %v, want %v", step.upTo, err, step.want)
		}
		if err := step.claim.AddUpTo(step.upTo); err != step.want || p.Stats().Used != step.used {
			t.Errorf("AddUpTo(%d): got %v with %d used, want %v with %d", step.upTo, err, p.Stats().Used, step.want, step.used)
		}
	}
}

// TestGroupShare lets one group take what its share allows, with members that are within theirs.
func TestGroupShare(t *testing.T) {
	for share, want := range map[float64]int64{0.1: 40, 0.25: 40, 0.5: 40, 0.75: 60, 1: 80} {
		p, taken := New(80, share), int64(0)
		for member := 0; take(p, "a", strconv.Itoa(member/10), 1) == nil; member++ {
			taken++
		}
		if taken != want {
			t.Errorf("with a group's share of %v: got %d of 80, want %d", share, taken, want)
		}
	}
}

// TestSmallPools gives everybody a share of 1 in pools of less than 8.
func TestSmallPools(t *testing.T) {
	for size, want := range map[int64]int{1: 1, 2: 2, 3: 3} {
		p, taken := New(size, 0.5), 0
		for _, group := range []string{"a", "b", "c", "d"} {
			if take(p, group, "1", 1) == nil {
				taken++
			}
		}
		if taken != want {
			t.Errorf("a pool of %d: %d groups have got 1, want %d", size, taken, want)
		}
	}
}

// TestRelease gives back what was taken, once, and finds that the pool forgets who has nothing.
func TestRelease(t *testing.T) {
	p := New(80, 0.5)
	a, b := p.Claim("a", "1"), p.Claim("a", "1")
	for _, claim := range []*Claim{a, a, b} {
		if err := claim.Add(10); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Add(1); err != ErrShare {
		t.Fatalf("two claims of one member: got %v, want %v", err, ErrShare)
	}
	a.Release()
	a.Release()
	if got, want := p.Stats(), (Stats{Size: 80, Used: 10, OverShare: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	b.Release()
	if used := p.Stats().Used; used != 0 || len(p.groups)+len(p.members) != 0 {
		t.Errorf("when all is given back: %d used by %d groups", used, len(p.groups))
	}
}

// TestStats counts refusals by their reason.
func TestStats(t *testing.T) {
	p := New(2, 0.5)
	for i, want := range []error{nil, ErrShare, nil, ErrFull, ErrFull} {
		if err := take(p, []string{"a", "a", "b", "c", "d"}[i], "1", 1); err != want {
			t.Fatalf("step %d: got %v, want %v", i, err, want)
		}
	}
	if got, want := p.Stats(), (Stats{Size: 2, Used: 2, OverShare: 1, Full: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestConcurrency lets goroutines take and give back at random. The pool is never more than full, and empty at the end.
func TestConcurrency(t *testing.T) {
	p := New(100, 0.5)
	var users sync.WaitGroup
	for i := range 16 {
		users.Go(func() {
			claim := p.Claim(strconv.Itoa(i%3), strconv.Itoa(i%5))
			for range 2000 {
				if rand.N(3) == 0 {
					claim.Release()
				} else {
					_ = claim.Add(rand.N[int64](8))
				}
				if s := p.Stats(); s.Used < 0 || s.Used > s.Size {
					t.Errorf("%d of %d are used", s.Used, s.Size)
					return
				}
			}
			claim.Release()
		})
	}
	users.Wait()
	if used := p.Stats().Used; used != 0 || len(p.groups)+len(p.members) != 0 {
		t.Errorf("when all is given back: %d used by %d groups", used, len(p.groups))
	}
}

// TestReadAll reads into a pool of 800 bytes, of which a member may have 300, with the first 10 free.
func TestReadAll(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name              string
		bytes, size, most int64
		want              int64 // bytes that are read
		err               error
		taken             int64 // at most
	}{
		{"nothing", 0, 0, 1000, 0, nil, 0},
		{"nothing, of unknown size", 0, -1, 1000, 0, nil, 0},
		{"within what is free", 9, 9, 1000, 9, nil, 0},
		{"of unknown size", 9, -1, 1000, 9, nil, 0},
		{"beyond it", 100, 100, 1000, 100, nil, 91},
		{"beyond it, of unknown size", 100, -1, 1000, 100, nil, 190},
		{"less than was said", 20, 1 << 40, 1 << 41, 20, nil, 30},
		{"more than was said", 100, 20, 1000, 100, nil, 190},
		{"more than was said, within what is free", 8, 2, 1000, 8, nil, 6},
		{"the most", 100, 100, 100, 100, nil, 91},
		{"more than the most", 200, -1, 100, 101, ErrTooLong, 91},
		{"more than the most, as was said", 200, 200, 100, 101, ErrTooLong, 91},
		{"more than the share", 400, 400, 1000, 160, ErrShare, 300},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			document := bytes.Repeat([]byte("0123456789"), 40)[:test.bytes]
			p := New(800, 0.5)
			claim := p.Claim("a", "1")
			data, err := claim.ReadAll(iotest.OneByteReader(bytes.NewReader(document)), test.size, 10, test.most)
			if int64(len(data)) != test.want || !bytes.HasPrefix(document, data) || err != test.err {
				t.Errorf("got %d bytes and %v, want %d and %v", len(data), err, test.want, test.err)
			}
			if used := p.Stats().Used; used > test.taken {
				t.Errorf("%d bytes were taken, want at most %d", used, test.taken)
			}
		})
	}
	failing := io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken))
	if data, err := New(8, 1).Claim("a", "1").ReadAll(failing, -1, 10, 100); string(data) != "abc" || err != broken {
		t.Errorf("got %q and %v, want abc and %v", data, err, broken)
	}
}

// TestReadAllTakesWhatArrives promises much and sends little: what is promised is not taken from others.
func TestReadAllTakesWhatArrives(t *testing.T) {
	p := New(800, 0.5)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = p.Claim("a", "1").ReadAll(r, 700, 10, 1000)
	}()
	if _, err := w.Write([]byte("0123456789abc")); err != nil {
		t.Fatal(err)
	}
	if used := p.Stats().Used; used > 10 {
		t.Errorf("13 bytes have come of 700 that were promised: got %d, want at most 10", used)
	}
	w.Close()
	<-done
}

// BenchmarkClaim measures what a request pays for a place.
func BenchmarkClaim(b *testing.B) {
	p := New(1<<20, 0.5)
	for b.Loop() {
		claim := p.Claim("acme", "user_00000000-0000-4000-8000-000000000000")
		_ = claim.Add(1)
		claim.Release()
	}
}
