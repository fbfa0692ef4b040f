package redisdb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// namedMaster is what a Sentinel says about the master. Of two, the one with the higher epoch is newer: each failover
// begins an epoch. A master that is configured by hand has epoch 0.
type namedMaster struct {
	address string // "" for no master
	epoch   int64
}

// sentinelReply is what one Sentinel has replied.
type sentinelReply struct {
	sentinel string // its address
	namedMaster
	err error // it names no master
}

// masterInUse is the master to which commands go.
type masterInUse struct {
	namedMaster
	lost   bool        // it could not be reached when that was last tried, or was no master
	recent bool        // another one was left for it less than settleTime ago
	beaten bool        // most Sentinels have named another one, the rival, for settleTime
	failed namedMaster // was lost and left, though a Sentinel named it with a higher epoch
}

// settleTime is how long the Sentinels may take after a failover until all know the new master. They tell each other
// every two seconds.
const settleTime = 3 * time.Second

// chooseMaster returns which server is the master, if each Sentinel of the URL has given one of the replies.
//
// The highest epoch wins: the Sentinel that has promoted a replica knows it before the others do. In one epoch the
// address wins that most name, and on a draw the one in use. A Sentinel that was configured by hand, or cut off from
// the others, can be wrong, so another master with an epoch that is not higher must be named by most Sentinels of the
// URL. If the one in use is lost, it is enough that all agree who respond, or most of them in its epoch; and if most
// name another one, that is used even if a Sentinel names the lost one with a higher epoch. In a failover the Sentinel
// that knows of it may be slow to respond while the others do not know of it yet. So none of this leads to a lower
// epoch, or away from a lost master, soon after another change. But if the others have not heard of a higher epoch for
// settleTime, the Sentinel that names it is wrong.
func chooseMaster(replies []sentinelReply, inUse masterInUse) namedMaster {
	most := majority(replies)
	named := slices.DeleteFunc(slices.Clone(replies), func(r sentinelReply) bool {
		return r.err != nil || r.namedMaster == inUse.failed && r.namedMaster != most
	})
	if len(named) == 0 {
		return inUse.namedMaster
	}
	best := newest(named, inUse)
	switch {
	case inUse.beaten:
		return most
	case inUse.address == "", best.epoch > inUse.epoch, best == most && best.epoch == inUse.epoch:
		return best
	case inUse.recent:
		return inUse.namedMaster
	case best == most:
		return best
	case inUse.lost:
		return inUse.replacement(best, most, votes(named, best) == len(named))
	}
	return inUse.namedMaster
}

// replacement returns what is used instead of a master that is lost. best is what chooseMaster would choose, and all
// who respond name it if unanimous is true.
func (m masterInUse) replacement(best, most namedMaster, unanimous bool) namedMaster {
	switch {
	case best == m.namedMaster && most.address != "":
		return most
	case best.epoch == m.epoch || unanimous || most.address != "":
		return best
	}
	return m.namedMaster
}

// majority returns the master that more than half of the Sentinels name in one epoch, else a namedMaster without an
// address.
func majority(replies []sentinelReply) namedMaster {
	for _, r := range replies {
		if r.err == nil && 2*votes(replies, r.namedMaster) > len(replies) {
			return r.namedMaster
		}
	}
	return namedMaster{}
}

// rival returns the master that most Sentinels name although another one names a higher epoch, else a namedMaster
// without an address.
func rival(replies []sentinelReply) namedMaster {
	most := majority(replies)
	for _, r := range replies {
		if r.err == nil && most.address != "" && r.epoch > most.epoch {
			return most
		}
	}
	return namedMaster{}
}

// votes returns how many Sentinels name m.
func votes(replies []sentinelReply, m namedMaster) (n int) {
	for _, r := range replies {
		if r.err == nil && r.namedMaster == m {
			n++
		}
	}
	return n
}

// newest returns the master of the highest epoch that most of the replies name. On a draw it is the one in use, unless
// that is lost: then it is another one, else the first.
func newest(replies []sentinelReply, inUse masterInUse) (best namedMaster) {
	for _, r := range replies {
		more := votes(replies, r.namedMaster) - votes(replies, best)
		preferred := !inUse.lost && r.address == inUse.address || inUse.lost && best.address == inUse.address
		switch {
		case best.address == "", r.epoch > best.epoch:
			best = r.namedMaster
		case r.epoch == best.epoch && (more > 0 || more == 0 && preferred):
			best = r.namedMaster
		}
	}
	return best
}

// dissent returns what each Sentinel says, if one of those that respond does not name the master that was chosen, else
// "".
func dissent(replies []sentinelReply, chosen namedMaster) string {
	differ := false
	words := make([]string, len(replies))
	for i, r := range replies {
		said := fmt.Sprintf("names %s (epoch %d)", r.address, r.epoch)
		if r.err != nil {
			said = fmt.Sprintf("names none (%v)", r.err)
		}
		words[i] = r.sentinel + " " + said
		differ = differ || r.responded() && r.address != chosen.address
	}
	if !differ {
		return ""
	}
	return strings.Join(words, ", ")
}

// responded reports whether the Sentinel has said something about the master, if only that it does not know it.
func (r sentinelReply) responded() bool { return r.err == nil || errors.Is(r.err, errNoSuchMaster) }

// nameUnknown reports whether all Sentinels that respond, one at least, do not know a master of the name.
func nameUnknown(replies []sentinelReply) bool {
	unknown := 0
	for _, r := range replies {
		if errors.Is(r.err, errNoSuchMaster) {
			unknown++
		} else if r.err == nil {
			return false
		}
	}
	return unknown > 0
}

// dissentDelay is how long Sentinels must disagree, or agree again, before the log says so. Until then it is a failover
// that some have not heard of.
const dissentDelay = settleTime

// dissentLog decides when the log says that the Sentinels disagree, and that they agree again.
type dissentLog struct {
	logged bool      // the last line says that they disagree
	since  time.Time // when it ceased to be true; zero: it is
}

// note takes down whether the Sentinels disagree at a time, and reports whether the log is to say so.
func (d *dissentLog) note(now time.Time, disagree bool) bool {
	switch {
	case disagree == d.logged:
		d.since = time.Time{}
	case d.since.IsZero():
		d.since = now
	case now.Sub(d.since) >= dissentDelay:
		d.logged, d.since = disagree, time.Time{}
		return true
	}
	return false
}
