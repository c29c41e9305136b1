package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// NodeConfig configures a [Node].
type NodeConfig struct {
	Cluster string    // both ends of every connection must name the same; required, at most 255 bytes
	Node    string    // this node's name, unique in the cluster; required, at most 255 bytes
	Zone    string    // may be empty
	Role    wire.Role // default wire.RoleAgent
	// Software is a name/version for people. May be empty.
	Software string
	// Advertise is the host:port at which others reach Listener. Empty: nobody
	// is told, so nobody dials this node on its own.
	Advertise string

	// Listener accepts connections, before TLS. Run closes it. Nil: none are
	// accepted.
	Listener net.Listener
	// Dial connects to an address, before TLS. Default: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// TLS secures every connection, both ways; both sides must show a
	// certificate, so it needs Certificates (or their callbacks), RootCAs and
	// ClientCAs, or instead of these ClientAuth = RequireAnyClientCert and a
	// VerifyConnection that verifies. Nil: plain TCP, which uses sendfile.
	TLS *tls.Config
	// VerifyPeer reports whether the certificate proves that its owner is node, and
	// may have that role.
	// Required with TLS.
	VerifyPeer func(cs tls.ConnectionState, node string, role wire.Role) error

	// Store keeps the blobs. Required.
	Store Store
	// Peer tunes the decisions. Node, Zone and Role are taken from above; a zero
	// Seed becomes random.
	Peer PeerConfig
	// OnReport is told what an operator should see. It is called from one
	// goroutine and must not block. Nil: reports are dropped.
	OnReport func(Report)
	// OnWanted is told that a peer wants a blob that is not joined here. Whoever
	// has it may Join it, to seed, so that not everything has to be joined in
	// advance. It is called from one goroutine and must not block, as Join may.
	// Nil: such peers wait until the blob is joined.
	OnWanted func(id piece.ID)

	// OnNoSource is told that the last source of a wanted blob that was known has failed
	// (BlobStatus.DeadEnd). It is called from one goroutine and must not block. Nil: Status
	// tells.
	OnNoSource func(id piece.ID)

	// OnDoubt is told that what is stored of a wanted blob may be false, or is no longer in
	// doubt (ActDoubt). It is called from one goroutine and must not block. Nil: nobody is told.
	OnDoubt func(id piece.ID, on bool)

	// MaxInbound bounds the connections that others made, those in their
	// handshake included. Default 256.
	MaxInbound int
	// MaxHandshakes bounds the inbound connections in their handshake. When all these
	// places are taken, those that say nothing and come from where most come from
	// make room for new ones, or these are closed without a word. Default 128.
	MaxHandshakes int
	// Workers is how many pieces are verified and written at once. Default:
	// GOMAXPROCS.
	Workers int
	// StoreMemory bounds, in bytes, the pieces that wait to be verified and
	// written; beyond it nothing is read from the connections, so that a slow
	// disk slows the senders down. Default 64 MiB.
	StoreMemory int64
}

// Timeouts of PROTOCOL.md §3, and our own.
const (
	dialTimeout  = 2 * time.Second
	helloTimeout = 5 * time.Second
	closeTimeout = time.Second      // to send an Error and see the other side close
	sendTimeout  = 30 * time.Second // of sending without progress
	sweepEvery   = time.Second      // connections are checked for that
)

// maxQueued bounds the control messages, in bytes, that wait for a connection
// that takes nothing; beyond it the connection is closed.
const maxQueued = 8 << 20

// maxQueuedAll bounds them over all connections; beyond it, those that take less than the
// others are closed.
const maxQueuedAll = 64 << 20

// Errors of a Node.
var (
	ErrStopped   = errors.New("node has stopped")
	ErrNotJoined = errors.New("blob is not joined")
	ErrLeft      = errors.New("blob was left")
)

// machine is what a Node needs of a Peer.
type machine interface {
	Step(now time.Time, ev Event) []Action
	Deadline() time.Time
	Status(id piece.ID) (BlobStatus, bool)
	Unreachable() []Unreachable
}

// Node drives a [Peer] with real connections and a [Store]. Make one with
// [NewNode], let [Node.Run] run, and call the other methods at any time, from
// any goroutine: they never wait for the network or (but for Join, which opens
// the blob) the disk. What they ask before Run begins is done then.
//
// # Goroutines
//
// One goroutine, Run's loop, owns the Peer and everything that is not said to
// be shared. Each connection has a reader, which decodes messages into pooled
// buffers and hands them to the loop over a bounded channel, and a writer,
// which empties the connection's queue. Workers verify and write pieces, two at
// once where there are two. Dials and handshakes have a goroutine each.
// Everything but messages reaches the loop through mail, which never blocks its
// sender, so the loop, which never waits for any of them, and they cannot wait
// for each other.
//
// # Memory
//
// Message data waits in three places: the channel (msgQueue messages), the Peer
// (its own bound), and the store queue (StoreMemory). While the store queue is
// full, the loop takes no message; then readers stop, and TCP slows the
// senders.
type Node struct {
	cfg   NodeConfig
	hello wire.Hello
	mail  mailbox
	msgs  chan inbound
	work  chan unit
	wg    sync.WaitGroup
	// summing holds a token for each blob whose sums are being computed: half of
	// Workers at once.
	summing chan struct{}

	admission admission // shared

	// Owned by the loop.
	ctx      context.Context
	peer     machine
	conns    map[ConnID]*nodeConn
	lastConn ConnID
	blobs    map[piece.ID]*nodeBlob
	ready    []*job       // for the workers
	fed      int          // units that they have
	storing  int64        // bytes in jobs
	queued   atomic.Int64 // bytes that wait for connections, or are being sent; shared
	queues   int64        // how many may be, for all of them together
	touched  []*nodeConn  // that something was queued for since their writers were told
	stopping bool
	total    Totals
}

// msgQueue is how many decoded messages wait for the loop, over all
// connections.
const msgQueue = 64

type inbound struct {
	conn *nodeConn
	msg  wire.Message
}

// NewNode returns a Node that does nothing until Run.
func NewNode(cfg NodeConfig) (*Node, error) {
	if cfg.Role == 0 {
		cfg.Role = wire.RoleAgent
	}
	p := cfg.Peer
	p.Node, p.Zone, p.Role = cfg.Node, cfg.Zone, cfg.Role
	if p.Seed == 0 {
		p.Seed = rand.Uint64()
	}
	return newNode(cfg, NewPeer(p))
}

func newNode(cfg NodeConfig, m machine) (*Node, error) {
	if cfg.Role == 0 {
		cfg.Role = wire.RoleAgent
	}
	hello := wire.Hello{
		Version: wire.Version, Role: cfg.Role, Cluster: cfg.Cluster, Node: cfg.Node,
		Zone: cfg.Zone, Addr: cfg.Advertise, Software: cfg.Software,
	}
	if _, err := wire.Append(nil, &hello); err != nil {
		return nil, fmt.Errorf("node %q of cluster %q: %w", cfg.Node, cfg.Cluster, err)
	}
	switch {
	case cfg.Store == nil:
		return nil, fmt.Errorf("node %q: no Store", cfg.Node)
	case cfg.TLS != nil && cfg.VerifyPeer == nil:
		return nil, fmt.Errorf("node %q: TLS without VerifyPeer", cfg.Node)
	}
	if cfg.TLS != nil {
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.MinVersion = max(cfg.TLS.MinVersion, tls.VersionTLS13)
		if cfg.TLS.ClientAuth != tls.RequireAnyClientCert || cfg.TLS.VerifyConnection == nil {
			cfg.TLS.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&cfg.MaxInbound, 256)
	def(&cfg.MaxHandshakes, 128)
	def(&cfg.Workers, runtime.GOMAXPROCS(0))
	if cfg.StoreMemory <= 0 {
		cfg.StoreMemory = 64 << 20
	}
	return &Node{
		cfg:       cfg,
		hello:     hello,
		mail:      mailbox{wake: make(chan struct{}, 1)},
		msgs:      make(chan inbound, msgQueue),
		work:      make(chan unit, 2*cfg.Workers),
		summing:   make(chan struct{}, (cfg.Workers+1)/2),
		admission: admission{gate: newGate(cfg.MaxInbound, cfg.MaxHandshakes)},
		queues:    maxQueuedAll,
		peer:      m,
		conns:     make(map[ConnID]*nodeConn),
		blobs:     make(map[piece.ID]*nodeBlob),
	}, nil
}

// JoinOptions says what a node wants of a blob.
type JoinOptions struct {
	Want     bool // download what is missing; otherwise only offer what is there
	Priority int  // lower first; the position of a layer in its image
}

// Join takes part in a blob's swarm until Leave, or changes the options of a
// blob that is joined. It opens the blob in the Store, creating it if Want. ctx
// bounds only that.
func (n *Node) Join(ctx context.Context, id piece.ID, o JoinOptions) error {
	if err := id.Validate(); err != nil {
		return fmt.Errorf("joining %v: %w", id, err)
	}
	b, err := n.cfg.Store.Open(ctx, id, o.Want)
	if err != nil {
		return fmt.Errorf("joining %v: %w", id, err)
	}
	if !n.do(func() { n.join(id, b, o) }) {
		b.Close()
		return fmt.Errorf("joining %v: %w", id, ErrStopped)
	}
	return nil
}

// Leave ends what Join began; it is nothing for a blob that is not joined.
// Done's channels get ErrLeft.
func (n *Node) Leave(id piece.ID) {
	n.do(func() {
		if b := n.blobs[id]; b != nil {
			n.leave(b, ErrLeft)
		}
	})
}

// LeaveNow is Leave that returns when the blob is closed in the Store, where it may
// be evicted from then on, or ctx ends.
func (n *Node) LeaveNow(ctx context.Context, id piece.ID) {
	closed := make(chan struct{})
	ok := n.do(func() {
		b := n.blobs[id]
		if b == nil {
			close(closed)
			return
		}
		b.closed = append(b.closed, closed)
		n.leave(b, ErrLeft)
	})
	if !ok {
		return
	}
	select {
	case <-closed:
	case <-ctx.Done():
	}
}

// Done returns a channel that gets one value: nil once the whole blob is stored
// durably and proven, or the reason why the Node will not get it: the Store
// failed, the blob was left, is not joined, or the Node stopped.
func (n *Node) Done(id piece.ID) <-chan error {
	done := make(chan error, 1)
	ok := n.do(func() {
		switch b := n.blobs[id]; {
		case b == nil:
			done <- fmt.Errorf("%v: %w", id, ErrNotJoined)
		case b.proven:
			done <- nil
		default:
			b.done = append(b.done, done)
		}
	})
	if !ok {
		done <- ErrStopped
	}
	return done
}

// AddPeers names peers of a blob's swarm, beside those already known.
func (n *Node) AddPeers(id piece.ID, peers []PeerInfo) {
	for _, p := range peers {
		if at, err := netip.ParseAddrPort(p.Addr); err == nil {
			n.admission.know(at.Addr().Unmap())
		}
	}
	n.send(EvPeers{id, peers})
}

// RemovePeers says that nodes left a blob's swarm.
func (n *Node) RemovePeers(id piece.ID, nodes []string) { n.send(EvPeersGone{id, nodes}) }

// Share says which pieces of a blob this node is to bring into its zone; see
// EvShare.
func (n *Node) Share(id piece.ID, share uint16) { n.send(EvShare{id, share}) }

// SumsHash names the hash of a blob's proven list.
func (n *Node) SumsHash(id piece.ID, hash [32]byte) { n.send(EvSumsHash{id, hash}) }

// Appended says that pieces from..to-1 of a blob appeared in the Store by
// another way than this Node; states are the chaining states after each,
// without the digest. It does nothing for a blob that is not joined.
func (n *Node) Appended(id piece.ID, from, to int, states []byte) {
	n.send(EvLocal{id, from, to, states})
}

// Proven says that a blob in the Store became complete and proven by another
// way than this Node. It does nothing for a blob that is not joined.
func (n *Node) Proven(id piece.ID) {
	n.do(func() {
		if b := n.blobs[id]; b != nil {
			n.prove(b)
		}
	})
}

// Lost says that a piece of a blob in the Store was found not to be what it should be, by somebody else than this
// Node, and does not count any more. When it does again, that is Appended. It does nothing for a blob that is
// not joined.
func (n *Node) Lost(id piece.ID, i int) { n.send(EvLost{id, i}) }

// SetLimits bounds the bandwidth, in bytes per second; 0: no bound.
func (n *Node) SetLimits(up, down int64) { n.send(EvLimits{up, down}) }

// Status reports on a blob; ok is false if it is not joined or the Node does
// not run.
func (n *Node) Status(id piece.ID) (s BlobStatus, ok bool) {
	n.ask(func() { s, ok = n.peer.Status(id) })
	return s, ok
}

// Unreachable returns the peers that have failed as sources, ordered by name; none if the
// Node does not run.
func (n *Node) Unreachable() (all []Unreachable) {
	n.ask(func() { all = n.peer.Unreachable() })
	return all
}

// NodeStatus is a snapshot of a Node.
type NodeStatus struct {
	Conns []ConnStatus
	Blobs []JoinedBlob
	Total Totals
}

// ConnStatus is a connection in a NodeStatus.
type ConnStatus struct {
	Peer     wire.Hello
	Remote   string // address
	Inbound  bool
	Since    time.Time
	BytesIn  int64 // of blocks
	BytesOut int64 // of blocks
}

// JoinedBlob is a blob in a NodeStatus.
type JoinedBlob struct {
	ID       piece.ID
	Want     bool
	Priority int
	Proven   bool
	BlobStatus
}

// Totals count since the Node was made.
type Totals struct {
	BytesIn, BytesOut int64 // of blocks
	FarIn, FarOut     int64 // of those, from and to other zones
	Stored            int64 // bytes of pieces verified and written
	Mismatched        int64 // pieces that did not match their sums
	Accepted, Dialed  int64 // connections established
	DialsFailed       int64
	Refused           int64 // inbound connections refused before they were established
	Faults            int64 // connections closed because the peer violated the protocol
}

// Snapshot reports on everything; it is zero unless the Node runs.
func (n *Node) Snapshot() (s NodeStatus) {
	n.ask(func() {
		s.Total = n.total
		for _, c := range n.conns {
			if !c.gone {
				s.Conns = append(s.Conns, c.status())
			}
		}
		for id, b := range n.blobs {
			st, _ := n.peer.Status(id)
			s.Blobs = append(s.Blobs, JoinedBlob{id, b.opts.Want, b.opts.Priority, b.proven, st})
		}
	})
	return s
}

// do has the loop call f, later, and reports whether it will.
func (n *Node) do(f func()) bool { return n.mail.put(note{f: f}) }

// send has the loop step an event.
func (n *Node) send(ev Event) { n.mail.put(note{ev: ev}) }

// ask has the loop call f and waits for that. f is not called unless Run is
// under way.
func (n *Node) ask(f func()) {
	done := make(chan struct{})
	if n.mail.putRunning(note{f: func() { f(); close(done) }}) {
		<-done
	}
}

// note is mail for the loop: one of its fields.
type note struct {
	f    func()
	ev   Event
	job  *job      // is done
	conn *nodeConn // has sent a block of this many bytes
	sent int
}

// mailbox is an unbounded queue to the loop. What is in it is bounded by those
// who send: each worker, connection and dial has few notes under way.
type mailbox struct {
	wake chan struct{}

	mu    sync.Mutex
	notes []note
	state mailState
}

type mailState uint8

const (
	mailWaiting mailState = iota // Run has not begun
	mailRunning
	mailClosed // the loop has ended
)

// put adds a note, unless the loop has ended.
func (m *mailbox) put(x note) bool {
	m.mu.Lock()
	ok := m.state != mailClosed
	m.add(x, ok)
	return ok
}

func (m *mailbox) putRunning(x note) bool {
	m.mu.Lock()
	ok := m.state == mailRunning
	m.add(x, ok)
	return ok
}

// add unlocks mu.
func (m *mailbox) add(x note, ok bool) {
	first := ok && len(m.notes) == 0
	if ok {
		m.notes = append(m.notes, x)
	}
	m.mu.Unlock()
	if first {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// take returns the notes that wait; spare becomes the memory for the next.
func (m *mailbox) take(spare []note) []note {
	clear(spare)
	m.mu.Lock()
	notes := m.notes
	m.notes = spare[:0]
	m.mu.Unlock()
	return notes
}

// set changes the state, from one that it must have.
func (m *mailbox) set(from, to mailState) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	ok := m.state == from
	if ok {
		m.state = to
	}
	return ok
}
