package swarm

import "time"

// keepalive is when a connection was last heard of and last spoken on, and what
// follows from that (PROTOCOL.md §3, "Keep-alive"). It belongs to its conn: the
// Peer notes every message and every block given to the driver, and asks verdict
// with its chores. The driver adds only what the Peer cannot see: whether the
// transport takes what it is given.
type keepalive struct {
	heard time.Duration // a message came
	spoke time.Duration // a message or block was handed to the driver
}

const (
	pingAfter = 10 * time.Second // of having said nothing
	deadAfter = 30 * time.Second // of having heard nothing
)

// aliveVerdict is what is to be done about a connection.
type aliveVerdict uint8

const (
	aliveFine aliveVerdict = iota
	alivePing              // say something
	aliveDead              // close it
)

func (k *keepalive) verdict(now time.Duration) aliveVerdict {
	switch {
	case k.silence(now) > deadAfter:
		return aliveDead
	case now-k.spoke > pingAfter:
		return alivePing
	}
	return aliveFine
}

// silence returns for how long nothing was heard.
func (k *keepalive) silence(now time.Duration) time.Duration { return now - k.heard }
