package trackerd

import (
	"context"
	"fmt"
	"net"
	"slices"
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
	up       map[string]bool
	commands []*trackerpb.Command
}

func startAgent(t *testing.T, name string, trackers ...string) *agent {
	a := newAgent(t, name)
	a.run(tracker.Config{Trackers: trackers})
	return a
}

func newAgent(t *testing.T, name string) *agent {
	return &agent{
		t: t, name: name, changed: make(chan struct{}),
		verdicts: map[piece.ID][]tracker.Verdict{}, peers: map[piece.ID]map[string]tracker.Peer{},
		hashes: map[piece.ID][32]byte{}, shares: map[piece.ID]uint16{}, up: map[string]bool{},
	}
}

func (a *agent) run(cfg tracker.Config) {
	cfg.Hello = tracker.Hello{Cluster: "default", Node: a.name, Zone: a.zone, Addr: "10.0.0.1:7400", Role: wire.RoleAgent, Software: "test"}
	if a.lookup != nil {
		cfg.Hello.Role = wire.RoleOrigin
	}
	cfg.OnStatus = func(s tracker.TrackerStatus) { a.update(func() { a.up[s.Addr] = s.Connected }) }
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
func (a *agent) Share(id piece.ID, share uint16)  { a.update(func() { a.shares[id] = share }) }
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
	deadline := time.After(10 * time.Second)
	for {
		a.mu.Lock()
		ok, changed := cond(), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			a.mu.Lock()
			defer a.mu.Unlock()
			a.t.Fatalf("%s: not in 10 s: %s; verdicts %v, peers %v, up %v", a.name, what, a.verdicts, a.peers, a.up)
		}
	}
}

func (a *agent) waitUp(addrs ...string) {
	a.t.Helper()
	a.wait("connected", func() bool {
		return !slices.ContainsFunc(addrs, func(s string) bool { return !a.up[s] })
	})
}

func (a *agent) last(id piece.ID) tracker.VerdictKind {
	if v := a.verdicts[id]; len(v) > 0 {
		return v[len(v)-1].Kind
	}
	return 0
}

func (a *agent) waitVerdict(id piece.ID, kinds ...tracker.VerdictKind) tracker.VerdictKind {
	a.t.Helper()
	var got tracker.VerdictKind
	a.wait(fmt.Sprintf("verdict %v", kinds), func() bool { got = a.last(id); return slices.Contains(kinds, got) })
	return got
}

func blobID(n int) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
	id.Sum[0], id.Sum[1] = byte(n), byte(n>>8)
	return id
}

// The story that matters most: agents ask at the same moment for a blob that
// nobody has. One gets the lease, the others are told of it; it dies, and
// another one gets the lease; that one finishes, and everybody knows.
func TestLeaseStory(t *testing.T) {
	for _, trackers := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(trackers), func(t *testing.T) {
			var addrs []string
			for range trackers {
				addrs = append(addrs, startTracker(t, nil).addr)
			}
			var agents []*agent
			for i := range 8 {
				agents = append(agents, startAgent(t, fmt.Sprintf("n%d", i), addrs...))
			}
			for _, a := range agents {
				a.waitUp(addrs...)
			}
			id := blobID(7)
			for _, a := range agents {
				a.c.Want(id, tracker.Want{Waiting: true})
			}
			alive := agents
			var holder *agent
			for round := range 2 {
				var holders []*agent
				for _, a := range alive {
					if round > 0 {
						break
					}
					if a.waitVerdict(id, tracker.Lease, tracker.Sources) == tracker.Lease {
						holders = append(holders, a)
					}
				}
				if round > 0 { // one of them is told that it has the lease now
					got := make(chan *agent, len(alive))
					for _, a := range alive {
						go func() {
							a.wait("the lease, or a new source", func() bool {
								for _, p := range a.peers[id] {
									if p.Source {
										return true
									}
								}
								return a.last(id) == tracker.Lease
							})
							got <- a
						}()
					}
					for range alive {
						a := <-got
						a.mu.Lock()
						if a.last(id) == tracker.Lease {
							holders = append(holders, a)
						}
						a.mu.Unlock()
					}
				}
				if len(holders) != 1 {
					t.Fatalf("round %d: %d holders", round, len(holders))
				}
				holder = holders[0]
				alive = slices.DeleteFunc(slices.Clone(alive), func(a *agent) bool { return a == holder })
				for _, a := range alive {
					a.wait("the holder as source", func() bool { return a.peers[id][holder.name].Source })
				}
				if round == 0 {
					holder.c.LeaseProgress(id, 0)
					holder.stop()
					for _, a := range alive {
						a.wait("the holder is gone", func() bool { _, ok := a.peers[id][holder.name]; return !ok })
					}
				}
			}
			holder.c.LeaseProgress(id, 1000)
			hash := [32]byte{1, 2, 3}
			holder.c.AnnounceComplete(id, &hash)
			holder.c.LeaseDone(id, nil)
			for _, a := range alive {
				a.wait("the hash, and the holder complete", func() bool {
					return a.hashes[id] == hash && a.peers[id][holder.name].Complete
				})
				a.mu.Lock()
				for _, v := range a.verdicts[id] {
					if v.Kind != tracker.Sources {
						t.Errorf("%s: %v", a.name, a.verdicts[id])
					}
				}
				a.mu.Unlock()
			}
		})
	}
}
