package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// This file is the sequential writers of refs that are not the swarm's. They are
// containerd's own, underneath; we keep their status in memory, and our index
// up to date.

// ingests is what is known of ingest/.
type ingests struct {
	mu     sync.Mutex
	loaded bool                // byRef has all of ingest/
	byRef  map[string]*ingest  // those at rest, and those with a writer
	busy   map[string]struct{} // refs that a writer, an Abort or an adoption has
}

type ingest struct {
	status ctrdcontent.Status
}

func (g *ingests) init() {
	g.byRef = make(map[string]*ingest)
	g.busy = make(map[string]struct{})
}

func (g *ingests) acquire(ref string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.busy[ref]; ok {
		return fmt.Errorf("ref %s is locked: %w", ref, errdefs.ErrUnavailable)
	}
	g.busy[ref] = struct{}{}
	return nil
}

func (g *ingests) release(ref string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.busy, ref)
}

func (g *ingests) set(ref string, st ctrdcontent.Status) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.byRef[ref] = &ingest{st}
}

func (g *ingests) forget(ref string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.byRef, ref)
}

func (s *Store) ingestPath(ref string) string {
	return s.path("ingest", digest.FromString(ref).Encoded())
}

// loadIngests reads the statuses of ingests that were there before us, once.
func (s *Store) loadIngests(ctx context.Context) error {
	s.refs.mu.Lock()
	loaded := s.refs.loaded
	s.refs.mu.Unlock()
	if loaded {
		return nil
	}
	// Not the stock store's ListStatuses: one ingest that goes away meanwhile, or
	// that a crash has left without data, fails it.
	dirs, err := readNames(s.path("ingest"))
	if err != nil {
		return err
	}
	var all []ctrdcontent.Status
	for _, dir := range dirs {
		ref, err := os.ReadFile(s.path("ingest", dir, "ref"))
		if err != nil {
			continue
		}
		if st, err := s.stock.Status(ctx, string(ref)); err == nil {
			all = append(all, st)
		}
	}
	s.refs.mu.Lock()
	defer s.refs.mu.Unlock()
	if s.refs.loaded {
		return nil
	}
	for _, st := range all {
		_, busy := s.refs.busy[st.Ref]
		if _, ok := s.refs.byRef[st.Ref]; ok || busy {
			continue
		}
		if _, err := os.Lstat(s.ingestPath(st.Ref)); err == nil { // not aborted since
			s.refs.byRef[st.Ref] = &ingest{st}
		}
	}
	s.refs.loaded = true
	return nil
}

// Status returns the status of the ingest of a ref, from memory once the
// ingests of an earlier process have been read.
func (s *Store) Status(ctx context.Context, ref string) (ctrdcontent.Status, error) {
	if err := s.loadIngests(ctx); err != nil {
		return ctrdcontent.Status{}, err
	}
	s.refs.mu.Lock()
	defer s.refs.mu.Unlock()
	if g := s.refs.byRef[ref]; g != nil {
		return g.status, nil
	}
	return ctrdcontent.Status{}, fmt.Errorf("ingest ref %q: %w", ref, errdefs.ErrNotFound)
}

// ListStatuses returns the statuses of all ingests that match.
func (s *Store) ListStatuses(ctx context.Context, fs ...string) ([]ctrdcontent.Status, error) {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return nil, err
	}
	if err := s.loadIngests(ctx); err != nil {
		return nil, err
	}
	s.refs.mu.Lock()
	defer s.refs.mu.Unlock()
	var active []ctrdcontent.Status
	for _, g := range s.refs.byRef {
		if filter.Match(filters.AdapterFunc(func(path []string) (string, bool) {
			return g.status.Ref, len(path) > 0 && path[0] == "ref"
		})) {
			active = append(active, g.status)
		}
	}
	return active, nil
}

// Abort removes the ingest of a ref, whether or not it has a writer, as the
// stock store does; unlinking happens in Run. Aborting what is not there is no
// error, since containerd's collection stops at the first.
func (s *Store) Abort(ctx context.Context, ref string) error {
	s.refs.forget(ref)
	if err := s.toTrash(s.ingestPath(ref)); err != nil {
		return fmt.Errorf("aborting ingest ref %q: %w", ref, err)
	}
	return nil
}

// Writer opens or resumes the sequential writer of a ref, exactly as the stock
// store does. One writer per ref at a time; others get errdefs.ErrUnavailable.
func (s *Store) Writer(ctx context.Context, opts ...ctrdcontent.WriterOpt) (ctrdcontent.Writer, error) {
	var o ctrdcontent.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if o.Ref == "" {
		return nil, fmt.Errorf("ref must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.refs.acquire(o.Ref); err != nil {
		return nil, err
	}
	var w ctrdcontent.Writer
	err := s.withRoom(ctx, nil, 1<<20, func() (err error) {
		w, err = s.stock.Writer(ctx, opts...)
		return err
	})
	if err != nil {
		s.refs.release(o.Ref)
		return nil, err
	}
	sw := &seqWriter{Writer: w, s: s, ref: o.Ref}
	sw.note()
	return sw, nil
}

// seqWriter is the stock store's writer, watched.
type seqWriter struct {
	ctrdcontent.Writer
	s      *Store
	ref    string
	closed bool
	room   int64 // bytes to write before free space is looked at again
}

// note remembers the status for those who ask without a writer.
func (w *seqWriter) note() {
	if st, err := w.Writer.Status(); err == nil {
		w.s.refs.set(w.ref, st)
	}
}

// roomStep is after how many bytes a sequential writer looks at free space again: what
// the stock store's could not write, it cannot write again.
const roomStep = 16 << 20

func (w *seqWriter) Write(p []byte) (int, error) {
	if w.room -= int64(len(p)); w.room < 0 {
		w.room = roomStep
		w.s.await(context.Background(), nil, func() bool {
			free, total, err := w.s.Space()
			low := min(roomLow, total/20)
			return err != nil || free >= low || w.s.makeRoom(context.Background(), low-free) > 0
		})
	}
	n, err := w.Writer.Write(p)
	w.note()
	if isNoSpace(err) {
		err = fmt.Errorf("writing ref %q: %w: %w", w.ref, ErrNoSpace, err)
	}
	return n, err
}

func (w *seqWriter) Truncate(size int64) error {
	err := w.Writer.Truncate(size)
	w.note()
	return err
}

// Sync syncs what was written, so that Commit, which containerd calls under its
// locks, has little to do.
func (w *seqWriter) Sync() error {
	if sy, ok := w.Writer.(ctrdcontent.Syncer); ok {
		return sy.Sync()
	}
	return nil
}

func (w *seqWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	err := w.Writer.Close()
	w.s.refs.release(w.ref)
	return err
}

// Commit is the stock store's, after which the blob is in the index. Another
// copy of it, in cache/ or arriving from the swarm, is given up.
func (w *seqWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...ctrdcontent.Opt) error {
	if w.closed {
		return fmt.Errorf("cannot commit on closed writer: %w", errdefs.ErrFailedPrecondition)
	}
	d := expected
	if d == "" || !d.Algorithm().Available() {
		d = w.Digest()
	}
	if err := w.Sync(); err != nil { // not under the digest's lock
		w.Close()
		return fmt.Errorf("syncing ref %q: %w", w.ref, err)
	}
	s := w.s
	if err := s.dirs.Make(filepath.Dir(s.blobPath(d, Committed))); err != nil { // the stock store would not sync it
		w.Close()
		return fmt.Errorf("committing ref %q: %w", w.ref, err)
	}
	unlock := s.places.Lock(d)
	err := w.Writer.Commit(ctx, size, expected, opts...)
	w.closed = true
	// The stock store keeps the ingest after most errors.
	if err == nil || errdefs.IsAlreadyExists(err) {
		s.refs.forget(w.ref)
	}
	var added int64 = -1
	if err == nil {
		added, err = s.noteCommit(d)
	}
	unlock()
	s.refs.release(w.ref)
	if added >= 0 {
		s.blobAdded(d, added)
		s.dropPartials(d)
	}
	return err
}

// noteCommit notes a blob that the stock store has put into blobs/. d is locked.
func (s *Store) noteCommit(d digest.Digest) (size int64, err error) {
	fi, err := os.Stat(s.blobPath(d, Committed))
	if err != nil {
		return -1, err
	}
	s.mu.Lock()
	e := s.index[d]
	cached := e != nil && e.place == Cached
	if e == nil {
		e = &entry{dgst: d, place: Committed}
		s.put(e)
	}
	s.unkeep(e)
	s.move(e, Committed)
	e.unsynced = false
	e.stat(fi)
	s.mu.Unlock()
	if cached {
		s.report(s.toTrash(s.blobPath(d, Cached)))
	}
	return fi.Size(), nil
}

// AdoptIngest moves what a stock containerd had written under ref, before the
// directory was switched to Capelin, into the partial blob id: the bytes are
// hashed in order, and whole pieces count like appended ones. It takes as long as
// hashing takes; pieces count as they are reached. Nothing to adopt is no
// error. The ref must not have a writer ([errdefs.ErrUnavailable]). Afterwards the
// ingest is gone, unless ctx ended early.
func (s *Store) AdoptIngest(ctx context.Context, ref string, id piece.ID) error {
	dir := s.ingestPath(ref)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := s.refs.acquire(ref); err != nil {
		return err
	}
	defer s.refs.release(ref)
	if b, err := os.ReadFile(filepath.Join(dir, "ref")); err != nil || string(b) != ref {
		return nil // not a whole ingest; the next writer makes it anew
	}
	b, err := s.Blob(ctx, id, true)
	if err != nil {
		return err
	}
	defer b.Close()
	if b.Completed() {
		return s.Abort(ctx, ref)
	}
	if err := b.adopt(ctx, filepath.Join(dir, "data")); err != nil && (ctx.Err() != nil || !errors.Is(err, piece.ErrMismatch)) {
		return fmt.Errorf("adopting ingest %q: %w", ref, err)
	}
	return s.Abort(ctx, ref)
}

// adopt appends the file's bytes. If the blob is empty the file becomes its data
// file, so that nothing is copied.
func (b *Blob) adopt(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	left := min(fi.Size(), b.st.id.Size)
	inPlace, err := b.st.takeFile(path) // which makes it longer
	if err != nil {
		return err
	}
	a, err := b.Append(ctx, 0)
	if err != nil {
		return err
	}
	defer a.Close()
	a.inPlace = inPlace
	buf := make([]byte, 1<<20)
	for left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(f, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return err
		}
		if _, err := a.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
