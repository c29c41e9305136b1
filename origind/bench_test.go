package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// How fast one client pushes on loopback, plain and with mutual TLS.
func BenchmarkPush(b *testing.B) { plainAndTLS(b, benchPush) }

// plainAndTLS runs a benchmark of an origin without and with mutual TLS.
func plainAndTLS(b *testing.B, f func(b *testing.B, o *running)) {
	b.Run("plain", func(b *testing.B) { f(b, start(b, testConfig(b, b.TempDir(), nil))) })
	b.Run("TLS", func(b *testing.B) {
		ca, err := identity.InitCA(filepath.Join(b.TempDir(), "ca"), "default")
		if err != nil {
			b.Fatal(err)
		}
		issue := func(name string, role identity.Role) identity.Config {
			dir := filepath.Join(b.TempDir(), name)
			if err := ca.Issue(dir, identity.ID{Name: name, Roles: []identity.Role{role}}, nil, time.Hour); err != nil {
				b.Fatal(err)
			}
			return identity.Config{
				CA: filepath.Join(dir, identity.CACert), Cert: filepath.Join(dir, identity.Cert), Key: filepath.Join(dir, identity.Key),
			}
		}
		cfg := testConfig(b, b.TempDir(), nil)
		cfg.Identity = issue("origin", identity.RoleOrigin)
		o := start(b, cfg)
		me, err := identity.Load(issue("gateway", identity.RoleGateway), "default")
		if err != nil {
			b.Fatal(err)
		}
		o.client.Close()
		if o.client, err = origin.New(origin.Config{Origins: []string{o.addr}, TLS: me.ClientTLS(identity.RoleOrigin)}); err != nil {
			b.Fatal(err)
		}
		defer o.client.Close()
		f(b, o)
	})
}

func benchPush(b *testing.B, o *running) {
	const size = 64 << 20
	b.SetBytes(size)
	seed := uint64(0)
	for b.Loop() {
		b.StopTimer()
		seed++
		data, d := testBlob(size, seed)
		b.StartTimer()
		if _, err := o.push("any/app", data, d); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := o.client.Delete(b.Context(), origin.Ref{Digest: d}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// How fast one client, and four at once, read a warm blob of 1 GiB on loopback, and the processor's time for that, of origin and
// client together:
//
//	TMPDIR=/var/tmp go test ./origind -run '^$' -bench Read -benchtime 5x
func BenchmarkRead(b *testing.B) {
	const size = 1 << 30
	plainAndTLS(b, func(b *testing.B, o *running) {
		data, d := testBlob(size, 1)
		if _, err := o.push("any/app", data, d); err != nil {
			b.Fatal(err)
		}
		debug.FreeOSMemory() // of data, too
		for _, readers := range []int{1, 4} {
			b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
				b.SetBytes(int64(readers) * size)
				began := cpu(b)
				for b.Loop() {
					var g errgroup.Group
					for range readers {
						g.Go(func() error {
							r, _, err := o.client.Open(b.Context(), origin.Ref{Digest: d}, 0, -1)
							if err != nil {
								return err
							}
							defer r.Close()
							n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 256<<10))
							if err == nil && n != size {
								err = fmt.Errorf("%d bytes", n)
							}
							return err
						})
					}
					if err := g.Wait(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((cpu(b)-began).Seconds()/float64(b.N*readers), "cpu-s/GiB")
			})
		}
	})
}

// cpu returns the processor's time that this process has taken.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkStat(b *testing.B) {
	o := start(b, testConfig(b, b.TempDir(), nil))
	data, d := testBlob(1000, 1)
	if _, err := o.push("any/app", data, d); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := o.client.Stat(b.Context(), origin.Ref{Digest: d}); err != nil {
			b.Fatal(err)
		}
	}
}

// line is a backend of one blob, a block repeated, behind a line of so many bytes
// per second, which are counted from when it was opened.
type line struct {
	fetcher.Backend
	block []byte
	size  int64
	rate  float64
}

func (l *line) Stat(_ context.Context, key string) (fetcher.Info, error) {
	return fetcher.Info{Key: key, Size: l.size}, nil
}

func (l *line) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	return &lineReader{l: l, off: off, begin: time.Now(), from: off}, fetcher.Info{Key: key, Size: l.size}, nil
}

type lineReader struct {
	l         *line
	off, from int64
	begin     time.Time
}

func (r *lineReader) Read(p []byte) (int, error) {
	if r.off == r.l.size {
		return 0, io.EOF
	}
	for {
		if left := int64(time.Since(r.begin).Seconds()*r.l.rate) - (r.off - r.from); left > 0 {
			at := r.off % int64(len(r.l.block))
			n := copy(p[:min(int64(len(p)), left, r.l.size-r.off)], r.l.block[at:])
			r.off += int64(n)
			return n, nil
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (r *lineReader) Close() error { return nil }

// A cold blob of 2 GB from a backend of 200 MB/s: how much longer it takes than the
// line, and when the first byte is there.
func BenchmarkCold(b *testing.B) {
	block, _ := testBlob(1<<20, 1)
	l := &line{Backend: &fetchertest.Memory{}, block: block, size: 2_000_000_000, rate: 200e6}
	h := digest.SHA256.Digester()
	for left := l.size; left > 0; left -= int64(len(block)) {
		h.Hash().Write(block[:min(left, int64(len(block)))])
	}
	d := h.Digest()
	b.SetBytes(l.size)
	var n, first, all float64
	for b.Loop() {
		b.StopTimer() // so that it is cold
		o := start(b, testConfig(b, b.TempDir(), stores{"line": l}))
		b.StartTimer()
		begin := time.Now()
		r, _, err := o.client.Open(b.Context(), origin.Ref{Digest: d}, 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		first += time.Since(begin).Seconds()
		if m, err := io.Copy(io.Discard, r); err != nil || m != l.size-1 {
			b.Fatal(m, err)
		}
		all += time.Since(begin).Seconds()
		r.Close()
		n++
		b.StopTimer()
		o.stop()
		b.StartTimer()
	}
	b.ReportMetric(first/n*1000, "ms/first-byte")
	b.ReportMetric(all/n/(float64(l.size)/l.rate), "times-the-line")
}

// A cold blob that nodes want in the swarm, from a backend of 200 MB/s: when the
// first piece is verified at a node, after the backend's first byte; how much longer
// than the line it takes until all nodes have all of it; and how often the backend is
// read. To be run on a disk (TMPDIR=/var/tmp): tmpfs zeroes what is reserved.
func BenchmarkColdSwarm(b *testing.B) {
	for _, bb := range []struct {
		name  string
		nodes int
		size  int64
	}{{"2GB-to-1", 1, 2_000_000_000}, {"200MB-to-20", 20, 200_000_000}} {
		b.Run(bb.name, func(b *testing.B) { benchColdSwarm(b, bb.nodes, bb.size) })
	}
}

func benchColdSwarm(b *testing.B, nodes int, size int64) {
	block, _ := testBlob(1<<20, 1)
	l := &line{Backend: &fetchertest.Memory{}, block: block, size: size, rate: 200e6}
	h := digest.SHA256.Digester()
	for left := l.size; left > 0; left -= int64(len(block)) {
		h.Hash().Write(block[:min(left, int64(len(block)))])
	}
	id, err := piece.ParseID(h.Digest().String(), size)
	if err != nil {
		b.Fatal(err)
	}
	var n, first, all, opens float64
	for b.Loop() {
		b.StopTimer()
		count := &fetchertest.Counting{Backend: l}
		o := start(b, testConfig(b, b.TempDir(), stores{"line": count}))
		peers := make([]*peer, nodes)
		infos := []swarm.PeerInfo{{Node: "origin", Addr: o.swarm, Role: wire.RoleOrigin, Source: true}}
		for i := range peers {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			name := fmt.Sprintf("node-%d", i)
			peers[i] = newPeerWith(b, nil, func(c *swarm.NodeConfig) { c.Node, c.Listener, c.Advertise = name, ln, ln.Addr().String() })
			infos = append(infos, swarm.PeerInfo{Node: name, Addr: ln.Addr().String()})
		}
		b.StartTimer()
		begin := time.Now()
		for _, p := range peers {
			if err := p.node.Join(b.Context(), id, swarm.JoinOptions{Want: true}); err != nil {
				b.Fatal(err)
			}
			p.node.AddPeers(id, infos)
		}
		opened := make(chan time.Time, 1)
		go func() {
			for count.Opens() == 0 {
				time.Sleep(100 * time.Microsecond)
			}
			opened <- time.Now() // the line's first byte follows at once
		}()
		for {
			if st, ok := peers[0].node.Status(id); ok && st.Have > 0 {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		first += time.Since(<-opened).Seconds()
		for _, p := range peers {
			if err := <-p.node.Done(id); err != nil {
				b.Fatal(err)
			}
		}
		all += time.Since(begin).Seconds()
		opens += float64(count.Opens())
		n++
		b.StopTimer()
		o.stop()
		b.StartTimer()
	}
	b.ReportMetric(first/n*1000, "ms/first-piece")
	b.ReportMetric(all/n/(float64(l.size)/l.rate), "times-the-line")
	b.ReportMetric(opens/n, "backend-reads")
}

// BenchmarkStart is the start of a member that keeps a million blobs, until it can be asked: content directory, ledger, and all of
// it told to the ring. TMPDIR should be a tmpfs, where the bytes, one of each blob, are soon written.
func BenchmarkStart(b *testing.B) {
	const blobs = 1_000_000
	cfg := testConfig(b, b.TempDir(), nil)
	l := mustOpenLedger(b, cfg.Root)
	dir := filepath.Join(cfg.Root, "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	for n := 0; n < blobs; {
		c := &changes{entries: map[digest.Digest]*record.Entry{}}
		for range 10_000 {
			e := ledgerEntry(n, 1)
			e.Record.Size = 1
			e.Record.Homes[0].Place = record.Place{Backend: "none"}
			c.entries[e.Record.Digest] = e
			if err := os.WriteFile(filepath.Join(dir, e.Record.Digest.Encoded()), []byte{0}, 0o400); err != nil {
				b.Fatal(err)
			}
			n++
		}
		mustCommit(b, l, c)
	}
	if err := errors.Join(l.records.Compact(), l.close()); err != nil {
		b.Fatal(err)
	}
	before := rss(b)
	var kept int
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		s, err := openServer(ctx, ctx, cfg, nil, "127.0.0.1:0", prometheus.NewRegistry())
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.member.look(ctx, func(r *ringstate.Ring) { kept = r.Blobs() }); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric((rss(b)-before)/blobs, "RSS-B/blob")
		cancel()
		if err := s.close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	if kept != blobs {
		b.Fatalf("%d blobs are kept", kept)
	}
}

// rss returns the bytes of memory that this process has.
func rss(b *testing.B) float64 {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var all, pages int
	_, _ = fmt.Sscan(string(text), &all, &pages)
	return float64(pages * os.Getpagesize())
}
