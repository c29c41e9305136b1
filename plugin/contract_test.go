package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	grpcmeta "google.golang.org/grpc/metadata"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// What containerd's daemon does with the namespace of a request.
func incoming(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	return h(withIncoming(ctx), req)
}

func incomingStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return h(srv, nsStream{ss})
}

type nsStream struct{ grpc.ServerStream }

func (s nsStream) Context() context.Context { return withIncoming(s.ServerStream.Context()) }

func withIncoming(ctx context.Context) context.Context {
	if md, ok := grpcmeta.FromIncomingContext(ctx); ok {
		if v := md.Get(namespaces.GRPCHeader); len(v) == 1 {
			return namespaces.WithNamespace(ctx, v[0])
		}
	}
	return ctx
}

func TestContentSuite(t *testing.T) {
	direct := func(t *testing.T) testsuite.StoreInitFn {
		return func(ctx context.Context, root string) (context.Context, ctrdcontent.Store, func() error, error) {
			return ctx, newServer(t, serverOptions{root: root}).contents(), func() error { return nil }, nil
		}
	}
	testsuite.ContentSuite(t, "socket", direct(t))

	through := func(t *testing.T, opts ...metadata.DBOpt) testsuite.StoreInitFn {
		return func(ctx context.Context, root string) (context.Context, ctrdcontent.Store, func() error, error) {
			db := newServer(t, serverOptions{root: root}).metadata(t, opts...)
			var n atomic.Int32
			ctx = testsuite.SetContextWrapper(ctx, func(ctx context.Context, shared bool) (context.Context, func(context.Context) error, error) {
				ns := fmt.Sprintf("ns-%d", n.Add(1))
				ctx = namespaces.WithNamespace(ctx, ns)
				var err error
				if shared {
					err = db.Update(func(tx *bolt.Tx) error {
						return metadata.NewNamespaceStore(tx).SetLabel(ctx, ns, labels.LabelSharedNamespace, "true")
					})
				}
				return ctx, func(context.Context) error { return nil }, err
			})
			return ctx, db.ContentStore(), func() error { return nil }, nil
		}
	}
	testsuite.ContentSuite(t, "metadata", through(t))
	testsuite.ContentCrossNSSharedSuite(t, "metadata", through(t))
	testsuite.ContentCrossNSIsolatedSuite(t, "metadata", through(t, metadata.WithPolicyIsolated))
	testsuite.ContentSharedNSIsolatedSuite(t, "metadata", through(t, metadata.WithPolicyIsolated))
}

// registry is upstream: it counts, and may not serve ranges.
type registry struct {
	blobs  map[string][]byte
	noSeek bool // readers cannot seek
	no206  bool // and reading from the middle fails, like a registry's 416

	mu   sync.Mutex
	read []string // "from-to" of each reader
}

func (r *registry) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	b := &body{r: r, data: r.blobs[desc.Digest.String()]}
	if b.data == nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	if r.noSeek {
		return struct{ io.ReadCloser }{b}, nil
	}
	return b, nil
}

// requests returns what was read since it was asked last.
func (r *registry) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	read := r.read
	r.read = nil
	return read
}

type body struct {
	r        *registry
	data     []byte
	from, at int
}

func (b *body) Read(p []byte) (int, error) {
	if b.r.no206 && b.from > 0 {
		return 0, errors.New("416 Requested Range Not Satisfiable")
	}
	if b.at >= len(b.data) {
		return 0, io.EOF
	}
	n := copy(p, b.data[b.at:])
	b.at += n
	return n, nil
}

func (b *body) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("whence")
	}
	b.from, b.at = int(off), int(off)
	return off, nil
}

func (b *body) Close() error {
	if b.at > b.from {
		b.r.mu.Lock()
		b.r.read = append(b.r.read, fmt.Sprintf("%d-%d", b.from, b.at))
		b.r.mu.Unlock()
	}
	return nil
}

func layer(id piece.ID) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.Digest(id.Digest()), Size: id.Size}
}

// clients runs a test for each way in which containerd's stores are stacked: the
// daemon's own use (CRI, transfer service), and a client's in another process.
func clients(
	t *testing.T, o serverOptions,
	f func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, db *metadata.DB), opts ...metadata.DBOpt,
) {
	for _, far := range []bool{false, true} {
		name := "daemon"
		if far {
			name = "client"
		}
		t.Run(name, func(t *testing.T) {
			s := newServer(t, o)
			db := s.metadata(t, opts...)
			cs := db.ContentStore()
			if far {
				cs = remote(t, db)
			}
			f(t, s, namespaces.WithNamespace(t.Context(), "one"), cs, db)
		})
	}
}

func (s *server) wantBlob(t *testing.T, ctx context.Context, cs ctrdcontent.Store, id piece.ID, data []byte) {
	t.Helper()
	got, err := ctrdcontent.ReadBlob(ctx, cs, layer(id))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("reading back: %d bytes of %d, %v", len(got), len(data), err)
	}
	info, err := cs.Info(ctx, digest.Digest(id.Digest()))
	if err != nil || info.Size != id.Size || info.Digest.String() != id.Digest() {
		t.Errorf("Info: %+v, %v", info, err)
	}
	if p := s.store.Presence(id); p != content.Committed {
		t.Errorf("on disk it is %v", p)
	}
	if st, err := cs.ListStatuses(ctx); err != nil || len(st) != 0 {
		t.Errorf("statuses left: %v, %v", st, err)
	}
}

func TestContractFetch(t *testing.T) {
	const size = 20<<16 + 77
	id, data := fetchtest.Random(t, size, 2)
	half := fmt.Sprintf("%d-%d", 10<<16, size)
	tail := fmt.Sprintf("%d-%d", size-fetch.Tail, size)
	for _, tt := range []struct {
		name     string
		pieces   int // that the swarm has; -1: all
		noSeek   bool
		blob     bool
		requests []string
	}{
		{"the swarm has everything", -1, false, false, nil},
		{"the swarm has half", 10, false, false, []string{half}},
		{"the swarm has half, the registry no ranges", 10, true, false, []string{fmt.Sprintf("0-%d", size)}},
		{"nobody has anything", 0, false, false, []string{fmt.Sprintf("0-%d", size)}},
		{"authorized by the registry", -1, false, true, []string{tail}},
		{"authorized by the registry, half", 10, false, true, []string{half}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clients(t, serverOptions{authorizeBlob: tt.blob},
				func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
					if tt.pieces != 0 {
						s.swarm.has(id, data, tt.pieces, nil)
					}
					r := &registry{blobs: map[string][]byte{id.Digest(): data}, noSeek: tt.noSeek}
					if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
						t.Fatal(err)
					}
					if got := r.requests(); !slices.Equal(got, tt.requests) {
						t.Errorf("the registry was asked for %v, want %v", got, tt.requests)
					}
					s.wantBlob(t, ctx, cs, id, data)
					if err := remotes.Fetch(ctx, cs, r, layer(id)); !errdefs.IsAlreadyExists(err) {
						t.Errorf("fetching it again: %v", err)
					}
				})
		})
	}
}

// A registry that cannot serve the rest fails the pull; the next one gets all.
func TestContractNoRanges(t *testing.T) {
	for _, blob := range []bool{false, true} {
		clients(t, serverOptions{authorizeBlob: blob}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
			id, data := fetchtest.Random(t, 8<<16, 3)
			s.swarm.has(id, data, 4, nil)
			if blob {
				s.swarm.has(id, data, -1, nil)
			}
			r := &registry{blobs: map[string][]byte{id.Digest(): data}, no206: true}
			if err := remotes.Fetch(ctx, cs, r, layer(id)); err == nil {
				t.Fatal("a range from a registry without ranges")
			}
			if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
				t.Fatal(err)
			}
			s.wantBlob(t, ctx, cs, id, data)
		})
	}
}

func TestContractTwoNamespaces(t *testing.T) {
	for _, isolated := range []bool{false, true} {
		var opts []metadata.DBOpt
		if isolated {
			opts = append(opts, metadata.WithPolicyIsolated)
		}
		t.Run(fmt.Sprintf("isolated=%t", isolated), func(t *testing.T) {
			clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, db *metadata.DB) {
				id, data := fetchtest.Random(t, 5<<16, 4)
				r := &registry{blobs: map[string][]byte{id.Digest(): data}}
				if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
					t.Fatal(err)
				}
				r.requests()
				two := namespaces.WithNamespace(t.Context(), "two")
				if err := remotes.Fetch(two, cs, r, layer(id)); err != nil {
					t.Fatal(err)
				}
				if got := r.requests(); len(got) != 0 {
					t.Errorf("the second namespace downloaded %v", got)
				}
				s.wantBlob(t, two, cs, id, data)

				// Removed from one, it stays for the other; from both, it goes.
				d := digest.Digest(id.Digest())
				if err := cs.Delete(ctx, d); err != nil {
					t.Fatal(err)
				}
				gc(t, db)
				if s.store.Presence(id) == content.Committed {
					// without a lease or a label nothing holds it
					t.Error("unreferenced content survived the collection")
				}
			}, opts...)
		})
	}
}

// Two namespaces at once: the second takes what the first one downloads.
func TestContractSharedDownload(t *testing.T) {
	s := newServer(t, serverOptions{})
	db := s.metadata(t, metadata.WithPolicyIsolated)
	id, data := fetchtest.Random(t, 6<<16, 5)
	one, two := namespaces.WithNamespace(t.Context(), "one"), namespaces.WithNamespace(t.Context(), "two")
	slow := &slowFetcher{data: data, started: make(chan struct{}), release: make(chan struct{})}
	errs := make(chan error, 2)
	go func() { errs <- remotes.Fetch(one, db.ContentStore(), slow, layer(id)) }()
	<-slow.started
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	go func() { errs <- remotes.Fetch(two, db.ContentStore(), r, layer(id)) }()
	s.waiting(id, 2)
	close(slow.release)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := r.requests(); len(got) != 0 {
		t.Errorf("the second namespace downloaded %v", got)
	}
	s.wantBlob(t, two, db.ContentStore(), id, data)
}

type slowFetcher struct {
	data             []byte
	started, release chan struct{}
}

func (f *slowFetcher) Fetch(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(bytes.NewReader(f.data[:1<<16]), readerFunc(func([]byte) (int, error) {
		close(f.started)
		<-f.release
		return 0, io.EOF
	}), bytes.NewReader(f.data[1<<16:]))), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func gc(t *testing.T, db *metadata.DB) {
	t.Helper()
	if _, err := db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Collections during a pull neither fail nor harm it, and what is deleted comes
// back without a download.
func TestContractGC(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, db *metadata.DB) {
		id, data := fetchtest.Random(t, 5<<16, 6)
		hold := make(chan struct{})
		s.swarm.has(id, data, -1, hold)
		r := &registry{}
		done := make(chan error, 1)
		go func() { done <- remotes.Fetch(ctx, cs, r, layer(id)) }()
		s.waiting(id, 1)
		st, err := cs.ListStatuses(ctx)
		if err != nil || len(st) != 1 || st[0].Total != id.Size || !strings.HasPrefix(st[0].Ref, "layer-") {
			t.Errorf("statuses during a pull: %+v, %v", st, err)
		}
		gc(t, db)
		close(hold)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := cs.Delete(ctx, digest.Digest(id.Digest())); err != nil {
			t.Fatal(err)
		}
		gc(t, db)
		gc(t, db)
		if p := s.store.Presence(id); p != content.Cached {
			t.Errorf("after its deletion the blob is %v", p)
		}
		if _, err := cs.Info(ctx, digest.Digest(id.Digest())); !errdefs.IsNotFound(err) {
			t.Errorf("Info of a deleted blob: %v", err)
		}
		if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
			t.Fatal(err)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// A pull that is cancelled while it waits frees its ref at once; an aborted one
// fails; a resumed one continues.
func TestContractCancelAndAbort(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, db *metadata.DB) {
		id, data := fetchtest.Random(t, 5<<16, 7)
		hold := make(chan struct{})
		s.swarm.has(id, data, -1, hold)
		cctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- remotes.Fetch(cctx, cs, &registry{}, layer(id)) }()
		s.waiting(id, 1)
		cancel()
		if err := <-done; err == nil {
			t.Error("a cancelled pull succeeded")
		}
		for len(s.svc.sessions.list()) > 0 {
			time.Sleep(time.Millisecond)
		}

		go func() { done <- remotes.Fetch(ctx, cs, &registry{}, layer(id)) }()
		s.waiting(id, 2)
		st := s.svc.sessions.list()
		if len(st) != 1 {
			t.Fatalf("%d sessions", len(st))
		}
		if err := s.contents().Abort(ctx, st[0].Ref); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("an aborted pull succeeded")
		}
		if err := s.contents().Abort(ctx, st[0].Ref); err != nil {
			t.Errorf("aborting nothing: %v", err)
		}
		if err := s.contents().Delete(ctx, digest.Digest(id.Digest())); err != nil {
			t.Errorf("deleting nothing: %v", err)
		}
		close(hold)
		if err := remotes.Fetch(ctx, cs, &registry{}, layer(id)); err != nil {
			t.Fatal(err)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// A download that breaks off is resumed from the verified prefix.
func TestContractResume(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
		id, data := fetchtest.Random(t, 40<<16, 8)
		broken := &registry{blobs: map[string][]byte{id.Digest(): data[:3<<20/2]}} // ends early
		if err := remotes.Fetch(ctx, cs, broken, layer(id)); err == nil {
			t.Fatal("a download that broke off succeeded")
		}
		r := &registry{blobs: map[string][]byte{id.Digest(): data}}
		if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
			t.Fatal(err)
		}
		if got := r.requests(); len(got) != 1 || strings.HasPrefix(got[0], "0-") {
			t.Errorf("resumed with %v", got)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// A registry that sends something else: an error that names the digest, and
// nothing false stays.
func TestContractWrongBytes(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
		id, data := fetchtest.Random(t, 5<<16, 9)
		wrong := bytes.Clone(data)
		wrong[2<<16] ^= 1
		err := remotes.Fetch(ctx, cs, &registry{blobs: map[string][]byte{id.Digest(): wrong}}, layer(id))
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), id.Digest()) {
			t.Errorf("wrong bytes: %v", err)
		}
		if err := remotes.Fetch(ctx, cs, &registry{blobs: map[string][]byte{id.Digest(): data}}, layer(id)); err != nil {
			t.Fatal(err)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// A peer that delivers false pieces under false sums fails a pull at most once:
// the next one comes from the registry alone.
func TestContractFalsePrefix(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
		id, data := fetchtest.Random(t, 9<<16, 42)
		false1 := bytes.Clone(data)
		false1[100] ^= 1
		s.swarm.has(id, false1, 4, nil)
		r := &registry{blobs: map[string][]byte{id.Digest(): data}}
		if err := remotes.Fetch(ctx, cs, r, layer(id)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("with a false prefix: %v", err)
		}
		if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
			t.Fatal(err)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// A blob of stock containerd's whose bytes have rotted is not handed to another
// namespace but downloaded, which heals it.
func TestContractRotten(t *testing.T) {
	id, data := fetchtest.Random(t, 3<<16, 43)
	root := t.TempDir()
	dir := filepath.Join(root, "content", "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rotten := bytes.Clone(data)
	rotten[5] ^= 1
	if err := os.WriteFile(filepath.Join(dir, id.Hex()), rotten, 0o444); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, serverOptions{root: root})
	b, err := s.store.Blob(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.ComputeSums(t.Context()); !errors.Is(err, piece.ErrMismatch) {
		t.Fatalf("sums of rotten bytes: %v", err)
	}
	b.Close()
	db := s.metadata(t, metadata.WithPolicyIsolated)
	ctx := namespaces.WithNamespace(t.Context(), "one")
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	if err := remotes.Fetch(ctx, db.ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	s.wantBlob(t, ctx, db.ContentStore(), id, data)
}

// Two pulls of one image in one namespace: the second waits for the first, as
// under the stock store.
func TestContractOneRefTwice(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
		id, data := fetchtest.Random(t, 5<<16, 10)
		hold := make(chan struct{})
		s.swarm.has(id, data, -1, hold)
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- remotes.Fetch(ctx, cs, &registry{}, layer(id)) }()
		}
		s.waiting(id, 1)
		close(hold)
		for range 2 {
			if err := <-errs; err != nil && !errdefs.IsAlreadyExists(err) {
				t.Error(err)
			}
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// With authorize = "blob" what is only in our cache is not there for containerd,
// until the registry has let it have the tail.
func TestContractHiddenCache(t *testing.T) {
	clients(t, serverOptions{authorizeBlob: true}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
		id, data := fetchtest.Random(t, 5<<16, 11)
		if err := s.swarm.deliver(id, &scripted{data: data, pieces: id.Pieces()}); err != nil {
			t.Fatal(err)
		}
		b, err := s.store.Blob(ctx, id, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Complete(ctx); err != nil {
			t.Fatal(err)
		}
		b.Close()
		if _, err := s.contents().Info(ctx, digest.Digest(id.Digest())); !errdefs.IsNotFound(err) {
			t.Errorf("Info of a cached blob: %v", err)
		}
		if err := remotes.Fetch(ctx, cs, &registry{}, layer(id)); err == nil {
			t.Error("got a blob that the registry refuses")
		}
		r := &registry{blobs: map[string][]byte{id.Digest(): data}}
		if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil {
			t.Fatal(err)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}

// Manifests are containerd's to fetch; the layers that they name are expected.
func TestContractManifestIsLearned(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, _ *metadata.DB) {
		var layers []string
		var ids []piece.ID
		blobs := map[string][]byte{}
		for i := range 4 {
			id, data := fetchtest.Random(t, 3<<16, byte(20+i))
			ids = append(ids, id)
			blobs[id.Digest()] = data
			s.swarm.has(id, data, -1, nil)
			layers = append(layers,
				fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}`, id.Digest(), id.Size))
		}
		manifest := []byte(fmt.Sprintf(`{"schemaVersion":2,"layers":[%s]}`, strings.Join(layers, ",")))
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
		blobs[desc.Digest.String()] = manifest
		r := &registry{blobs: blobs}
		if err := remotes.Fetch(ctx, cs, r, desc); err != nil {
			t.Fatal(err)
		}
		if got := s.swarm.wanted(); len(got) != 0 {
			t.Errorf("a committed manifest started %v", got)
		}
		// Layer 0 has a snapshot already: containerd begins with the next.
		if err := remotes.Fetch(ctx, cs, r, layer(ids[1])); err != nil {
			t.Fatal(err)
		}
		s.cached(ids[2], ids[3])
		if got := s.swarm.wanted(); slices.Contains(got, ids[0]) {
			t.Error("a layer below was fetched")
		}
		r.requests()
		for _, id := range ids[2:] {
			if err := remotes.Fetch(ctx, cs, r, layer(id)); err != nil && !errdefs.IsAlreadyExists(err) {
				t.Fatal(err)
			}
		}
		if got := r.requests(); len(got) != 0 {
			t.Errorf("downloaded %v", got)
		}
	})
}

// A manifest that was there before the agent was started is learned when
// containerd reads it.
func TestContractManifestIsRead(t *testing.T) {
	s := newServer(t, serverOptions{})
	cs := s.metadata(t).ContentStore()
	ctx := namespaces.WithNamespace(t.Context(), "one")
	first, data := fetchtest.Random(t, 3<<16, 60)
	second, data2 := fetchtest.Random(t, 3<<16, 61)
	s.swarm.has(first, data, -1, nil)
	s.swarm.has(second, data2, -1, nil)
	manifest := []byte(fmt.Sprintf(`{"layers":[{"digest":%q,"size":%d},{"digest":%q,"size":%d}]}`, first.Digest(), first.Size,
		second.Digest(), second.Size))
	desc := ocispec.Descriptor{Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if err := ctrdcontent.WriteBlob(ctx, cs, "import-x", bytes.NewReader(manifest), desc); err != nil {
		t.Fatal(err)
	}
	if _, err := ctrdcontent.ReadBlob(ctx, cs, desc); err != nil {
		t.Fatal(err)
	}
	if err := remotes.Fetch(ctx, cs, &registry{}, layer(first)); err != nil {
		t.Fatal(err)
	}
	s.cached(second)
}

// Broken or hostile clients get errors; nothing panics, and the ref is free
// afterwards.
func TestMalformedStreams(t *testing.T) {
	s := newServer(t, serverOptions{})
	c := api.NewContentClient(s.conn)
	id, data := fetchtest.Random(t, 3<<16, 30)
	ref := "ns/1/layer-" + id.Digest()
	const (
		stat   = api.WriteAction_STAT
		write  = api.WriteAction_WRITE
		commit = api.WriteAction_COMMIT
	)
	open := &api.WriteContentRequest{Action: stat, Ref: ref, Total: id.Size}
	for _, tt := range []struct {
		name string
		msgs []*api.WriteContentRequest
		ok   func(error) bool
	}{
		{"no ref", []*api.WriteContentRequest{{Action: stat}}, errdefs.IsInvalidArgument},
		{"nothing", []*api.WriteContentRequest{{}}, errdefs.IsInvalidArgument},
		{"another ref", []*api.WriteContentRequest{open, {Action: stat, Ref: "x"}}, errdefs.IsInvalidArgument},
		{"unknown action", []*api.WriteContentRequest{open, {Action: 77}}, errdefs.IsInvalidArgument},
		{"commit without data", []*api.WriteContentRequest{open, {Action: commit, Total: id.Size, Expected: id.Digest()}},
			errdefs.IsFailedPrecondition},
		{"commit of another digest",
			[]*api.WriteContentRequest{open, {Action: stat}, {Action: commit, Expected: string(digest.FromString("x"))}},
			errdefs.IsFailedPrecondition},
		{"commit of another size", []*api.WriteContentRequest{open, {Action: stat}, {Action: commit, Total: 7}}, errdefs.IsFailedPrecondition},
		{"commit of garbage",
			[]*api.WriteContentRequest{open, {Action: stat}, {Action: commit, Total: -7, Offset: -1, Expected: "x"}},
			errdefs.IsFailedPrecondition},
		{"commit too early",
			[]*api.WriteContentRequest{open, {Action: stat}, {Action: write, Data: data[:9]}, {Action: commit, Offset: 9, Total: id.Size}},
			errdefs.IsFailedPrecondition},
		{"commit elsewhere",
			[]*api.WriteContentRequest{open, {Action: stat}, {Action: write, Data: data[:9]}, {Action: commit, Offset: 3}},
			errdefs.IsOutOfRange},
		{"a gap", []*api.WriteContentRequest{open, {Action: stat}, {Action: write, Offset: 5, Data: data[:9]}}, errdefs.IsOutOfRange},
		{"backwards", []*api.WriteContentRequest{open, {Action: stat}, {Action: write, Offset: -5, Data: data[:9]}}, errdefs.IsOutOfRange},
		{"too much", []*api.WriteContentRequest{open, {Action: stat}, {Action: write, Data: append(bytes.Clone(data), 1)}}, errdefs.IsOutOfRange},
		{"too much, later", []*api.WriteContentRequest{open, {Action: write, Data: data[:9]}, {Action: write, Offset: 9, Data: data}},
			errdefs.IsOutOfRange},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := stream(t, c, tt.msgs)
			if !tt.ok(err) {
				t.Errorf("%v", err)
			}
		})
	}

	// A write without asking where, written twice from the start, and with the end
	// in the commit.
	if err := stream(t, c, []*api.WriteContentRequest{
		open, {Action: write, Data: data[:100]}, {Action: write, Data: data[:1<<16]}, {Action: stat},
		{Action: write, Offset: 1 << 16, Data: data[1<<16 : 2<<16]}, {Action: write, Offset: 2 << 16},
		{Action: commit, Offset: 2 << 16, Data: data[2<<16:], Total: id.Size},
	}); err != nil {
		t.Errorf("an odd but right stream: %v", err)
	}
	if p := s.store.Presence(id); p != content.Committed {
		t.Errorf("it is %v", p)
	}

	// Opening says AlreadyExists only if the digest is given.
	if err := stream(t, c, []*api.WriteContentRequest{open}); err != nil {
		t.Error(err)
	}
	again := []*api.WriteContentRequest{{Action: stat, Ref: ref, Total: id.Size, Expected: id.Digest()}}
	if err := stream(t, c, again); !errdefs.IsAlreadyExists(err) {
		t.Errorf("with the digest: %v", err)
	}
	// A commit of what is there succeeds.
	whole := []*api.WriteContentRequest{open, {Action: stat}, {Action: commit, Total: id.Size, Expected: id.Digest()}}
	if err := stream(t, c, whole); err != nil {
		t.Errorf("committing what is there: %v", err)
	}
	// Other calls.
	if _, err := c.Update(t.Context(), &api.UpdateRequest{}); err == nil {
		t.Error("an update of nothing")
	}
	for _, d := range []string{"", "x", "sha256:", "../../etc"} {
		if _, err := c.Info(t.Context(), &api.InfoRequest{Digest: d}); err == nil {
			t.Errorf("Info(%q)", d)
		}
		if _, err := c.Delete(t.Context(), &api.DeleteContentRequest{Digest: d}); err == nil {
			t.Errorf("Delete(%q)", d)
		}
		if r, err := c.Read(t.Context(), &api.ReadContentRequest{Digest: d, Offset: -3, Size: -9}); err == nil {
			if _, err = r.Recv(); err == nil {
				t.Errorf("Read(%q)", d)
			}
		}
	}
	if n := len(s.svc.sessions.list()); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// stream sends messages one by one and returns the first error.
func stream(t *testing.T, c api.ContentClient, msgs []*api.WriteContentRequest) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := c.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range msgs {
		if err := w.Send(m); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			return errgrpc.ToNative(err)
		}
	}
	w.CloseSend()
	if _, err := w.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the end: %v", err)
	}
	return nil
}

// What stock containerd had downloaded when the node was switched is not
// downloaded again.
func TestContractSwitchInMidPull(t *testing.T) {
	id, data := fetchtest.Random(t, 9<<16, 40)
	root := t.TempDir()
	stock, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	// The daemon's name for the ref, as the first ingest of its namespace.
	w, err := stock.Writer(t.Context(), ctrdcontent.WithRef("one/1/layer-"+id.Digest()),
		ctrdcontent.WithDescriptor(ocispec.Descriptor{Size: id.Size}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[:5<<16+7]); err != nil {
		t.Fatal(err)
	}
	w.Close()

	s := newServer(t, serverOptions{root: root})
	db := s.metadata(t)
	ctx := namespaces.WithNamespace(t.Context(), "one")
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	if err := remotes.Fetch(ctx, db.ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	if got, want := r.requests(), []string{fmt.Sprintf("%d-%d", 5<<16, id.Size)}; !slices.Equal(got, want) {
		t.Errorf("downloaded %v, want %v", got, want)
	}
	s.wantBlob(t, ctx, db.ContentStore(), id, data)
}

// The blob comes in another way, such as an import, while a session waits.
func TestContractImportMeanwhile(t *testing.T) {
	clients(t, serverOptions{}, func(t *testing.T, s *server, ctx context.Context, cs ctrdcontent.Store, db *metadata.DB) {
		id, data := fetchtest.Random(t, 9<<16, 41)
		s.swarm.has(id, data, -1, make(chan struct{})) // never delivered
		done := make(chan error, 1)
		go func() { done <- remotes.Fetch(ctx, cs, &registry{}, layer(id)) }()
		s.waiting(id, 1)
		two := namespaces.WithNamespace(t.Context(), "two")
		if err := ctrdcontent.WriteBlob(two, cs, "import-"+id.Digest(), bytes.NewReader(data), layer(id)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		s.wantBlob(t, ctx, cs, id, data)
	})
}
