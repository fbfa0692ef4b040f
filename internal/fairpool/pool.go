// Package fairpool bounds an amount of something that all users of a service have in common, such as bytes of memory,
// and gives each of them a share, so that nobody can take it from the others.
//
// The users of a Pool are members of groups. A member's share is an eighth of the pool, unless it is given another one;
// that of a group is a part that is set. Beyond its share, a member or a group may use what is free as long as half of
// the pool stays free. A member beyond its share never takes the last quarter of its group's share.
package fairpool

import (
	"cmp"
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

var (
	// ErrShare means that a member or its group would have more than its share, and that too little is free for that.
	ErrShare = errors.New("the share of the pool is used up")
	// ErrFull means that others use what a member could have by its share.
	ErrFull = errors.New("the pool is full")
	// ErrTooLong means that there is more to read than may be.
	ErrTooLong = errors.New("there is too much to read")
)

// A Pool is an amount that is shared. Its methods may be called concurrently. It remembers only those members that use
// something.
type Pool struct {
	size, memberShare, groupShare int64

	mu      sync.Mutex // guards the following
	stats   Stats
	groups  map[string]int64 // what each uses, more than 0
	members map[member]int64 // the same
}

type member struct{ group, name string }

// Stats is the state of a Pool.
type Stats struct {
	Size, Used int64
	OverShare  uint64 // claims that were refused with ErrShare
	Full       uint64 // and with ErrFull
}

// New returns a Pool of the given size (≥ 1). groupShare is the part of it, above 0 and at most 1, that is one group's
// share. A share is never less than 1.
func New(size int64, groupShare float64) *Pool {
	return &Pool{
		size: size, memberShare: max(size/8, 1), groupShare: max(int64(float64(size)*groupShare), 1),
		stats: Stats{Size: size}, groups: make(map[string]int64), members: make(map[member]int64),
	}
}

// Stats returns the present state of the pool.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Claim returns a Claim on the pool that has nothing yet, for the member of a group.
func (p *Pool) Claim(group, name string) *Claim {
	c := &Claim{pool: p, member: member{group, name}}
	c.share.Store(p.memberShare)
	return c
}

// A Claim is what one user has of a Pool. Its methods may be called concurrently.
type Claim struct {
	pool   *Pool
	member member
	amount int64        // guarded by pool.mu
	share  atomic.Int64 // of the member, whatever its other claims say
}

// Another returns a Claim for the same member, with the same share, which has nothing yet.
func (c *Claim) Another() *Claim {
	other := &Claim{pool: c.pool, member: c.member}
	other.share.Store(c.Share())
	return other
}

// Share returns the member's share.
func (c *Claim) Share() int64 { return c.share.Load() }

// SetShare gives the member a share of n, as far as c claims something, or an eighth of the pool if n is 0. What was
// taken stays taken. A nil Claim has no share.
func (c *Claim) SetShare(n int64) {
	if c != nil {
		c.share.Store(cmp.Or(n, c.pool.memberShare))
	}
}

// Add takes n (≥ 0) more, all or nothing. Errors: ErrShare, ErrFull.
func (c *Claim) Add(n int64) error {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	return c.add(n)
}

// add does what Add does. The caller holds pool.mu.
func (c *Claim) add(n int64) error {
	err := c.refusal(n)
	switch err {
	case nil:
		c.pool.change(c, n)
	case ErrShare:
		c.pool.stats.OverShare++
	case ErrFull:
		c.pool.stats.Full++
	}
	return err
}

// AddUpTo takes what c lacks of n, all or nothing. Errors: ErrShare, ErrFull.
func (c *Claim) AddUpTo(n int64) error {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	return c.add(max(n-c.amount, 0))
}

// Check returns the error that AddUpTo would return, and takes nothing.
func (c *Claim) Check(n int64) error {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	return c.refusal(max(n-c.amount, 0))
}

// Release gives back everything that was taken. It may be called more than once. A nil Claim has nothing.
func (c *Claim) Release() {
	if c == nil {
		return
	}
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.pool.change(c, -c.amount)
}

// refusal returns why n more cannot be taken, nil if they can. The caller holds pool.mu.
func (c *Claim) refusal(n int64) error {
	p := c.pool
	ofMember, ofGroup, ofAll := p.members[c.member]+n, p.groups[c.member.group]+n, p.stats.Used+n
	isOver := ofMember > c.share.Load()
	switch {
	case n == 0:
		return nil // what c has stays its own
	case !isOver && ofGroup <= p.groupShare:
		if ofAll > p.size {
			return ErrFull
		}
		return nil
	case ofAll > p.size/2, isOver && ofGroup > p.groupShare-p.groupShare/4:
		return ErrShare
	}
	return nil
}

// change adds n to what c has. The caller holds p.mu.
func (p *Pool) change(c *Claim, n int64) {
	if n == 0 {
		return
	}
	c.amount += n
	p.stats.Used += n
	change(p.members, c.member, n)
	change(p.groups, c.member.group, n)
}

// change adds n to the count of a key, and forgets a count of 0.
func change[K comparable](counts map[K]int64, key K, n int64) {
	if counts[key] += n; counts[key] == 0 {
		delete(counts, key)
	}
}

const firstRead = 2 << 10 // bytes of which nothing is known

// ReadAll reads r to its end into memory. Beyond the first free bytes (≥ 1) it takes the memory as the bytes arrive.
// size is how many bytes r has if that is known, else -1. Errors, with what was read before: ErrTooLong for more than
// most bytes; ErrShare, ErrFull; those of r.
func (c *Claim) ReadAll(r io.Reader, size, free, most int64) ([]byte, error) {
	enough := most + 1 // bytes to allocate, one more than are expected: the end is found by reading
	first := min(free, firstRead)
	if size >= 0 {
		enough = min(enough, size+1)
		first = min(free, enough)
	}
	data := make([]byte, 0, first)
	for {
		if len(data) == cap(data) {
			larger := min(2*int64(cap(data)), enough)
			if larger <= int64(len(data)) { // r has more than it was said to have
				larger = min(2*int64(cap(data)), most+1)
			}
			if err := c.Add(max(larger, free) - max(int64(cap(data)), free)); err != nil {
				return data, err
			}
			data = append(make([]byte, 0, larger), data...)
		}
		n, err := r.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		switch {
		case int64(len(data)) > most:
			return data, ErrTooLong
		case err == io.EOF:
			return data, nil
		case err != nil:
			return data, err
		}
	}
}
