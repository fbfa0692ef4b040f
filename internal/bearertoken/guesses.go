package bearertoken

import (
	"sync"
	"time"

	"tollgate/internal/telemetry"
)

// Bounds of guessing at the tokens of operators and admins.
const (
	freeRefusals      = 10 // of one address in refusalWindow
	refusalWindow     = time.Minute
	refusalDelay      = time.Second // of each further one
	maxDelayed        = 64          // refusals that wait at a time, so that they do not take all connections
	maxGuessAddresses = 10_000      // about 3 MB
)

// Guesses slows down those who guess at the tokens of operators and admins: after freeRefusals refused tokens of an
// address in a minute, each further refusal of that address is delayed. Tokens that are right are never delayed, so
// nobody can lock an admin out. Its methods may be called concurrently.
type Guesses struct {
	log     *telemetry.Logger
	delayed chan struct{} // holds an element for each refusal that waits

	mu        sync.Mutex
	addresses map[string]*refusedTokens // guarded by mu
	logged    time.Time                 // when the log last said that somebody guesses; guarded by mu
	swept     time.Time                 // when addresses was last rid of what no longer counts; guarded by mu
}

// refusedTokens is when the last tokens of an address were refused.
type refusedTokens struct {
	times [freeRefusals]time.Time // a ring
	next  int                     // the place of the oldest
}

// NewGuesses returns a Guesses that logs when somebody guesses.
func NewGuesses(log *telemetry.Logger) *Guesses {
	return &Guesses{
		log: log, delayed: make(chan struct{}, maxDelayed), addresses: make(map[string]*refusedTokens),
	}
}

// NoteRefusal notes that a token of the address is refused, and waits if the response is to be delayed. mayWait is
// false if connections are too scarce for that.
func (g *Guesses) NoteRefusal(address string, mayWait bool) {
	if !g.count(address, time.Now()) || !mayWait {
		return
	}
	select {
	case g.delayed <- struct{}{}:
		time.Sleep(refusalDelay)
		<-g.delayed
	default:
	}
}

// count counts a refused token, and reports whether the address had freeRefusals in the minute before. If too many
// addresses have some, which takes an attacker with as many, every other one counts as if it had.
func (g *Guesses) count(address string, now time.Time) (tooMany bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.addresses[address]
	if r == nil && g.makeRoom(now) {
		r = new(refusedTokens)
		g.addresses[address] = r
	}
	if r != nil {
		tooMany = now.Sub(r.times[r.next]) < refusalWindow
		r.times[r.next] = now
		r.next = (r.next + 1) % freeRefusals
	} else {
		tooMany = true
	}
	if tooMany && now.Sub(g.logged) >= refusalWindow {
		g.logged = now
		g.log.Warnf("More than %d admin or metrics tokens of %s were refused within a minute: somebody may be guessing. "+
			"Each further refusal takes %s", freeRefusals, address, refusalDelay)
	}
	return tooMany
}

// makeRoom reports whether there is room for another address. It looks for what no longer counts at most once a second,
// since that takes long. The caller holds g.mu.
func (g *Guesses) makeRoom(now time.Time) bool {
	if len(g.addresses) >= maxGuessAddresses && now.Sub(g.swept) >= time.Second {
		g.swept = now
		for address, r := range g.addresses {
			if newest := r.times[(r.next+freeRefusals-1)%freeRefusals]; now.Sub(newest) >= refusalWindow {
				delete(g.addresses, address)
			}
		}
	}
	return len(g.addresses) < maxGuessAddresses
}
