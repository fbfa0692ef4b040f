package gateway

import (
	"errors"
	"time"

	"tollgate/internal/llmwire"
)

// An Account is what one request is paid from. Each step is given up at its deadline. Errors other than those named
// here are refusals, which Serve returns as they are. Renew and Settle may be called after the request has ended, and
// both at the same time.
type Account interface {
	// Hold takes tokens out of the balance until they are settled or r.TTL has passed, all in one step. Errors:
	// InsufficientError; DeniedError; ErrUnavailable, with the ID of the hold that may have been taken.
	Hold(deadline time.Time, r HoldRequest) (Hold, error)

	// Renew lets a hold last ttl from now on. If its tokens were returned, it takes them again, or as many as are left.
	// It does nothing to a hold that was settled. Errors: ErrNoHold; ErrUnavailable.
	Renew(deadline time.Time, hold Hold, ttl time.Duration) error

	// Settle ends a hold: u.Cost is charged instead, down to a balance of 0, also if the hold's time has passed. To
	// repeat it with the same u changes nothing. Errors: ErrNoHold; ErrUnavailable.
	Settle(deadline time.Time, holdID string, u Usage) (Balance, error)

	// Charge takes u.Cost, all or nothing, for a request that may use the given models. 0 takes nothing, but needs a
	// balance of 1. Errors: InsufficientError; DeniedError; ErrUnavailable.
	Charge(deadline time.Time, models []string, u Usage) (Balance, error)

	// Count counts a request that is free, whatever the balance is. Error: ErrUnavailable.
	Count(deadline time.Time) error

	// Refund undoes a Charge of that many tokens, maybe 0: the client does not get what they were for. Errors: any; it is
	// only logged, and the fee is lost then.
	Refund(deadline time.Time, tokens int64) error
}

// A QueuedAccount is an Account that carries out its steps, and those of others of this process that share its balance,
// in the order in which they were queued.
type QueuedAccount interface {
	Account

	// SettleQueued does what Settle does. It may call queued before it returns, as soon as all steps of this process that
	// begin from then on find the hold settled. In rare cases, as when the account was renamed, it is called too early, or
	// more than once.
	SettleQueued(deadline time.Time, holdID string, u Usage, queued func()) (Balance, error)
}

// A SessionAccount is what one session is paid from. Its methods may be called at the same time.
type SessionAccount interface {
	Account

	// Check returns the refusal that Hold would return now, whatever the balance, the rate and the requests under way are,
	// and nil if the account may go on with the models. Errors: DeniedError; ErrNoHold if the account is gone;
	// ErrUnavailable; other refusals.
	Check(deadline time.Time, models []string) error

	// Exchange settles a hold as Settle does, and takes another one in its place, in one step. The other one stands for
	// what the first did: the session, or nothing if that was a further one. The rate limit and the requests under way
	// do not refuse it. To repeat Exchange with the same arguments, and the ID of the hold that it has returned, changes
	// nothing more: if that was taken, it is returned again, and else tried again. Errors are those of Hold, after which
	// no hold was taken, and ErrNoHold if the account is gone or the other hold was settled before. After all of them but
	// ErrUnavailable the first hold is settled, and the Balance says what that has led to: Left is what was left before
	// the other one was taken. The Hold has an ID in any case, and no Owner; Settle charges for one that was refused as
	// for one whose time has passed.
	Exchange(deadline time.Time, holdID string, u Usage, next HoldRequest) (Balance, Hold, error)
}

// A HoldRequest says what to hold: Most, or everything that is left if that is at least Least.
type HoldRequest struct {
	Least, Most int64 // tokens of the account, at least 1
	TTL         time.Duration
	Models      []string // that the request may use: the account must allow all of them

	// Further says that the hold is one more of a session. It counts neither for the rate limit nor among the requests
	// that the account has under way.
	Further bool
	// ID is "", except to repeat an Exchange: then it is the ID that this has returned.
	ID string

	// Half leaves something to others: between Least and Most, only Least and half of what is left beyond it are held.
	Half bool
	// Patient refuses what the balance does not cover, but would if what other requests hold in the account came back:
	// then no less than Most is held.
	Patient bool
}

// A Hold is tokens that were taken out of a balance and must be settled once.
type Hold struct {
	ID     string // names it to Settle; never "" if it was taken
	Tokens int64  // that were taken
	Owner  string // whose they were, the same for all keys of a user: endpoints may be told a digest of it
}

// Usage is what is charged for.
type Usage struct {
	Endpoint      string // "" if none generates anything
	Model         string // that it is asked for; "" if none, and cut if it is longer than a config's may be
	llmwire.Usage        // of all models together
	Cost          int64  // tokens of the account
	IsPart        bool   // of what a session uses, which counts as one request at its end
}

// A Balance is what a charge led to.
type Balance struct {
	Charged int64 // tokens, less than the cost if fewer were there
	Left    int64 // tokens in the account after it
}

var (
	// ErrUnavailable means that a step of an Account may or may not have been done.
	ErrUnavailable = errors.New("the account cannot be reached")
	// ErrNoHold means that there is nothing to settle any more.
	ErrNoHold = errors.New("no such hold")
)

// An InsufficientError is the refusal of a hold or a charge that needs more tokens than are left.
type InsufficientError struct {
	Left int64 // tokens in the account
	Held int64 // tokens that other requests hold in it, which come back at most
}

// Error returns a sentence without numbers.
func (InsufficientError) Error() string { return "not enough tokens are left" }

// A DeniedError is the refusal of a hold or a charge for a model that the account does not allow.
type DeniedError struct {
	Allowed ModelNames // the models that it allows
}

// Error returns a sentence without the names.
func (DeniedError) Error() string { return "the account does not allow the model" }

// An Error is a refusal or a failure that says itself how it is sent.
type Error struct {
	Status  int    // 499, which nobody receives, if the client has hung up
	Message string // a sentence for the client
}

// Error returns the message.
func (e Error) Error() string { return e.Message }
