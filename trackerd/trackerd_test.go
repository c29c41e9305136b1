package trackerd

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proc is a tracker in this process that can be stopped and started again at
// the same address.
type proc struct {
	t       *testing.T
	cfg     Config
	addr    string
	metrics string
	cancel  context.CancelFunc
	done    chan error
}

func startTracker(t *testing.T, change func(*Config)) *proc {
	cfg := DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	cfg.Metrics = "127.0.0.1:0"
	cfg.Lease.Warmup = 0
	if change != nil {
		change(&cfg)
	}
	p := &proc{t: t, cfg: cfg}
	p.start()
	t.Cleanup(p.stop)
	return p
}

func (p *proc) start() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.done = make(chan error, 1)
	up := make(chan struct{})
	p.cfg.OnListen = func(a, m net.Addr) {
		p.addr, p.metrics = a.String(), m.String()
		close(up)
	}
	go func() { p.done <- Run(ctx, p.cfg) }()
	select {
	case <-up:
	case err := <-p.done:
		p.t.Fatalf("tracker: %v", err)
	}
	p.cfg.Listen = p.addr
}

func (p *proc) stop() {
	if p.cancel == nil {
		return
	}
	p.cancel()
	if err := <-p.done; err != nil {
		p.t.Errorf("tracker: %v", err)
	}
	p.cancel = nil
}

// agent is a tracker client that remembers what it was told.
type agent struct {
	t    *testing.T
	name string
	c    *tracker.Client
	stop func()
	// lookup answers Handler.Lookup; nil: not here. It makes the agent an origin.
	lookup func(c *tracker.Client, id piece.ID)
	// obey answers Handler.Command; nil: nothing does.
	obey func(c *tracker.Client, cmd *trackerpb.Command)
	zone string

	mu       sync.Mutex
	lookups  []piece.ID
	changed  chan struct{}
	verdicts map[piece.ID][]tracker.Verdict
	peers    map[piece.ID]map[string]tracker.Peer
	hashes   map[piece.ID][32]byte
	shares   map[piece.ID]uint16
	upstream map[piece.ID][]tracker.Upstream
	trackers map[string]tracker.TrackerStatus
	commands []*trackerpb.Command
}

func newAgent(t *testing.T, name string) *agent {
	return &agent{
		t: t, name: name, changed: make(chan struct{}),
		verdicts: map[piece.ID][]tracker.Verdict{}, peers: map[piece.ID]map[string]tracker.Peer{},
		hashes: map[piece.ID][32]byte{}, shares: map[piece.ID]uint16{},
		upstream: map[piece.ID][]tracker.Upstream{}, trackers: map[string]tracker.TrackerStatus{},
	}
}

func (a *agent) run(cfg tracker.Config) {
	cfg.Hello = tracker.Hello{Cluster: "default", Node: a.name, Zone: a.zone, Addr: "10.0.0.1:7400", Role: wire.RoleAgent, Software: "test"}
	if a.lookup != nil {
		cfg.Hello.Role = wire.RoleOrigin
	}
	cfg.OnStatus = func(s tracker.TrackerStatus) { a.update(func() { a.trackers[s.Addr] = s }) }
	a.c = tracker.New(cfg, a)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.c.Run(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Errorf("%s: %v", a.name, err)
		}
	})
	a.t.Cleanup(a.stop)
}

func (a *agent) update(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) Peers(id piece.ID, peers []tracker.Peer) {
	a.update(func() {
		if a.peers[id] == nil {
			a.peers[id] = map[string]tracker.Peer{}
		}
		for _, p := range peers {
			a.peers[id][p.Node] = p
		}
	})
}

func (a *agent) PeersGone(id piece.ID, nodes []string) {
	a.update(func() {
		for _, n := range nodes {
			delete(a.peers[id], n)
		}
	})
}
func (a *agent) Share(id piece.ID, share uint16) { a.update(func() { a.shares[id] = share }) }
func (a *agent) Upstream(id piece.ID, u tracker.Upstream) {
	a.update(func() { a.upstream[id] = append(a.upstream[id], u) })
}
func (a *agent) SumsHash(id piece.ID, h [32]byte) { a.update(func() { a.hashes[id] = h }) }
func (a *agent) Verdict(id piece.ID, v tracker.Verdict) {
	a.update(func() { a.verdicts[id] = append(a.verdicts[id], v) })
}
func (a *agent) Command(c *trackerpb.Command) {
	a.update(func() { a.commands = append(a.commands, c) })
	if a.obey != nil {
		a.obey(a.c, c)
	}
}
func (a *agent) Lookup(id piece.ID) {
	a.update(func() { a.lookups = append(a.lookups, id) })
	if a.lookup == nil {
		a.c.NotHere(id)
		return
	}
	a.lookup(a.c, id)
}

// wait waits until cond, which looks at a's fields, is true.
func (a *agent) wait(what string, cond func() bool) {
	a.t.Helper()
	hangs := time.After(5 * time.Minute)
	for {
		a.mu.Lock()
		ok, changed := cond(), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-hangs:
			a.mu.Lock()
			defer a.mu.Unlock()
			a.t.Fatalf("%s: never: %s; verdicts %v, peers %v, trackers %v", a.name, what, a.verdicts, a.peers, a.trackers)
		}
	}
}

func (a *agent) last(id piece.ID) tracker.VerdictKind {
	if v := a.verdicts[id]; len(v) > 0 {
		return v[len(v)-1].Kind
	}
	return 0
}

func blobID(n int) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
	id.Sum[0], id.Sum[1] = byte(n), byte(n>>8)
	return id
}
