package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// PeerConfig configures a [Peer]. Only Node is required; a zero field takes the
// default that its comment states. Nobody else has to agree on any of them.
type PeerConfig struct {
	Node string    // this node's name, unique in the cluster
	Zone string    // peers in the same zone are preferred; may be empty
	Role wire.Role // default wire.RoleAgent
	Seed uint64    // of every random choice; peers should differ

	// MaxConns bounds the connections, inbound and outbound together; there may be
	// half as many again to other zones. Default: 24 for an agent, 64 for an origin.
	MaxConns int
	// DialConns is how many connections a downloader of a blob wants to peers of
	// its swarm and zone before it stops dialing; below MaxConns, so that late
	// joiners find room, but not far below: who comes last has no others than these.
	// Default: two thirds of MaxConns, at most 16.
	DialConns int
	// Window is how many pieces are downloaded at once, over all blobs, at
	// moderate speed; it grows with the bandwidth when pieces are small, and by what
	// travels meanwhile when peers are far. Peers that are
	// slower than others have a request each beside it.
	// Default 8.
	Window int
	// BlobMemory and Memory bound the bytes of unfinished pieces of one blob and
	// of all. Default 32 MiB and 64 MiB; two pieces of a blob always fit.
	BlobMemory, Memory int64
	// Strange bounds the bytes, over all connections, that are kept of swarms that peers
	// have open and this one has not joined: those that have the most are cut off. Honest peers
	// open what they were told is here, and have a small part of that together. Default 32 MiB.
	Strange int64
	// UpQueue is how many pieces wait or are being sent here at moderate speed;
	// a further request is answered with Busy. Default 6.
	UpQueue int
	// HaveDelay is the time between two announcements of pieces of a blob, each to
	// some of its peers; what comes meanwhile is collected. It is down to a twentieth of
	// that at high speed. Default 40 ms.
	HaveDelay time.Duration
	// StallAfter is how long a peer that owes us blocks may be silent before they
	// are asked from another; more on slow links. Default 1.5 s.
	StallAfter time.Duration
	// IdleAfter is when a connection over which neither side wants anything is
	// closed. Default 30 s.
	IdleAfter time.Duration
	// BanFor is how long a convicted node is cut off. Default 10 min.
	BanFor time.Duration
	// Up and Down are the initial bandwidth limits in bytes per second; 0: none.
	Up, Down int64
}

func (c PeerConfig) withDefaults() PeerConfig {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	dur := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	if c.Role == 0 {
		c.Role = wire.RoleAgent
	}
	if c.Role == wire.RoleOrigin {
		def(&c.MaxConns, 64)
	}
	def(&c.MaxConns, 24)
	def(&c.DialConns, max(1, min(16, c.MaxConns*2/3)))
	def(&c.Window, 8)
	def(&c.UpQueue, 6)
	if c.BlobMemory <= 0 {
		c.BlobMemory = 32 << 20
	}
	if c.Memory <= 0 {
		c.Memory = 64 << 20
	}
	if c.Strange <= 0 {
		c.Strange = 32 << 20
	}
	dur(&c.HaveDelay, 40*time.Millisecond)
	dur(&c.StallAfter, 1500*time.Millisecond)
	dur(&c.IdleAfter, 30*time.Second)
	dur(&c.BanFor, 10*time.Minute)
	return c
}
