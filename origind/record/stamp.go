package record

import (
	"fmt"
	"time"
)

// Stamp orders pushes and removals, also between members: milliseconds since 1970 << 16 | a counter. Zero is never.
type Stamp uint64

const (
	// MaxStamp is the latest stamp that a record may have: in the year 6429. Clocks can count on from it.
	MaxStamp Stamp = 1<<63 - 1
	// V1 is the stamp of what a record of format 1 says was pushed. All others are later.
	V1 Stamp = 1
)

// At is the first stamp of a millisecond; of a time before 1970, zero.
func At(t time.Time) Stamp { return Stamp(max(0, t.UnixMilli())) << 16 }

// Time is when a stamp was made, by the clock of whoever made it, in milliseconds.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)) }

// String is for messages.
func (s Stamp) String() string {
	return fmt.Sprintf("%s+%d", s.Time().UTC().Format("2006-01-02T15:04:05.000Z"), s&0xffff)
}

// How far the clocks of others matter.
const (
	// MaxSkew is how far another member's clock may be from this one's, before somebody is told.
	MaxSkew = 5 * time.Second
	// MaxLead is how far another member's clock can lead this one's beyond the time of day. A clock that is wrong by
	// more is followed that far: all that depends on the order of stamps are entries of one record, and their
	// stamps are above what is in the record, whatever the clock says.
	MaxLead = time.Hour
)

// Clock makes stamps. The zero value is ready. It is a value: the time of day is an argument.
type Clock struct{ last Stamp }

// Last is the latest stamp that was made or taken in.
func (c *Clock) Last() Stamp { return c.last }

// Next returns a stamp that is above every stamp that was made, taken in, or is seen: those of the record that it is
// for. If the time of day goes back, or a millisecond has more than 65,536 stamps, the stamp is ahead of the time of day.
func (c *Clock) Next(now time.Time, seen ...Stamp) Stamp {
	c.last = max(c.last+1, At(now))
	next := c.last
	for _, s := range seen {
		next = max(next, s+1)
	}
	c.See(now, next) // a record's stamps may be any: only what is near carries over to other records
	return next
}

// See takes in the stamp of another member's clock, at most MaxLead after now.
func (c *Clock) See(now time.Time, s Stamp) { c.last = max(c.last, min(s, At(now.Add(MaxLead)))) }

// Skew is how far a stamp that another clock has made between two times of this one is ahead of that, or behind it (negative); zero if
// that is at most MaxSkew.
func Skew(from, to time.Time, s Stamp) time.Duration {
	if d := s.Time().Sub(to); d > MaxSkew {
		return d
	}
	if d := s.Time().Sub(from); d < -MaxSkew {
		return d
	}
	return 0
}
