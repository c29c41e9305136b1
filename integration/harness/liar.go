package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Lie is what a liar does to those who believe that it has a blob.
type Lie int

const (
	Corrupts   Lie = iota // every tenth piece, from the fourth on
	WrongSums             // proven, it says
	HasNothing            // and answers nothing
	Trickles              // right bytes, a block every two seconds
)

// trickle is how long a liar that trickles rests before each block.
const trickle = 2 * time.Second

// Liar is a node of the swarm whose disk lies.
type Liar struct {
	*Host

	node   *swarm.Node
	client *tracker.Client
	lie    Lie
	store  *swarmtest.Store
}

// NewLiar makes a host whose link has a rate, in bytes per second each way (0: as fast as
// it goes), starts a liar on it, and waits until it is connected to the tracker.
func (c *Cluster) NewLiar(ctx context.Context, name, trackerAddr string, rate int64, lie Lie) (*Liar, error) {
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	if err := c.Shape(h, rate); err != nil {
		return nil, err
	}
	addr := h.Addr + ":7401"
	listener, err := h.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, addr string) (net.Conn, error) { return h.DialContext(ctx, "tcp", addr) }
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &Liar{Host: h, lie: lie, store: swarmtest.NewStore("")}
	l.node, err = swarm.NewNode(swarm.NodeConfig{
		Cluster: "default", Node: name, Advertise: addr, Listener: listener, Dial: dial,
		Store: lyingStore{l.store, lie, running},
	})
	if err != nil {
		cancel()
		return nil, err
	}
	l.client = tracker.New(tracker.Config{
		Trackers: []string{trackerAddr}, Dial: dial,
		Hello: tracker.Hello{Cluster: "default", Node: name, Addr: addr, Role: wire.RoleAgent},
	}, deaf{})
	ended := make(chan error, 2)
	go func() { ended <- l.node.Run(running) }()
	go func() { ended <- l.client.Run(running) }()
	c.onClose(func() {
		cancel()
		_, _ = <-ended, <-ended // it was told to
	})
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		if st := l.client.Status(); len(st) > 0 && st[0].Connected {
			return l, nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is not connected to the tracker: %w", name, ctx.Err())
		}
	}
}

// Claim has the liar say that it has all of a blob, whose right bytes are data.
func (l *Liar) Claim(ctx context.Context, digest string, data []byte) error {
	id, err := piece.ParseID(digest, int64(len(data)))
	if err != nil {
		return err
	}
	sums := swarmtest.SumsOf(id, data)
	hash := sums.Hash()
	if l.lie == WrongSums {
		states := slices.Clone(sums.Bytes())
		states[0]++
		sums = piece.NewSums(id)
		if err := sums.Append(states); err != nil {
			return err
		}
		hash = sums.Hash() // trackers believe it, if the liar comes first
	}
	if _, err := l.store.Add(id, data, sums); err != nil {
		return err
	}
	if err := l.node.Join(ctx, id, swarm.JoinOptions{}); err != nil {
		return err
	}
	l.client.AnnounceComplete(id, &hash)
	return nil
}

// lyingStore is one whose blobs lie.
type lyingStore struct {
	*swarmtest.Store
	lie Lie
	ctx context.Context
}

func (s lyingStore) Open(ctx context.Context, id piece.ID, create bool) (swarm.Blob, error) {
	b, err := s.Store.Open(ctx, id, create)
	return lyingBlob{b, id, s}, err
}

type lyingBlob struct {
	swarm.Blob
	id piece.ID
	s  lyingStore
}

func (b lyingBlob) File() *os.File { return nil }

func (b lyingBlob) ReadAt(p []byte, off int64) (int, error) {
	switch b.s.lie {
	case HasNothing:
		<-b.s.ctx.Done() // nor does it say so
		return 0, b.s.ctx.Err()
	case Trickles:
		select {
		case <-time.After(trickle):
		case <-b.s.ctx.Done():
			return 0, b.s.ctx.Err()
		}
	}
	n, err := b.Blob.ReadAt(p, off)
	if b.s.lie == Corrupts && off/b.id.Length()%10 == 3 && n > 0 {
		p[0]++
	}
	return n, err
}

// deaf does not care what trackers say.
type deaf struct{}

func (deaf) Peers(piece.ID, []tracker.Peer)      {}
func (deaf) PeersGone(piece.ID, []string)        {}
func (deaf) Share(piece.ID, uint16)              {}
func (deaf) Upstream(piece.ID, tracker.Upstream) {}
func (deaf) SumsHash(piece.ID, [32]byte)         {}
func (deaf) Verdict(piece.ID, tracker.Verdict)   {}
func (deaf) Command(*trackerpb.Command)          {}
func (deaf) Lookup(piece.ID)                     {}
