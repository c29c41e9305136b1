package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/shim"
	"github.com/capelin-io/capelin/swarm/piece"
)

// shimBlobs gives the registry shim what is on disk and what the swarm delivers.
type shimBlobs struct {
	*fetch.Fetches
	blobs fetch.Blobs
}

var _ shim.Blobs = shimBlobs{}

// Open implements shim.Blobs.
func (fs shimBlobs) Open(ctx context.Context, id piece.ID, want shim.Want) (io.ReadSeekCloser, error) {
	s := fs.Fetches.Open(id, fetch.Client{Authorized: true, Registry: labelled(want.Registry)})
	b, err := s.Blob(ctx)
	if err != nil {
		s.Close()
		return nil, err
	}
	r := &blobReader{fetch: s, from: fs, blob: b, whole: fs.blobs.Whole(id), want: want, ended: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	return r, nil
}

// A blobReader reads a blob while it arrives. At the first byte that it may not give yet
// it starts a goroutine that waits in the fetch as a session of containerd does, and
// if it is sent to the registry, downloads from there for everybody (obtain). A
// blobReader belongs to one goroutine at a time.
//
// A verified piece may still turn out to be false as long as the sums are not
// proven, and whoever made them up may have a registry of his own. So a reader gives
// its client the bytes that its own registry has sent, as they come, and all others when
// the whole blob is here, that is, proven.
type blobReader struct {
	fetch  *fetch.Session
	from   shimBlobs
	want   shim.Want
	ctx    context.Context // until Close
	cancel context.CancelCauseFunc

	blob   fetch.Blob
	whole  bool  // it was all here, and known to be right, from the beginning
	proven bool  // it is all here, and this client may have it
	own    bool  // blob is a handle of this reader's, not the fetch's
	pos    int64 // of the next byte
	// until is where the bytes end that were here when it was last looked, from pos on.
	until  int64
	sent   sentBytes     // what this client's registry sent
	direct io.ReadCloser // the registry's own bytes from pos on; nil: none

	closed  bool
	started bool
	ended   chan struct{} // obtain is over
	err     error         // why it failed; valid once it is over
}

const (
	// maxAhead is how far beyond what is here a reader may begin and still have
	// the blob downloaded from there on. Whoever wants a few bytes of a blob's end
	// that nobody has gets them from the registry, and the cluster nothing.
	maxAhead = 16 << 20
	// maxFailures of the registry in a row, none of which brought a whole piece.
	maxFailures = 3
	retryAfter  = 200 * time.Millisecond // before the third try; the second comes at once
	// partPatience is how long a client waits that wants a part of a blob. Whoever reads an
	// image lazily asks for many, and would wait for all of the blob each time.
	partPatience = 200 * time.Millisecond
)

var (
	errClosed    = fmt.Errorf("the client is gone: %w", context.Canceled)
	errElsewhere = errors.New("what is wanted is far from what would be downloaded")
	errTail      = fmt.Errorf("its registry ends the blob with other bytes: %w", errdefs.ErrPermissionDenied)
)

// Proven reports whether the bytes are known to be the digest's.
func (r *blobReader) Proven() bool { return r.whole }

// Seek implements io.Seeker.
func (r *blobReader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += r.fetch.ID().Size
	}
	if off < 0 || off > r.fetch.ID().Size {
		return 0, fmt.Errorf("offset %d of %s: %w", off, r.fetch.ID(), errdefs.ErrOutOfRange)
	}
	if off != r.pos {
		r.closeDirect()
		r.pos, r.until = off, 0
	}
	return off, nil
}

// Read implements io.Reader.
func (r *blobReader) Read(p []byte) (int, error) {
	if r.pos >= r.fetch.ID().Size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	var enough <-chan time.Time
	for over := false; ; {
		if r.direct != nil {
			return r.readDirect(p)
		}
		changed := r.blob.Changed() // before looking, so that nothing is missed
		if n, err := r.readAllowed(p); n > 0 || err != nil {
			return n, err
		}
		if over {
			switch {
			case r.err == nil && !r.own:
				// It came whole by another way than this handle's.
				if err := r.reopen(); err != nil {
					return 0, err
				}
				continue
			case r.err == nil:
				return 0, fmt.Errorf("reading %s at %d: %w", r.fetch.ID(), r.pos, content.ErrIncomplete)
			case errors.Is(r.err, errElsewhere):
				return r.readDirect(p)
			}
			return 0, r.err
		}
		if !r.started {
			r.started = true
			go r.obtain(r.pos)
		}
		if r.want.Part && enough == nil {
			t := time.NewTimer(partPatience)
			defer t.Stop()
			enough = t.C
		}
		select {
		case <-changed:
		case <-r.ended:
			over = true
		case <-enough:
			return r.readDirect(p)
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

// readAllowed reads what is on disk at pos, if this client may have it; 0 if there is nothing.
func (r *blobReader) readAllowed(p []byte) (int, error) {
	if err := r.prove(); err != nil {
		return 0, err
	}
	if r.proven {
		return r.readHere(p)
	}
	n, err := r.sent.readAt(p, r.pos, r.blob.ReadAt)
	if n > 0 {
		r.pos += int64(n)
		return n, nil
	}
	return r.here(0, err)
}

// prove finds out whether all of the blob is here, and whether this client may have it.
func (r *blobReader) prove() error {
	if r.proven || !r.from.blobs.Whole(r.fetch.ID()) {
		return nil
	}
	if tail := r.want.Tail; tail != nil {
		got := make([]byte, len(tail))
		if _, err := r.blob.ReadAt(got, r.fetch.ID().Size-int64(len(tail))); err != nil {
			_, err = r.here(0, err)
			return err
		}
		if !bytes.Equal(got, tail) {
			return fmt.Errorf("%s: %w", r.fetch.ID(), errTail)
		}
	}
	r.proven = true
	return nil
}

// readHere reads what is on disk at pos; 0 if the byte there is not.
func (r *blobReader) readHere(p []byte) (int, error) {
	id := r.fetch.ID()
	if r.until <= r.pos {
		have, i := r.blob.Have(), int(r.pos/id.Length())
		switch next := have.NextClear(i); {
		case next == i:
			return 0, nil
		case next < 0:
			r.until = id.Size
		default:
			r.until = id.Offset(next)
		}
	}
	n, err := r.blob.ReadAt(p[:min(int64(len(p)), r.until-r.pos)], r.pos)
	if err == nil {
		r.pos += int64(n)
	}
	return r.here(n, err)
}

// here is the result of reading what is on disk: what was taken back is not there.
func (r *blobReader) here(n int, err error) (int, error) {
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, content.ErrIncomplete), errors.Is(err, content.ErrDropped):
		r.until = 0
		return 0, nil
	}
	return 0, err
}

// reopen takes a handle of the whole blob.
func (r *blobReader) reopen() error {
	b, err := r.from.blobs.OpenBlob(r.ctx, r.fetch.ID())
	if err == nil {
		r.blob, r.own, r.until = b, true, 0
	}
	return err
}

// readDirect reads the registry's bytes, unverified, for this client alone.
func (r *blobReader) readDirect(p []byte) (int, error) {
	if r.direct == nil {
		var err error
		if r.direct, err = r.want.Upstream(r.ctx, r.pos); err != nil {
			return 0, err
		}
	}
	n, err := io.ReadAtLeast(r.direct, p[:min(int64(len(p)), r.fetch.ID().Size-r.pos)], 1)
	r.pos += int64(n)
	r.from.Config().OnRegistry(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *blobReader) closeDirect() {
	if r.direct != nil {
		r.direct.Close()
		r.direct = nil
	}
}

// Close implements io.Closer. It ends the download that this reader made, and
// waits for that.
func (r *blobReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.cancel(errClosed)
	if r.started {
		<-r.ended
	}
	r.closeDirect()
	var err error
	if r.own {
		err = r.blob.Close()
	}
	r.fetch.Close()
	return err
}

// obtain makes the blob whole: it waits for the swarm, and downloads if it is told
// to. from is where it is read.
func (r *blobReader) obtain(from int64) {
	defer close(r.ended)
	id := r.fetch.ID()
	var best int64 // from where it was downloaded last
	for failures, disproved := 0, 0; ; {
		a, err := r.fetch.Wait(r.ctx)
		switch {
		case err != nil:
			r.err = err
			return
		case a.Offset == id.Size:
			return
		case from > a.Offset+maxAhead:
			r.fetch.End(errClosed)
			r.err = errElsewhere
			return
		}
		if a.Offset > best {
			best, failures = a.Offset, 0
		}
		n, err := r.download(a.Offset)
		r.fetch.End(err)
		again := errdefs.IsUnavailable(err)
		switch {
		case err == nil:
			return
		case errors.Is(err, piece.ErrMismatch):
			// If the registry's bytes were right but for the digest at the end, they are
			// false; else those that were here may be. From now on the registry's alone
			// count; what contradicts them is dropped, which takes two more tries at most.
			disproved++
			again = disproved <= 2 && (a.Offset > 0 || n < id.Offset(id.Pieces()-1))
		case isFull(err):
			r.fetch.Fail(err)
		}
		if failures++; failures >= maxFailures || r.ctx.Err() != nil || !again {
			r.err = err
			return
		}
		select {
		case <-time.After(time.Duration(failures-1) * retryAfter):
		case <-r.ctx.Done():
		}
	}
}

// download appends what the registry has from off on to the blob, and returns how
// many bytes it brought. What is worth another try is errdefs.ErrUnavailable.
func (r *blobReader) download(off int64) (n int64, err error) {
	id := r.fetch.ID()
	defer func() {
		if err != nil && r.ctx.Err() != nil {
			err = context.Cause(r.ctx)
		}
	}()
	body, err := r.want.Upstream(r.ctx, off)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	app, err := r.blob.Append(r.ctx, off)
	if err != nil {
		return 0, err
	}
	defer app.Close()
	r.sent.begin(off)
	buf := make([]byte, 64<<10)
	for off+n < id.Size {
		if r.ctx.Err() != nil {
			return n, context.Cause(r.ctx)
		}
		got, err := body.Read(buf[:min(int64(len(buf)), id.Size-off-n)])
		if got > 0 {
			wrote, err := app.Write(buf[:got])
			r.sent.add(buf[:wrote])
			if n += int64(wrote); wrote > 0 {
				r.fetch.Wrote(wrote, off+n)
			}
			if err != nil {
				return n, err
			}
			continue // an error comes again
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, fmt.Errorf("the registry's answer ended at %d of %s: %w: %w", off+n, id, err, errdefs.ErrUnavailable)
		}
	}
	return n, app.Finish(r.ctx)
}
