package gateway

import (
	"net/netip"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// guesses says which passwords are checked, when, and who has guessed too often: a check is slow by design, so that without
// it a hundred guesses at once would keep everybody else waiting. It is a value: it has no clock, lock or goroutine; who owns
// it tells it the time, with each call.
//
// Checks that wait are taken in turn of their addresses, and every other one is of a user who has logged in from there
// before, if there is one. Only wrong guesses count, against three budgets: of the address, of the user, or, where that user has logged
// in from that address within a day, of the two together. So neither who guesses a user's password elsewhere nor who guesses at other
// users' from there locks that one out.
type guesses struct {
	free int // checks that may begin

	waiting map[turn][]*attempt
	turns   []turn // those that have somebody waiting, the next one first
	queued  int
	// familiars: who began last was familiar.
	familiars bool

	addresses *lru.Cache[netip.Prefix, *rate.Limiter]
	users     *lru.Cache[string, *rate.Limiter]
	known     *lru.Cache[pair, familiar]
}

// attempt is a password that somebody wants to be checked.
type attempt struct {
	user    string
	address netip.Prefix // of one machine, or of what a site gives one (addressOf)
	begin   chan error   // buffered by one: nil, it may begin; else why it may not
}

// turn is what takes turns: an address, with its familiar users apart.
type turn struct {
	familiar bool
	address  netip.Prefix
}

type pair struct {
	user    string
	address netip.Prefix
}

type familiar struct {
	last    time.Time
	guesses *rate.Limiter
}

// Budgets of wrong guesses, and what is remembered.
const (
	addressBurst = 10
	addressEvery = time.Second
	userBurst    = 20
	userEvery    = 3 * time.Second
	familiarFor  = 24 * time.Hour

	maxQueued    = 1024
	maxQueuedBy  = 64 // of one turn
	maxAddresses = 1 << 14
	maxUsers     = 1 << 12
	maxFamiliar  = 1 << 12
)

// tooMany is why a password is not checked.
type tooMany struct {
	after time.Duration // when to come back
	what  string
}

func (e *tooMany) Error() string { return e.what }

func newGuesses(atOnce int) *guesses {
	g := &guesses{free: atOnce, waiting: map[turn][]*attempt{}}
	g.addresses, _ = lru.New[netip.Prefix, *rate.Limiter](maxAddresses) // they fail only for sizes below 1
	g.users, _ = lru.New[string, *rate.Limiter](maxUsers)
	g.known, _ = lru.New[pair, familiar](maxFamiliar)
	return g
}

// addressOf returns whose guesses count together: an IPv4 address, or a /64 of IPv6, which is what one machine can have.
func addressOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	a, bits := ap.Addr().Unmap().WithZone(""), 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // the bits fit
	return p
}

// budgets returns those that a guess counts against.
func (g *guesses) budgets(now time.Time, a *attempt) (all []*rate.Limiter, known bool) {
	if f, ok := g.known.Get(pair{a.user, a.address}); ok && now.Sub(f.last) < familiarFor {
		return []*rate.Limiter{f.guesses}, true
	}
	return []*rate.Limiter{
		budget(g.addresses, a.address, addressEvery, addressBurst), budget(g.users, a.user, userEvery, userBurst),
	}, false
}

func budget[K comparable](all *lru.Cache[K, *rate.Limiter], of K, every time.Duration, burst int) *rate.Limiter {
	l, ok := all.Get(of)
	if !ok {
		l = rate.NewLimiter(rate.Every(every), burst)
		all.Add(of, l)
	}
	return l
}

// refused returns why an attempt may not be made now; nil: it may.
func (g *guesses) refused(now time.Time, a *attempt) error {
	all, _ := g.budgets(now, a)
	for _, l := range all {
		if has := l.TokensAt(now); has < 1 {
			after := time.Duration((1 - has) / float64(l.Limit()) * float64(time.Second))
			return &tooMany{after: after, what: "too many wrong passwords"}
		}
	}
	return nil
}

// ask wants a password checked. An error is why it is not; otherwise a.begin says when, or that others have meanwhile guessed too often.
func (g *guesses) ask(now time.Time, a *attempt) error {
	if err := g.refused(now, a); err != nil {
		return err
	}
	if g.free > 0 {
		g.free--
		a.begin <- nil
		return nil
	}
	_, known := g.budgets(now, a)
	t := turn{known, a.address}
	if g.queued >= maxQueued || len(g.waiting[t]) >= maxQueuedBy {
		return &tooMany{after: time.Second, what: "too many logins at once"}
	}
	if len(g.waiting[t]) == 0 {
		g.turns = append(g.turns, t)
	}
	g.waiting[t] = append(g.waiting[t], a)
	g.queued++
	return nil
}

// done is called when a check has ended: of a password that was right, or wrong. It lets the next one begin, and reports
// whether that was the last wrong one of a budget.
func (g *guesses) done(now time.Time, a *attempt, right bool) (locked bool) {
	g.free++
	all, known := g.budgets(now, a)
	switch {
	case !right:
		for _, l := range all {
			l.AllowN(now, 1)
			locked = locked || l.TokensAt(now) < 1
		}
	case known:
		f, _ := g.known.Get(pair{a.user, a.address})
		g.known.Add(pair{a.user, a.address}, familiar{now, f.guesses})
	default:
		g.known.Add(pair{a.user, a.address}, familiar{now, rate.NewLimiter(rate.Every(addressEvery), addressBurst)})
	}
	g.next(now)
	return locked
}

// spared is called when an attempt that was let in needs no check any more.
func (g *guesses) spared(now time.Time) {
	g.free++
	g.next(now)
}

// left is called of an attempt that was neither refused nor made: whoever made it has gone.
func (g *guesses) left(now time.Time, a *attempt) {
	select {
	case err := <-a.begin:
		if err == nil { // it has been let in meanwhile
			g.spared(now)
		}
		return
	default:
	}
	for t, all := range g.waiting {
		for i, w := range all {
			if w == a {
				g.queued--
				if g.waiting[t] = slices.Delete(all, i, i+1); len(g.waiting[t]) == 0 {
					delete(g.waiting, t)
					g.turns = slices.DeleteFunc(g.turns, func(o turn) bool { return o == t })
				}
				return
			}
		}
	}
}

// next lets those begin whose turn it is: every other time somebody who is familiar, if there is one.
func (g *guesses) next(now time.Time) {
	for g.free > 0 && len(g.turns) > 0 {
		i := max(slices.IndexFunc(g.turns, func(t turn) bool { return t.familiar != g.familiars }), 0)
		t := g.turns[i]
		g.familiars = t.familiar
		g.turns = slices.Delete(g.turns, i, i+1)
		all := g.waiting[t]
		a := all[0]
		g.queued--
		if len(all) > 1 {
			g.waiting[t] = all[1:]
			g.turns = append(g.turns, t)
		} else {
			delete(g.waiting, t)
		}
		err := g.refused(now, a)
		if err == nil {
			g.free--
		}
		a.begin <- err
	}
}
