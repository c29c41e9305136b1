package plugin

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// BenchmarkLockedCalls measures what containerd calls under its locks while the swarm
// delivers as fast as it can: the 99th percentile of each call, in milliseconds, through
// the socket.
func BenchmarkLockedCalls(b *testing.B) {
	s := newServer(b, serverOptions{})
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var bytes int64
	for w := range 2 { // pieces are verified and written
		wg.Go(func() {
			id, data := fetchtest.Random(b, 32<<20, byte(w))
			for ctx.Err() == nil {
				if err := s.swarm.deliver(id, &scripted{data: data, pieces: id.Pieces()}); err != nil {
					b.Error(err)
					return
				}
				if blob, err := s.store.Blob(ctx, id, false); err == nil {
					blob.Drop()
					blob.Close()
				}
				mu.Lock()
				bytes += id.Size
				mu.Unlock()
			}
		})
	}
	c := api.NewContentClient(s.conn)
	cs := s.contents()
	took := map[string][]time.Duration{}
	timed := func(name string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took[name] = append(took[name], time.Since(start))
	}
	began := time.Now()
	i := 0
	for b.Loop() {
		i++
		id, data := fetchtest.Random(b, 1000+i%50_000, byte(i>>16))
		ref := fmt.Sprintf("ns/%d/layer-%s", i, id.Digest())
		sctx, end := context.WithCancel(ctx)
		w, err := c.Write(sctx)
		if err != nil {
			b.Fatal(err)
		}
		ask := func(m *api.WriteContentRequest) error {
			if err := w.Send(m); err != nil {
				return err
			}
			_, err := w.Recv()
			return err
		}
		timed("open", func() error {
			return ask(&api.WriteContentRequest{Action: api.WriteAction_STAT, Ref: ref, Total: id.Size})
		})
		timed("liststatuses", func() error { _, err := cs.ListStatuses(ctx); return err })
		if err := ask(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: data}); err != nil {
			b.Fatal(err)
		}
		timed("stat", func() error { return ask(&api.WriteContentRequest{Action: api.WriteAction_STAT}) })
		timed("commit", func() error {
			return ask(&api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: id.Size, Total: id.Size, Expected: id.Digest()})
		})
		end()
		timed("info", func() error { _, err := cs.Info(ctx, digest.Digest(id.Digest())); return err })
		timed("delete", func() error { return cs.Delete(ctx, digest.Digest(id.Digest())) })
		timed("abort", func() error { return cs.Abort(ctx, ref) })
	}
	seconds := time.Since(began).Seconds()
	cancel()
	wg.Wait()
	for name, d := range took {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)*99/100])/1e6, "p99-"+name+"-ms")
	}
	b.ReportMetric(float64(bytes)/seconds/1e6, "swarm-MB/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRead measures containerd's way to read a layer: 32 KiB at a time, each
// a stream of its own. Who serves it is the agent, or containerd's own content server and
// store on a socket of the same kind.
func BenchmarkRead(b *testing.B) {
	s := newServer(b, serverOptions{})
	id, data := fetchtest.Random(b, 16<<20, 1)
	if err := s.put(b, id, data); err != nil {
		b.Fatal(err)
	}
	store, err := local.NewStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	if err := ctrdcontent.WriteBlob(b.Context(), store, "r", bytes.NewReader(data), layer(id)); err != nil {
		b.Fatal(err)
	}
	stock := grpc.NewServer()
	api.RegisterContentServer(stock, contentserver.New(store))
	for name, cs := range map[string]ctrdcontent.Store{"agent": s.contents(), "containerd": proxy.NewContentStore(serve(b, stock))} {
		b.Run(name, func(b *testing.B) {
			ra, err := cs.ReaderAt(b.Context(), layer(id))
			if err != nil {
				b.Fatal(err)
			}
			defer ra.Close()
			buf := make([]byte, 32<<10)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := ra.ReadAt(buf, off); err != nil {
					b.Fatal(err)
				}
				off = (off + int64(len(buf))) % id.Size
			}
		})
	}
}

// put commits a blob through the socket.
func (s *server) put(t testing.TB, id piece.ID, data []byte) error {
	w, err := s.contents().Writer(t.Context(), ctrdcontent.WithRef("ns/1/layer-"+id.Digest()), ctrdcontent.WithDescriptor(layer(id)))
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit(t.Context(), id.Size, digest.Digest(id.Digest()))
}
