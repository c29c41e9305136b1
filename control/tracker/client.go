package tracker

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Client is a node's connection to its trackers: a Machine with streams, a clock and a
// Handler; see the package comment.
type Client struct {
	cfg   Config
	h     Handler
	calls chan Action // 1-buffered: the next call of the Handler
	// instance tells this process from another one that has the node's name.
	instance uint64

	// mu makes Steps one after the other, whoever calls. Nothing blocks while it is held:
	// the channels have room for what the machine hands out, which is one of each until
	// it is told that it was taken.
	mu      sync.Mutex
	machine *Machine
	timer   *time.Timer
	due     time.Time // what timer is set to; zero: nothing
	streams map[string]chan *trackerpb.FromAgent
}

// New returns a client that does nothing until Run.
func New(cfg Config, h Handler) *Client {
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.LookupHost == nil {
		cfg.LookupHost = net.DefaultResolver.LookupHost
	}
	c := &Client{
		cfg:      cfg,
		h:        h,
		calls:    make(chan Action, 1),
		instance: max(rand.Uint64(), 1),
		machine:  NewMachine(cfg.Hello.Node),
		timer:    time.NewTimer(0),
		streams:  map[string]chan *trackerpb.FromAgent{},
	}
	c.timer.Stop()
	return c
}

// Run keeps the streams up until ctx is done; it returns nil then, after every
// goroutine has ended, or at once an error if the configuration is wrong. It may
// be called once.
func (c *Client) Run(ctx context.Context) error {
	if err := c.cfg.Check(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.runHandler(ctx) })
	wg.Go(func() { c.runTimer(ctx) })
	c.runTrackers(ctx)
	return nil
}

// step gives an event to the machine.
func (c *Client) step(ev Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.perform(ev)
}

// stepOf is step for a goroutine that must say nothing any more when its ctx is done.
func (c *Client) stepOf(ctx context.Context, ev Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil {
		c.perform(ev)
	}
}

// perform runs the machine and performs its actions. c.mu is held.
func (c *Client) perform(ev Event) {
	now := time.Now()
	for _, act := range c.machine.Step(now, ev) {
		if send, ok := act.(ActSend); ok {
			c.streams[send.Tracker] <- send.Message
		} else {
			c.calls <- act
		}
	}
	due := c.machine.Deadline()
	switch {
	case due.Equal(c.due):
	case due.IsZero():
		c.timer.Stop()
	default:
		c.timer.Reset(max(due.Sub(now), 0))
	}
	c.due = due
}

// runTimer tells the machine when its deadline has come.
func (c *Client) runTimer(ctx context.Context) {
	defer c.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.timer.C:
			c.mu.Lock()
			c.due = time.Time{}
			c.perform(EvTick{})
			c.mu.Unlock()
		}
	}
}

// runHandler calls the Handler.
func (c *Client) runHandler(ctx context.Context) {
	for {
		c.step(EvHandlerReady{})
		select {
		case <-ctx.Done():
			return
		case act := <-c.calls:
			c.call(act)
		}
	}
}

func (c *Client) call(act Action) {
	switch act := act.(type) {
	case ActPeers:
		c.h.Peers(act.ID, act.Peers)
	case ActPeersGone:
		c.h.PeersGone(act.ID, act.Nodes)
	case ActShare:
		c.h.Share(act.ID, act.Share)
	case ActUpstream:
		c.h.Upstream(act.ID, act.Upstream)
	case ActSumsHash:
		c.h.SumsHash(act.ID, act.SumsHash)
	case ActVerdict:
		c.h.Verdict(act.ID, act.Verdict)
	case ActCommand:
		c.h.Command(act.Command)
	case ActLookup:
		c.h.Lookup(act.ID)
	case ActStatus:
		if c.cfg.OnStatus != nil {
			c.cfg.OnStatus(act.Status)
		}
	}
}

// Announce says what the node has of a blob. It is remembered until another
// state, or StateGone, is announced. IDs must be valid.
func (c *Client) Announce(id piece.ID, s State) { c.step(EvAnnounce{ID: id, State: s}) }

// AnnounceComplete is Announce(id, StateComplete) with piece.Sums.Hash of the
// proven list, or nil if it is not known.
func (c *Client) AnnounceComplete(id piece.ID, sumsHash *[32]byte) {
	c.step(EvAnnounce{ID: id, State: StateComplete, SumsHash: sumsHash})
}

// Want asks for a blob: who has it, and what to expect. A Verdict follows, each
// time that it is called. Wanting it again replaces how it is wanted.
func (c *Client) Want(id piece.ID, w Want) { c.step(EvWant{ID: id, Want: w}) }

// Unwant ends a Want. It does not end a lease: LeaseDone does.
func (c *Client) Unwant(id piece.ID) { c.step(EvUnwant{ID: id}) }

// LeaseProgress says how many bytes of a blob have come from upstream so far;
// the first call, which may be with 0, that the download has started. It is for
// every download that containerd makes, with or without a lease, so that
// trackers know who is a source. registry is the upstream's host, or host:port; empty: not
// known. Reports are sent at most once a second.
func (c *Client) LeaseProgress(id piece.ID, bytes int64, registry string) {
	c.step(EvLeaseProgress{ID: id, Bytes: bytes, Registry: registry})
}

// LeaseDone ends a lease, or a download without one: err is nil if the whole
// blob is there and verified (announce it as well), wraps context.Canceled if
// the pull was given up, and else is why upstream failed.
func (c *Client) LeaseDone(id piece.ID, err error) { c.step(EvLeaseDone{ID: id, Err: err}) }

// Disproved says that the list of sums with this hash, which a tracker named,
// is not the blob's.
func (c *Client) Disproved(id piece.ID, hash [32]byte) {
	c.step(EvDisproved{ID: id, SumsHash: hash})
}

// NotHere answers a Handler's Lookup: this node neither has the blob nor can get
// it, now.
func (c *Client) NotHere(id piece.ID) { c.step(EvNotHere{ID: id}) }

// Result answers a Command. It goes to the tracker that asked, if the stream on
// which that was lives; otherwise nobody waits for it. Texts are cut to what the
// protocol allows. r must have at most trackerpb.MaxBatch/2 blobs, and is the
// Client's from now on.
func (c *Client) Result(r *trackerpb.CommandResult) { c.step(EvResult{Result: r}) }

// Status returns the state of each stream, ordered by address.
func (c *Client) Status() []TrackerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.machine.Status()
}

// Remembered returns of how many blobs the client remembers something.
func (c *Client) Remembered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.machine.Remembered()
}
