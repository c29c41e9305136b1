package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// server is the content service on a socket, over a real store, with a swarm and
// trackers that do as they are told.
type server struct {
	root  string
	store *content.Store
	fs    *fetch.Fetches
	svc   *service
	swarm *script
	news  *news
	conn  *grpc.ClientConn
}

// news is what a test waits for: something has happened in the swarm or the store.
type news struct {
	mu   sync.Mutex
	next chan struct{} // closed then
}

func newNews() *news { return &news{next: make(chan struct{})} }

func (n *news) happened() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.next)
	n.next = make(chan struct{})
}

// until waits until something has happened that makes ok true.
func (n *news) until(ok func() bool) {
	for {
		n.mu.Lock()
		next := n.next
		n.mu.Unlock()
		if ok() {
			return
		}
		<-next
	}
}

// waiting waits until a session waits for the blob, for the n-th time.
func (s *server) waiting(id piece.ID, n int) {
	s.news.until(func() bool { return s.swarm.waits(id) >= n })
}

// cached waits until the blobs are in the cache.
func (s *server) cached(ids ...piece.ID) {
	s.news.until(func() bool {
		return !slices.ContainsFunc(ids, func(id piece.ID) bool { return s.store.Presence(id) != content.Cached })
	})
}

type serverOptions struct {
	authorizeBlob bool
	root          string
	stall         time.Duration
}

func newServer(t testing.TB, o serverOptions) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if o.root == "" {
		o.root = t.TempDir()
	}
	if o.stall == 0 {
		o.stall = time.Hour // slower than any test
	}
	news := newNews()
	ob := &observer{news: news}
	store, err := content.Open(ctx, content.Config{Root: filepath.Join(o.root, "content"), FreeFloor: -1, Observer: ob})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{root: o.root, store: store, news: news}
	d := &disk{store}
	s.fs = fetch.New(fetch.Config{Rules: fetch.Rules{
		AuthorizeBlob: o.authorizeBlob, Find: time.Hour, Stall: o.stall, Prefetch: time.Minute, MaxPrefetch: 8,
	}}, d)
	ob.fs = s.fs
	s.swarm = &script{
		ctx: ctx, store: store, fs: s.fs, news: news,
		blobs: map[piece.ID]*scripted{}, asks: map[piece.ID]uint64{}, waited: map[piece.ID]int{}, done: map[piece.ID]chan error{},
	}
	s.fs.Connect(s.swarm, s.swarm)
	im := newImages(s.fs, store)
	var visible ctrdcontent.Store = store
	if o.authorizeBlob {
		visible = hidingStore{store, d.hidden}
	}
	s.svc = newService(visible, d, s.fs, im)
	var wg sync.WaitGroup
	wg.Go(func() { s.fs.Run(ctx) })
	wg.Go(func() { im.run(ctx, s.svc.sessions.ids) })
	wg.Go(func() { store.Run(ctx) })

	srv := grpc.NewServer(grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize))
	api.RegisterContentServer(srv, s.svc)
	s.conn = serve(t, srv)
	t.Cleanup(func() {
		s.conn.Close()
		srv.Stop()
		cancel()
		s.swarm.wg.Wait()
		wg.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// serve serves on a new Unix socket and returns a connection to it.
func serve(t testing.TB, srv *grpc.Server) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "p") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := listenUnix(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// contents is the store as containerd's proxy client sees it.
func (s *server) contents() ctrdcontent.Store { return proxy.NewContentStore(s.conn) }

// metadata is containerd's metadata store over it, as in containerd itself.
func (s *server) metadata(t testing.TB, opts ...metadata.DBOpt) *metadata.DB {
	t.Helper()
	b, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	db := metadata.NewDB(b, s.contents(), nil, opts...)
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// remote is db's content store as a client in another process sees it, such as
// ctr: through containerd's own service.
func remote(t testing.TB, db *metadata.DB) ctrdcontent.Store {
	t.Helper()
	srv := grpc.NewServer(grpc.UnaryInterceptor(incoming), grpc.StreamInterceptor(incomingStream),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize))
	api.RegisterContentServer(srv, contentserver.New(db.ContentStore()))
	return proxy.NewContentStore(serve(t, srv))
}

type observer struct {
	fs   *fetch.Fetches
	news *news
}

func (o *observer) PiecesAdded(piece.ID, int, int, []byte) {}
func (o *observer) BlobAdded(id piece.ID) {
	if o.fs != nil {
		o.fs.Changed(id)
	}
	o.news.happened()
}
func (o *observer) BlobGone(piece.ID) {}

// script is a swarm and its trackers: it has the first pieces of some blobs.
type script struct {
	ctx   context.Context
	store *content.Store
	fs    *fetch.Fetches
	news  *news
	wg    sync.WaitGroup

	mu     sync.Mutex
	blobs  map[piece.ID]*scripted
	asks   map[piece.ID]uint64 // the last one's
	waited map[piece.ID]int    // how often it was asked for somebody who waits
	asked  []piece.ID          // wanted of the swarm, in order
	done   map[piece.ID]chan error
}

type scripted struct {
	data   []byte
	pieces int // that the swarm has; afterwards nobody has more
	hold   chan struct{}
}

// has lets the swarm have the first n pieces of a blob; n < 0: all. It delivers
// when hold is closed, if it is not nil.
func (s *script) has(id piece.ID, data []byte, n int, hold chan struct{}) {
	if n < 0 {
		n = id.Pieces()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[id] = &scripted{data, n, hold}
}

func (s *script) wanted() []piece.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]piece.ID(nil), s.asked...)
}

func (s *script) waits(id piece.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waited[id]
}

func (s *script) Join(_ context.Context, id piece.ID, as swarm.JoinOptions) error {
	defer s.news.happened()
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan error, 1)
	s.done[id] = done
	if as.Want {
		s.asked = append(s.asked, id)
	}
	if b := s.blobs[id]; b != nil && as.Want {
		s.wg.Go(func() {
			if err := s.deliver(id, b); err != nil {
				done <- err
			}
		})
	}
	return nil
}

func (s *script) Done(id piece.ID) <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done[id]
}

func (s *script) deliver(id piece.ID, b *scripted) error {
	if b.hold != nil {
		select {
		case <-b.hold:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
	blob, err := s.store.Blob(s.ctx, id, true)
	if err != nil {
		return err
	}
	defer blob.Close()
	sums := piece.NewSums(id)
	// The last link of false bytes does not verify, but the others do.
	if err := piece.NewHasher(sums).Write(sums, b.data); err != nil && !errors.Is(err, piece.ErrMismatch) {
		return err
	}
	for i := range b.pieces {
		if err := blob.WritePiece(piece.NewClaim(sums, i, b.data[id.Offset(i):][:id.PieceSize(i)])); err != nil {
			return fmt.Errorf("delivering: %w", err)
		}
	}
	if b.pieces < id.Pieces() {
		s.mu.Lock()
		ask := s.asks[id]
		s.mu.Unlock()
		s.fs.Verdict(id, tracker.Verdict{Kind: tracker.Nobody, Tag: ask})
	}
	return nil
}

func (s *script) LeaveNow(context.Context, piece.ID)       {}
func (s *script) AddPeers(piece.ID, []swarm.PeerInfo)      {}
func (s *script) Share(piece.ID, uint16)                   {}
func (s *script) Upstream(piece.ID, tracker.Upstream)      {}
func (s *script) Proven(piece.ID)                          {}
func (s *script) Status(piece.ID) (swarm.BlobStatus, bool) { return swarm.BlobStatus{}, true }

func (s *script) Want(id piece.ID, w tracker.Want) {
	defer s.news.happened()
	s.mu.Lock()
	b := s.blobs[id]
	s.asks[id] = w.Tag
	if w.Waiting {
		s.waited[id]++
	}
	s.mu.Unlock()
	v := tracker.Nobody
	if b != nil && !s.delivered(id, b) {
		v = tracker.Sources
	}
	if w.Waiting {
		s.fs.Verdict(id, tracker.Verdict{Kind: v, Tag: w.Tag})
	}
}

func (s *script) delivered(id piece.ID, b *scripted) bool {
	if b.pieces == id.Pieces() {
		return false
	}
	blob, err := s.store.Blob(s.ctx, id, false)
	if err != nil {
		return false
	}
	defer blob.Close()
	return blob.Have().Prefix() >= b.pieces
}

func (s *script) Unwant(piece.ID)                       {}
func (s *script) Announce(piece.ID, tracker.State)      {}
func (s *script) LeaseProgress(piece.ID, int64, string) {}
func (s *script) LeaseDone(piece.ID, error)             {}
