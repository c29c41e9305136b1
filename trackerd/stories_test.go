package trackerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/trackerd/state"
)

// story is a cluster with one tracker, whose agents all want blobID(1).
type story struct {
	t      *testing.T
	n      *fakeNet
	agents []*agent
}

// holder returns the only agent whose last verdict is Lease and which is not in
// without.
func (s *story) holder(what string, without ...*agent) *agent {
	s.t.Helper()
	var h []*agent
	for _, a := range s.agents {
		if a.get(blobID(1)) == tracker.Lease && !slices.Contains(without, a) {
			h = append(h, a)
		}
	}
	if len(h) != 1 {
		s.t.Fatalf("%s: %d holders", what, len(h))
	}
	return h[0]
}

// source checks that all but h are told that h, and nobody else, is the blob's source.
func (s *story) source(h *agent) {
	s.t.Helper()
	time.Sleep(time.Second) // news travel together
	synctest.Wait()
	for _, a := range s.agents {
		var sources []string
		for name, p := range a.peers[blobID(1)] {
			if p.Source {
				sources = append(sources, name)
			}
		}
		if a != h && !slices.Equal(sources, []string{h.name}) {
			s.t.Errorf("%s was told of the sources %v, want %s", a.name, sources, h.name)
		}
	}
}

func (s *story) want() {
	for _, a := range s.agents {
		a.c.Want(blobID(1), tracker.Want{Waiting: true})
	}
}

// The story that matters most: agents ask at the same moment for a blob that
// nobody has. One gets the lease, the others are told of it; it dies, and
// another one gets the lease; that one finishes, and everybody knows.
func TestLeaseStory(t *testing.T) {
	for trackers := range 3 {
		t.Run(fmt.Sprint(1+trackers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				id := blobID(1)
				s := &story{t: t, n: newNet()}
				var addrs []string
				for i := range 1 + trackers {
					addrs = append(addrs, fmt.Sprintf("t%d:1", i))
					defer s.n.serve(t, addrs[i], nil)()
				}
				for i := range 8 {
					a := s.n.agent(t, fmt.Sprintf("n%d", i), addrs...)
					defer a.stop()
					s.agents = append(s.agents, a)
				}
				synctest.Wait()
				s.want()
				first := s.holder("first")
				s.source(first)
				first.c.LeaseProgress(id, 0, "")
				first.stop()
				s.agents = slices.DeleteFunc(s.agents, func(a *agent) bool { return a == first })
				second := s.holder("once the first has gone")
				s.source(second)
				second.c.LeaseProgress(id, 1000, "")
				hash := [32]byte{1, 2, 3}
				second.c.AnnounceComplete(id, &hash)
				second.c.LeaseDone(id, nil)
				time.Sleep(time.Second)
				synctest.Wait()
				for _, a := range s.agents {
					if a == second {
						continue
					}
					if a.hashes[id] != hash || !a.peers[id][second.name].Complete {
						t.Errorf("%s, at the end: hash %x, peers %v; want %x, and %s complete", a.name, a.hashes[id], a.peers[id], hash, second.name)
					}
					if slices.ContainsFunc(a.verdicts[id], func(v tracker.Verdict) bool { return v.Kind != tracker.Sources }) {
						t.Errorf("%s, at the end: verdicts %v, want sources only", a.name, a.verdicts[id])
					}
				}
			})
		})
	}
}

// TestLeaseClocks goes through every way in which a lease ends, with the times
// that PROTOCOL.md gives.
func TestLeaseClocks(t *testing.T) {
	id := blobID(1)
	for _, tt := range []struct {
		name string
		end  func(h *agent) // what the holder does
		min  time.Duration  // when another one has the lease: not before, and soon after
	}{
		{"never started", func(*agent) {}, 3 * time.Second},
		{"stalls", func(h *agent) { h.c.LeaseProgress(id, 1000, "") }, 3 * time.Second},
		{"refused upstream", func(h *agent) { h.c.LeaseDone(id, errors.New("429 Too Many Requests\n")) }, 500 * time.Millisecond},
		{"breaks off", func(h *agent) {
			h.c.LeaseProgress(id, 1000, "")
			h.c.LeaseDone(id, fmt.Errorf("reading: %w", io.ErrUnexpectedEOF))
		}, 500 * time.Millisecond},
		{"cancelled", func(h *agent) { h.c.LeaseDone(id, fmt.Errorf("pull: %w", context.Canceled)) }, 0},
		{"dies", func(h *agent) { h.stop() }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &story{t: t, n: newNet()}
				defer s.n.serve(t, "t1:1", nil)()
				for i := range 4 {
					s.agents = append(s.agents, s.n.agent(t, fmt.Sprint(i), "t1:1"))
				}
				synctest.Wait()
				s.want()
				h := s.holder("first")
				start := time.Now()
				tt.end(h)
				synctest.Wait()
				s.agents = slices.DeleteFunc(s.agents, func(a *agent) bool { return a == h })
				for {
					var next []*agent
					for _, a := range s.agents {
						switch a.get(id) {
						case tracker.Lease:
							next = append(next, a)
						case tracker.Nobody, tracker.Unreachable:
							t.Fatalf("%s: %v", a.name, a.verdicts[id])
						}
					}
					if took := time.Since(start); len(next) == 1 {
						if took < tt.min || took > tt.min+50*time.Millisecond {
							t.Errorf("moved after %v", took)
						}
						break
					} else if took > 10*time.Second {
						t.Fatalf("not moved")
					}
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(time.Second)
				for _, a := range append(s.agents, h) {
					if v := a.get(id); v != tracker.Lease && v != tracker.Sources {
						t.Errorf("%s: %v", a.name, a.verdicts[id])
					}
				}
				for _, a := range append(s.agents, h) {
					a.stop()
				}
			})
		})
	}
}

// A holder that goes on bringing bytes keeps the lease as long as it takes.
func TestSlowButSteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := blobID(1)
		id.Size = 1 << 30
		n := newNet()
		defer n.serve(t, "t1:1", nil)()
		a, b := n.agent(t, "a", "t1:1"), n.agent(t, "b", "t1:1")
		synctest.Wait()
		a.c.Want(id, tracker.Want{Waiting: true})
		synctest.Wait()
		b.c.Want(id, tracker.Want{Waiting: true})
		for i := range 600 { // 200 kB/s for a minute
			a.c.LeaseProgress(id, int64(i)*20_000, "")
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if len(b.verdicts[id]) != 1 || b.last(id) != tracker.Sources || !b.peers[id]["a"].Source {
			t.Errorf("%v, %v", b.verdicts[id], b.peers[id])
		}
		a.c.AnnounceComplete(id, &[32]byte{9})
		a.c.LeaseDone(id, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(b.verdicts[id]) != 1 || !b.peers[id]["a"].Complete || b.hashes[id] != [32]byte{9} {
			t.Errorf("%v, %v, %v", b.verdicts[id], b.peers[id], b.hashes[id])
		}
		a.stop()
		b.stop()
	})
}

// BenchmarkRestart is how long a real tracker on loopback takes to know
// everything again after a restart, with the clients in the same process.
func BenchmarkRestart(b *testing.B) {
	_ = log.SetLevel("error")
	for _, agents := range []int{100, 500} {
		b.Run(fmt.Sprintf("%dx1000", agents), func(b *testing.B) {
			const blobs = 1000
			var srv *server
			cfg := DefaultConfig()
			cfg.Listen, cfg.Metrics = "127.0.0.1:0", ""
			cfg.onServer = func(s *server) { srv = s }
			start := func() (stop func()) {
				ctx, cancel := context.WithCancel(b.Context())
				up, done := make(chan struct{}), make(chan error, 1)
				cfg.OnListen = func(a, _ net.Addr) { cfg.Listen = a.String(); close(up) }
				go func() { done <- Run(ctx, cfg) }()
				<-up
				return func() { cancel(); <-done }
			}
			full := func() {
				for {
					srv.mu.Lock()
					n := srv.machine.Stats().Announces
					srv.mu.Unlock()
					if n >= uint64(agents*blobs) {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			stop := start()
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan struct{}, agents+1)
			for i := range agents {
				c := tracker.New(tracker.Config{
					Trackers: []string{cfg.Listen},
					Hello:    tracker.Hello{Cluster: "default", Node: fmt.Sprintf("node-%05d", i), Addr: "10.0.0.1:1", Role: 1},
				}, nil)
				for j := range blobs {
					c.AnnounceComplete(blobID(j), &[32]byte{1})
				}
				go func() { _ = c.Run(ctx); done <- struct{}{} }()
			}
			full()
			// Meanwhile one agent asks for something every 10 ms.
			var asked time.Time
			var slowest time.Duration
			probe := &probe{answered: make(chan tracker.VerdictKind, 1)}
			pc := tracker.New(tracker.Config{
				Trackers: []string{cfg.Listen},
				Hello:    tracker.Hello{Cluster: "default", Node: "probe", Addr: "10.0.0.1:1", Role: 1},
			}, probe)
			go func() { _ = pc.Run(ctx); done <- struct{}{} }()
			for b.Loop() {
				stop()
				stop = start()
				id := blobID(60000)
				for {
					select {
					case <-probe.answered:
					default:
					}
					asked = time.Now()
					pc.Want(id, tracker.Want{Waiting: true})
					if <-probe.answered != tracker.Unreachable {
						slowest = max(slowest, time.Since(asked))
					}
					pc.Unwant(id)
					srv.mu.Lock()
					n := srv.machine.Stats().Announces
					srv.mu.Unlock()
					if n >= uint64(agents*blobs) {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			b.ReportMetric(float64(slowest.Milliseconds()), "slowest-verdict-ms")
			b.ReportMetric(float64(agents*blobs)/(b.Elapsed().Seconds()/float64(b.N)), "announces/s")
			cancel()
			for range agents + 1 {
				<-done
			}
			stop()
		})
	}
}

// A node that fetches by itself is a source, is granted no lease for that, and
// may have one once its download ended badly and another client waits there.
func TestOwnDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := blobID(1)
		n := newNet()
		a, b := n.agent(t, "a", "t1:1"), n.agent(t, "b", "t1:1")
		a.c.Want(id, tracker.Want{Waiting: true})
		if got := a.get(id); got != tracker.Unreachable {
			t.Fatalf("without a tracker: %v", got)
		}
		a.c.LeaseProgress(id, 5000, "") // its containerd downloads
		defer n.serve(t, "t1:1", nil)()
		time.Sleep(2 * time.Second)
		b.c.Want(id, tracker.Want{Waiting: true})
		if got := b.get(id); got != tracker.Sources || !b.peers[id]["a"].Source {
			t.Errorf("b: %v, %v", got, b.peers[id])
		}
		if got := a.get(id); got == tracker.Lease {
			t.Errorf("a: %v", a.verdicts[id])
		}
		b.stop()
		a.c.LeaseDone(id, errors.New("503"))
		time.Sleep(600 * time.Millisecond)
		if got := a.get(id); got != tracker.Lease {
			t.Errorf("a, after its download failed: %v", a.verdicts[id])
		}
		a.stop()
	})
}

// probe is a Handler that waits for verdicts only.
type probe struct {
	answered chan tracker.VerdictKind
}

func (p *probe) Verdict(_ piece.ID, v tracker.Verdict) {
	select {
	case p.answered <- v.Kind:
	default:
	}
}
func (p *probe) Peers(piece.ID, []tracker.Peer)      {}
func (p *probe) PeersGone(piece.ID, []string)        {}
func (p *probe) Share(piece.ID, uint16)              {}
func (p *probe) Upstream(piece.ID, tracker.Upstream) {}
func (p *probe) SumsHash(piece.ID, [32]byte)         {}
func (p *probe) Command(*trackerpb.Command)          {}
func (p *probe) Lookup(piece.ID)                     {}

// Commands reach their node, and false sums are unpinned for everybody.
func TestCommandAndDisproved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := blobID(1)
		n := newNet()
		var srv *server
		defer n.serve(t, "t1:1", func(c *Config) { c.onServer = func(s *server) { srv = s } })()
		a, b := n.agent(t, "a", "t1:1"), n.agent(t, "b", "t1:1")
		synctest.Wait()
		srv.mu.Lock()
		srv.step(state.EvCommand{Node: "a", Command: &trackerpb.Command{
			Id: 7, Kind: &trackerpb.Command_Preheat{Preheat: &trackerpb.Preheat{Blobs: []*trackerpb.Blob{trackerpb.FromID(id)}}},
		}})
		srv.mu.Unlock()
		synctest.Wait()
		if len(a.commands) != 1 || a.commands[0].GetPreheat() == nil || len(b.commands) != 0 {
			t.Errorf("commands: %v, %v", a.commands, b.commands)
		}
		a.c.Result(&trackerpb.CommandResult{Id: 7, Supported: true})

		a.c.AnnounceComplete(id, &[32]byte{1})
		synctest.Wait()
		b.c.AnnounceComplete(id, &[32]byte{2})
		synctest.Wait()
		if b.hashes[id] != [32]byte{1} {
			t.Errorf("b, which claims another hash, was told %x", b.hashes[id])
		}
		c := n.agent(t, "c", "t1:1")
		synctest.Wait()
		c.c.Want(id, tracker.Want{Waiting: true})
		synctest.Wait()
		if c.hashes[id] != [32]byte{1} {
			t.Errorf("c was told %x", c.hashes[id])
		}
		c.c.Disproved(id, [32]byte{1})
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if c.hashes[id] != [32]byte{2} {
			t.Errorf("c was told %x at last", c.hashes[id])
		}
		for _, x := range []*agent{a, b, c} {
			x.stop()
		}
	})
}
