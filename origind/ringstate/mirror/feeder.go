package mirror

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/ring"
)

// feeder brings an upload to one mirror.
type feeder struct {
	id        uint64
	member    string
	doing     doing
	off       int64     // where the mirror stands
	moved     time.Time // when it was asked, or last took a byte
	asked     uint64    // the round that it was asked to confirm
	confirmed uint64    // the latest round that it has confirmed
}

// doing is what is asked of a mirror just now.
type doing uint8

const (
	resting doing = iota
	starting
	feeding
	confirming
)

func (d doing) String() string {
	return [...]string{"is lacking bytes", "does not answer", "is receiving", "is committing"}[d]
}

// deadline returns when the mirror is given up.
func (f *feeder) deadline() time.Time {
	if f.doing == confirming {
		return f.moved.Add(confirm)
	}
	return f.moved.Add(stall)
}

// failure is what is remembered of a member that failed as a mirror.
type failure struct {
	times int
	until time.Time // it is left alone
	err   error
}

// mirrors returns how many there should be.
func (u *Upload) mirrors() int { return u.cfg.MinReplicas - 1 }

func (u *Upload) feeder(id uint64) *feeder {
	for _, f := range u.feeders {
		if f.id == id {
			return f
		}
	}
	return nil
}

func (u *Upload) feeds(member string) bool {
	return slices.ContainsFunc(u.feeders, func(f *feeder) bool { return f.member == member })
}

// feed gives up mirrors that are down or do not move, takes others, and gives all of them
// something to do.
func (u *Upload) feed() {
	for _, f := range slices.Clone(u.feeders) {
		switch {
		case !slices.ContainsFunc(u.members, func(m Member) bool { return m.Name == f.member && m.Up }):
			u.replace(f, errDown)
		case f.doing != resting && !u.now.Before(f.deadline()):
			u.replace(f, fmt.Errorf("it %v, and nothing moves", f.doing))
		case f.doing == resting && u.final() && f.off > u.size:
			u.act(ActErase{f.member, u.term})
			u.replace(f, errLong)
		}
	}
	for _, name := range u.candidates() {
		if len(u.feeders) >= u.mirrors() {
			break
		}
		u.number++
		f := &feeder{id: u.number, member: name}
		u.feeders = append(u.feeders, f)
		u.act(ActStart{u.call(f, starting)})
	}
	for _, f := range u.feeders {
		if f.doing == resting {
			u.next(f)
		}
	}
}

// call begins a request to a mirror.
func (u *Upload) call(f *feeder, d doing) Call {
	f.doing, f.moved = d, u.now
	return Call{f.id, f.member, u.term}
}

// next gives a mirror that rests what it lacks.
func (u *Upload) next(f *feeder) {
	switch {
	case f.off < u.size:
		u.act(ActFeed{u.call(f, feeding), f.off, min(u.size, f.off+Chunk)})
	case u.final() && f.confirmed < u.round:
		f.asked = u.round
		u.act(ActConfirm{u.call(f, confirming), u.puts[0].Digest, u.size})
	}
}

// replace gives a mirror up. It may be taken again after a while.
func (u *Upload) replace(f *feeder, why error) {
	u.feeders = slices.DeleteFunc(u.feeders, func(o *feeder) bool { return o == f })
	u.left[f.member] = true
	if f.doing != resting {
		u.act(ActDrop{f.id})
	}
	times := u.failed[f.member].times + 1
	pause := stall / 8 << min(times-1, 5) // 250 ms to 8 s
	u.failed[f.member] = failure{times, u.now.Add(pause), why}
}

// candidates returns the members that may become mirrors, best first: those that failed less
// often, so that two that stand still do not take turns while a third one is well; then owners of
// the blob before others, other zones before the own one.
func (u *Upload) candidates() []string {
	if len(u.feeders) >= u.mirrors() {
		return nil
	}
	all := make([]ring.Member, len(u.members))
	up := map[string]bool{}
	for i, m := range u.members {
		all[i] = m.Member
		up[m.Name] = m.Up && m.Name != u.cfg.Self.Name && !u.feeds(m.Name) && !u.failed[m.Name].until.After(u.now)
	}
	var order [4][]string
	for i, m := range ring.Place(all, u.cfg.Key, len(all)) {
		class := 0
		if i >= u.cfg.Replicas {
			class += 2
		}
		if m.Zone == u.cfg.Self.Zone {
			class++
		}
		if up[m.Name] {
			order[class] = append(order[class], m.Name)
		}
	}
	best := slices.Concat(order[:]...)
	slices.SortStableFunc(best, func(a, b string) int { return cmp.Compare(u.failed[a].times, u.failed[b].times) })
	return best
}

// answered takes in what a mirror says.
func (u *Upload) answered(f *feeder, a Answer) {
	did := f.doing
	f.doing = resting
	switch {
	case a.Code == Done && did == confirming:
		f.confirmed = f.asked
	case a.Code == Done, a.Code == OutOfRange && a.Offset != f.off:
		f.off = a.Offset
	case a.Code == Later && did == confirming:
	case a.Code == Conflict && a.Term >= u.term:
		u.challenged(f, a)
		return
	default:
		u.replace(f, a.Err)
		return
	}
	if did != starting {
		delete(u.failed, f.member)
	}
}

// challenged settles who leads, after a mirror obeys another member: the one that a client
// is at.
func (u *Upload) challenged(f *feeder, a Answer) {
	here := len(u.puts) > 0 || u.writing != nil && u.writing.From == "" && !u.stopped
	switch {
	case here:
		u.term = a.Term + 1
		u.replace(f, a.Err)
	case a.Term > u.term:
		u.follow(a.Term, "")
	default:
		u.replace(f, a.Err)
	}
}
