package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
	"github.com/capelin-io/capelin/swarm/piece"
)

// upload is one push. What happens to it is decided by its machine; here is what the machine
// asks for: bodies, the disk, and other members.
type upload struct {
	s         *uploads
	id        string
	meta      uploadMeta
	dir       string
	size, due atomic.Int64 // bytes of the file; Unix nanoseconds of the machine's deadline
	counts    bool         // to its share; s.mu guards it

	mu     sync.Mutex // guards what follows; nothing blocks while it is held
	m      *mirror.Upload
	number uint64 // of requests
	asking map[uint64]*asking
	calls  map[uint64]context.CancelFunc // by feeder

	// Of whoever the machine lets write, verify or commit: one at a time.
	h    *hasher     // of size bytes; nil after a restart
	sums *piece.Sums // after it was verified; nil if it is empty
}

// asking is somebody who waits for the machine.
type asking struct {
	accepted  chan struct{}
	answer    chan mirror.Answer
	interrupt func() // ends the body, if it may be written
}

func (s *uploads) new(dir string, meta uploadMeta, size int64, used time.Time) *upload {
	cfg, id := s.mirror, filepath.Base(dir)
	if cfg.Key = meta.Key; cfg.Key == "" {
		cfg.Key = id
	}
	u := &upload{
		s: s, id: id, meta: meta, dir: dir, m: mirror.New(cfg, size, used),
		asking: map[uint64]*asking{}, calls: map[uint64]context.CancelFunc{},
	}
	u.size.Store(size)
	u.step(used, mirror.EvMembers{Members: s.members()})
	return u
}

func (u *upload) path() string { return filepath.Join(u.dir, "data") }

// committed returns the blob that the upload became, or "".
func (u *upload) committed() digest.Digest { return u.stands("").Committed }

// stands returns how the upload stands, for whoever asks.
func (u *upload) stands(asker string) mirror.Stands {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.m.Stands(asker)
}

// idle returns since when nothing has happened to the upload, and whether it may make room for others.
func (u *upload) idle() (since time.Time, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.m.Idle()
}

// step tells the machine of an event and does what it says. It reports whether the upload
// went by that.
func (u *upload) step(now time.Time, ev mirror.Event) (gone bool) {
	u.mu.Lock()
	for _, a := range u.m.Step(now, ev) {
		if f, ok := a.(mirror.ActForget); ok {
			gone = true
			u.s.ended.Add(u.id, f.Why)
		} else {
			u.perform(a)
		}
	}
	u.due.Store(0)
	if at := u.m.Deadline(); !at.IsZero() {
		u.due.Store(at.UnixNano())
		u.s.wake(at)
	}
	u.mu.Unlock()
	if gone {
		if err := u.s.forget(u); err != nil {
			log.G(u.s.tasks.ctx).WithError(err).WithField("upload", u.id).Warn("cannot remove an upload")
		}
	}
	return gone
}

// ask brings a request to the machine.
func (u *upload) ask(r mirror.Request, interrupt func()) *asking {
	a := &asking{make(chan struct{}, 1), make(chan mirror.Answer, 1), interrupt}
	u.mu.Lock()
	u.number++
	r.ID = u.number
	u.asking[r.ID] = a
	u.mu.Unlock()
	u.step(time.Now(), mirror.EvRequest{Request: r})
	return a
}

// perform does one thing; what takes time goes on in the background. u.mu is held.
func (u *upload) perform(a mirror.Action) {
	switch a := a.(type) {
	case mirror.ActReply:
		u.asking[a.ID].answer <- a.Answer
		delete(u.asking, a.ID)
	case mirror.ActAccept:
		u.asking[a.ID].accepted <- struct{}{}
	case mirror.ActStop:
		u.asking[a.ID].interrupt()
	case mirror.ActVerify:
		u.s.tasks.run(func(ctx context.Context) { u.step(time.Now(), mirror.EvVerified{Result: u.verify(ctx, a.Digest)}) })
	case mirror.ActCommit:
		u.s.tasks.run(func(ctx context.Context) { u.step(time.Now(), mirror.EvCommitted{Result: u.commit(ctx, a.Digest)}) })
	default:
		u.performAway(a)
	}
}

// append writes what r has to the upload's end, which must be where the request says, and
// returns how it stands then. What came before an error stays. interrupt makes r fail soon.
func (u *upload) append(ctx context.Context, req mirror.Request, r io.Reader, interrupt func()) (mirror.Answer, error) {
	req.Kind = mirror.Append
	stopped := &atomic.Bool{}
	a := u.ask(req, func() {
		stopped.Store(true)
		interrupt()
	})
	select {
	case ans := <-a.answer:
		return ans, u.failure(ans)
	case <-a.accepted:
	}
	err := u.write(ctx, r, stopped)
	u.step(time.Now(), mirror.EvAppended{Size: u.size.Load(), Broken: err != nil})
	ans := <-a.answer
	if ans.Code == mirror.Conflict || err == nil {
		err = u.failure(ans)
	} else {
		err = fmt.Errorf("upload %s at %d: %w", u.id, ans.Offset, diskfull.Classed(err))
	}
	return ans, err
}

// await returns the answer to a request.
func (u *upload) await(ctx context.Context, a *asking) (mirror.Answer, error) {
	select {
	case ans := <-a.answer:
		return ans, u.failure(ans)
	case <-ctx.Done():
		return mirror.Answer{}, fmt.Errorf("upload %s: %w", u.id, ctx.Err())
	}
}

// write appends a body to the file.
func (u *upload) write(ctx context.Context, r io.Reader, stopped *atomic.Bool) error {
	if err := u.rehash(ctx); err != nil {
		return err
	}
	f, err := disk.OpenFile(u.path(), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = u.s.copy(ctx, u, f, r, stopped)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// failure makes an error of an answer; nil if it is none.
func (u *upload) failure(a mirror.Answer) error {
	var class error
	switch a.Code {
	case mirror.Done, mirror.Later:
		return nil
	case mirror.OutOfRange:
		class = errdefs.ErrOutOfRange
	case mirror.WrongDigest:
		class = errdefs.ErrInvalidArgument
	case mirror.Unknown:
		class = errdefs.ErrNotFound
	case mirror.Conflict:
		class = errdefs.ErrConflict
	default:
		if _, status := origin.Class(a.Err); status != http.StatusInternalServerError || errdefs.IsInternal(a.Err) {
			return fmt.Errorf("upload %s: %w", u.id, a.Err)
		}
		class = errdefs.ErrUnavailable
	}
	if a.Err == nil {
		return fmt.Errorf("upload %s, which is at %d: %w", u.id, a.Offset, class)
	}
	return fmt.Errorf("upload %s, which is at %d: %v: %w", u.id, a.Offset, a.Err, class) //nolint:errorlint // of this class only
}

// rehash reads the upload if its hash was lost with an earlier process.
func (u *upload) rehash(ctx context.Context) error {
	if u.h != nil {
		return nil
	}
	f, err := os.Open(u.path())
	if err != nil {
		return fmt.Errorf("resuming upload %s: %w", u.id, err)
	}
	defer f.Close()
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	h := newHasher()
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("resuming upload %s: %w", u.id, err)
		}
		n, err := f.Read(*bp)
		h.Write((*bp)[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("resuming upload %s: %w", u.id, err)
		}
	}
	u.h = h
	u.size.Store(h.n)
	return nil
}

// verify finds out whether the upload is the blob d, or still is, if it became that.
func (u *upload) verify(ctx context.Context, d digest.Digest) mirror.Result {
	var err error
	if u.committed() != "" {
		err = u.s.kept(d)
	} else {
		u.sums, err = u.look(ctx, d)
	}
	switch {
	case err == nil:
		return mirror.Result{Digest: d, Code: mirror.Done}
	case errdefs.IsInvalidArgument(err):
		return mirror.Result{Digest: d, Code: mirror.WrongDigest, Err: err}
	case errdefs.IsNotFound(err):
		return mirror.Result{Digest: d, Code: mirror.Unknown, Err: err}
	}
	return mirror.Result{Digest: d, Code: mirror.Unavailable, Err: ours(err)}
}

// commit makes the upload, which was verified, the blob d.
func (u *upload) commit(ctx context.Context, d digest.Digest) mirror.Result {
	if u.committed() != "" {
		return mirror.Result{Digest: d, Code: mirror.Done}
	}
	if u.sums != nil {
		if err := u.s.keep(ctx, u, d, u.sums); err != nil {
			code := mirror.Unavailable
			if _, serr := os.Stat(u.path()); errors.Is(serr, os.ErrNotExist) {
				code = mirror.Unknown // it could not be synced
			}
			return mirror.Result{Digest: d, Code: code, Err: ours(err)}
		}
	}
	u.s.isBlob(u)
	if err := disk.RemoveAll(u.dir); err != nil {
		log.G(ctx).WithError(err).WithField("upload", u.id).Warn("cannot remove a committed upload")
	}
	return mirror.Result{Digest: d, Code: mirror.Done}
}

// ours marks an error of no class as this origin's own failure.
func ours(err error) error {
	if name, _ := origin.Class(err); name == "internal" {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
	return err
}

// look returns the sums of an upload that is the blob d; nil if that is empty.
// errdefs.ErrInvalidArgument if it is another.
func (u *upload) look(ctx context.Context, d digest.Digest) (*piece.Sums, error) {
	if err := u.rehash(ctx); err != nil {
		return nil, err
	}
	size := u.h.n
	if size == 0 && origin.IsEmpty(d) {
		return nil, nil
	}
	if d.Algorithm() == digest.SHA256 || size == 0 {
		if is := u.h.digest(); is != d {
			return nil, fmt.Errorf("upload %s: its %d bytes have the digest %s, not %s: %w", u.id, size, is, d, errdefs.ErrInvalidArgument)
		}
		return u.h.sums()
	}
	// Others are rare enough for a second pass.
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w: %w", u.id, err, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(u.path())
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	defer f.Close()
	sums, err := sumsOf(contextReader{ctx, f}, id)
	if errors.Is(err, piece.ErrMismatch) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return sums, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
