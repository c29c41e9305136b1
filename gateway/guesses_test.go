package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// table is guesses with a clock that stands, and who began.
type table struct {
	*guesses
	t   *testing.T
	now time.Time
}

func newTable(t *testing.T, atOnce int) *table {
	return &table{newGuesses(atOnce), t, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func (s *table) attempt(user, from string) *attempt {
	return &attempt{user: user, address: addressOf(from + ":1"), begin: make(chan error, 1)}
}

// ask wants a check; what became of it is "begins", "waits" or "refused".
func (s *table) ask(a *attempt) string {
	if err := s.guesses.ask(s.now, a); err != nil {
		return "refused"
	}
	return s.state(a)
}

func (s *table) state(a *attempt) string {
	select {
	case err := <-a.begin:
		if err != nil {
			return "refused"
		}
		return "begins"
	default:
		return "waits"
	}
}

func (s *table) want(what, got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// check asks for a check that nothing stands before, and says how it ended.
func (s *table) check(user, from string, right bool) string {
	a := s.attempt(user, from)
	got := s.ask(a)
	if got == "begins" {
		s.done(s.now, a, right)
	}
	return got
}

// A hundred guesses from one address are in nobody's way: others wait for one of them, not for all.
func TestGuessesTakeTurns(t *testing.T) {
	s := newTable(t, 1)
	var flood []*attempt
	for i := range maxQueuedBy + 1 {
		flood = append(flood, s.attempt(fmt.Sprint("user", i), "10.0.0.1"))
		s.want("of many", s.ask(flood[i]), map[bool]string{true: "begins", false: "waits"}[i == 0])
	}
	s.want("one more of them", s.ask(s.attempt("alice", "10.0.0.1")), "refused")
	b, c := s.attempt("bob", "10.0.0.2"), s.attempt("carol", "10.0.0.3")
	s.want("another's", s.ask(b), "waits")
	s.want("a third one's", s.ask(c), "waits")
	s.done(s.now, flood[0], false)
	s.want("the second of many", s.state(flood[1]), "begins")
	s.done(s.now, flood[1], false)
	s.want("another's, after two", s.state(b), "begins")
	s.done(s.now, b, true)
	s.want("a third one's", s.state(c), "begins")
	s.done(s.now, c, true)
	s.want("the third of many", s.state(flood[2]), "begins")

	// Whoever was here before does not wait for all addresses of the world.
	for i := range 50 {
		s.want("from everywhere", s.ask(s.attempt("x", fmt.Sprintf("10.1.0.%d", i))), "waits")
	}
	again := s.attempt("bob", "10.0.0.2")
	s.want("who is familiar", s.ask(again), "waits")
	s.done(s.now, flood[2], false)
	s.want("who is familiar, next", s.state(again), "begins")
}

// Wrong ones count, by address and by user, and both come back with time. Right ones do not, nor does who has logged in before pay for
// what others guess.
func TestGuessesAreLimited(t *testing.T) {
	s := newTable(t, 1)
	s.want("alice, at first", s.check("alice", "10.0.0.9", true), "begins")
	for i := range addressBurst {
		s.want("a wrong one", s.check(fmt.Sprint("u", i), "10.0.0.1", false), "begins")
	}
	s.want("one too many", s.check("u", "10.0.0.1", true), "refused")
	var many *tooMany
	if err := s.guesses.ask(s.now, s.attempt("u", "10.0.0.1")); !errors.As(err, &many) || many.after <= 0 || many.after > addressEvery {
		t.Errorf("it is told %+v", err)
	}
	s.want("by another address", s.check("u", "10.0.0.2", true), "begins")
	s.now = s.now.Add(addressEvery)
	s.want("a second later", s.check("u", "10.0.0.1", false), "begins")
	s.want("twice, a second later", s.check("u", "10.0.0.1", false), "refused")

	for i := range userBurst {
		s.want("a guess at alice", s.check("alice", fmt.Sprintf("10.2.0.%d", i), false), "begins")
	}
	s.want("one too many at alice", s.check("alice", "10.2.1.1", true), "refused")
	s.want("at somebody else, from there", s.check("carol", "10.2.1.1", true), "begins")
	s.want("alice, from where she is", s.check("alice", "10.0.0.9", true), "begins")
	for range addressBurst {
		s.want("wrong, from where alice is", s.check("alice", "10.0.0.9", false), "begins")
	}
	s.want("too many, from where alice is", s.check("alice", "10.0.0.9", false), "refused")
	s.want("another one from there", s.check("bob", "10.0.0.9", true), "begins")
	s.now = s.now.Add(userEvery)
	s.want("some time later", s.check("alice", "10.2.1.1", true), "begins")
	for range 100 {
		s.want("right", s.check("dave", "10.3.0.1", true), "begins")
	}

	// A day later nobody is familiar.
	s.now = s.now.Add(familiarFor + time.Hour)
	for i := range userBurst {
		s.check("alice", fmt.Sprintf("10.2.0.%d", i), false)
	}
	s.want("alice, after a day", s.check("alice", "10.0.0.9", true), "refused")
}

// What waits is refused when others have used up its budget meanwhile, and who goes leaves no gap.
func TestGuessesThatWait(t *testing.T) {
	s := newTable(t, 1)
	var all []*attempt
	for i := range addressBurst + 5 {
		all = append(all, s.attempt(fmt.Sprint("u", i), "10.0.0.1"))
		s.ask(all[i])
	}
	s.left(s.now, all[1])
	other := s.attempt("x", "10.0.0.2")
	s.ask(other)
	s.left(s.now, other) // the only one of its address
	s.done(s.now, all[0], false)
	for i := 2; i < addressBurst+1; i++ {
		s.want("in turn", s.state(all[i]), "begins")
		s.done(s.now, all[i], false)
	}
	for i := addressBurst + 1; i < len(all); i++ {
		s.want("beyond the budget", s.state(all[i]), "refused")
	}
	s.want("then", s.check("x", "10.0.0.2", true), "begins")
	a, b := s.attempt("x", "10.0.0.2"), s.attempt("x", "10.0.0.2")
	s.want("who goes", s.ask(a), "begins")
	a.begin <- nil // it had been let in, and has not noticed
	s.ask(b)
	s.left(s.now, a)
	s.want("who is next", s.state(b), "begins")
}

// Whatever happens, all that were let in are as many as may be, and nobody waits while somebody could begin.
func TestGuessesKeepBooks(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		atOnce := 1 + r.IntN(3)
		s := newTable(t, atOnce)
		var waits, runs []*attempt
		for range 300 {
			s.now = s.now.Add(time.Duration(r.IntN(300)) * time.Millisecond)
			switch n := r.IntN(4); {
			case n < 2:
				a := s.attempt(fmt.Sprint("u", r.IntN(4)), fmt.Sprintf("10.0.0.%d", r.IntN(5)))
				if s.guesses.ask(s.now, a) == nil {
					waits = append(waits, a)
				}
			case n == 2 && len(runs) > 0:
				i := r.IntN(len(runs))
				if r.IntN(5) == 0 {
					s.spared(s.now)
				} else {
					s.done(s.now, runs[i], r.IntN(3) == 0)
				}
				runs = append(runs[:i:i], runs[i+1:]...)
			case len(waits) > 0:
				i := r.IntN(len(waits))
				s.left(s.now, waits[i])
				waits = append(waits[:i:i], waits[i+1:]...)
			}
			var still []*attempt
			for _, a := range waits {
				switch s.state(a) {
				case "begins":
					runs = append(runs, a)
				case "waits":
					still = append(still, a)
				}
			}
			waits = still
			turns := 0
			for _, w := range s.waiting {
				turns += len(w)
			}
			if s.free+len(runs) != atOnce || s.queued != len(waits) || turns != len(waits) || len(s.turns) != len(s.waiting) ||
				s.free > 0 && len(waits) > 0 {
				t.Fatalf("seed %d: %d of %d free, %d run, %d wait, %d in %d turns, %d queued", seed, s.free, atOnce, len(runs), len(waits),
					turns, len(s.turns), s.queued)
			}
		}
	}
}

// What one machine can have counts together.
func TestAddressOf(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64", "[fe80::1%eth0]:99": "fe80::/64",
	} {
		if got := addressOf(remote); got.String() != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
	if got := addressOf("nonsense"); got != (netip.Prefix{}) {
		t.Errorf("%s", got)
	}
}
