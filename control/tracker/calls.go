package tracker

import "github.com/capelin-io/capelin/control/trackerpb"

// calls are those of the Handler that it has not taken yet, in order.
type calls struct {
	ready bool // it can take one
	queue []call
}

type call struct {
	act  Action
	want uint32 // of an ActVerdict: the want.number that it answers; 0: nobody wanted it any more
}

func (c *calls) add(act Action, want uint32) { c.queue = append(c.queue, call{act, want}) }

func (c *calls) take() (next call, ok bool) {
	if len(c.queue) == 0 {
		return call{}, false
	}
	next = c.queue[0]
	c.queue[0] = call{}
	c.queue = c.queue[1:]
	return next, true
}

// maxCommands is how many commands may be under way at once.
const maxCommands = 256

// commands are those under way, by their ids: which tracker asked.
type commands map[uint64]*link

// add notes a command; ok is false if there are too many.
func (c commands) add(id uint64, l *link) (ok bool) {
	if c[id] == nil && len(c) >= maxCommands {
		return false
	}
	c[id] = l
	return true
}

// result makes r fit to be sent, and returns who waits for it; nil: nobody.
func (c commands) result(r *trackerpb.CommandResult) *link {
	l := c[r.Id]
	if !r.Running {
		delete(c, r.Id)
	}
	r.Error = printable(r.Error, trackerpb.MaxError)
	return l
}

// gone forgets what a tracker asked for.
func (c commands) gone(l *link) {
	for id, by := range c {
		if by == l {
			delete(c, id)
		}
	}
}
