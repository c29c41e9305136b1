package hdfs

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/httpclient"
)

const (
	// maxPublish is how often a file is renamed that could not be.
	maxPublish = 4
	// cleanTime is how long a temporary file is tried to be removed of a write whose caller has gone.
	cleanTime = 10 * time.Second

	fileMode = "640"
	dirMode  = "750"
)

// Write implements fetcher.Backend.
func (b *Backend) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	st, err := b.write(ctx, key, size, r)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	return infoOf(key, st), nil
}

func (b *Backend) write(ctx context.Context, key string, size int64, r io.Reader) (fileStatus, error) {
	dst, err := b.locate(ctx, key)
	if err != nil {
		return fileStatus{}, err
	}
	w := &writing{b: b, ctx: ctx, tmp: b.cfg.Path + "/" + tmpDir + "/" + rand.Text(), dst: dst}
	st, err := w.all(newSource(ctx, size, r))
	if err == nil {
		b.sweepOld(ctx)
	}
	if err == nil || !w.created {
		return st, err
	}
	if ctx.Err() != nil { // its caller does not wait
		b.wg.Go(func() {
			ctx, cancel := context.WithTimeout(b.closing, cleanTime)
			defer cancel()
			_, _ = b.remove(ctx, w.tmp, nil)
		})
		return fileStatus{}, err
	}
	return w.abandon(err)
}

// writing is a write under way.
type writing struct {
	b        *Backend
	ctx      context.Context
	tmp, dst string
	created  bool       // something may be there by the name of tmp
	file     fileStatus // of what was written
	doubt    bool       // it may have been renamed
}

// all writes the temporary file, looks at what has become of it, and renames it.
func (w *writing) all(s *source) (fileStatus, error) {
	if err := w.upload(s); err != nil {
		return fileStatus{}, err
	}
	var err error
	if w.file, err = w.b.file(w.ctx, w.tmp); err != nil {
		return fileStatus{}, fmt.Errorf("what was written: %w", uncertain(err))
	}
	if w.file.Length != s.sent {
		return fileStatus{}, fmt.Errorf("of %d bytes, %d were stored: %w", s.sent, w.file.Length, errdefs.ErrUnavailable)
	}
	return w.publish()
}

// uncertain takes an errdefs.ErrNotFound, which is not about the object, out of an error.
func uncertain(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrUnavailable) //nolint:errorlint // on purpose
	}
	return err
}

// upload writes the temporary file. A datanode that fails is replaced by another one, as long as there is all that is to be sent.
func (w *writing) upload(s *source) error {
	if s.fill(); s.failed() {
		return s.err // before anything is made
	}
	cfg := w.b.cfg
	q := url.Values{
		"overwrite":  {"true"},
		"permission": {fileMode},
		// Datanodes sync a block to their disks when it ends. (HttpFS does not pass it on.)
		"createflag": {"CREATE,SYNC_BLOCK"},
	}
	if cfg.Replication > 0 {
		q.Set("replication", strconv.Itoa(cfg.Replication))
	}
	if cfg.BlockSize > 0 {
		q.Set("blocksize", strconv.FormatInt(int64(cfg.BlockSize), 10))
	}
	var bad excluded
	for try := 1; ; try++ {
		resp, err := w.b.sendBut(w.ctx, request{method: http.MethodPut, op: "CREATE", path: w.tmp, query: q, redirects: true}, bad)
		if err != nil {
			return uncertain(err)
		}
		resp.Body.Close()
		at, err := place(resp)
		if err != nil {
			return err
		}
		w.created = true
		err = w.b.put(w.ctx, at, s)
		if err == nil || w.ctx.Err() != nil || s.failed() || try == maxPlaces || !errdefs.IsUnavailable(err) || !s.rewind() {
			return err
		}
		bad.remember(at, err)
	}
}

// put sends what there is to a datanode, or to HttpFS itself.
func (b *Backend) put(ctx context.Context, at *url.URL, s *source) error {
	stall := httpclient.NewStall(ctx, b.cfg.Stall.D())
	defer stall.End()
	req, err := http.NewRequestWithContext(stall.Context(), http.MethodPut, at.String(), nil)
	if err != nil {
		return fmt.Errorf("datanode %s: %w", at.Host, errdefs.ErrUnavailable) // err has the URL, and that a token
	}
	req.Header.Set("Content-Type", "application/octet-stream") // without it HttpFS refuses
	pr, pw := io.Pipe()
	body := stall.Sending(pr)
	if req.ContentLength = s.length(); req.ContentLength != 0 {
		// Refusals come before the body, which can go elsewhere then.
		req.Header.Set("Expect", "100-continue")
		req.Body = body
	}
	done := make(chan error, 1)
	go func() {
		err := b.putAnswer(req)
		pr.CloseWithError(io.ErrClosedPipe)
		done <- err
	}()
	s.copyTo(pw)
	err = <-done
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.failed():
		return s.err
	case err != nil && s.ended() && isNetwork(err) && !s.small():
		return nil // the answer was lost: what is there tells
	case err != nil:
		return fmt.Errorf("datanode %s: %w", at.Host, stall.Err(err))
	case !s.ended():
		return fmt.Errorf("datanode %s had enough after %d bytes: %w", at.Host, s.sent, errdefs.ErrUnavailable)
	}
	return nil
}

func (b *Backend) putAnswer(req *http.Request) error {
	resp, err := b.http.Do(req)
	if err != nil {
		return &networkError{err}
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
		return uncertain(failure(resp))
	}
	return resp.Body.Close()
}

// publish renames the temporary file to the object's path.
func (w *writing) publish() (fileStatus, error) {
	for range maxPublish {
		var a boolean
		err := w.b.call(w.ctx, request{
			method: http.MethodPut, op: "RENAME", path: w.tmp, doubt: &w.doubt,
			query: url.Values{"destination": {w.dst}, "renameoptions": {"OVERWRITE"}},
		}, &a)
		switch {
		case err == nil && a.Boolean == nil:
			return w.file, nil
		case err == nil && *a.Boolean:
			return w.renamed()
		case err == nil: // HttpFS does not overwrite, and does not say what is wrong
			if st, ok, err := w.inPlace(); ok || err != nil {
				return st, err
			}
		case !errdefs.IsNotFound(err):
			return fileStatus{}, err
		}
		switch _, err := w.b.status(w.ctx, w.tmp); {
		case errdefs.IsNotFound(err) && w.doubt:
			return w.file, nil // an answer was lost
		case err != nil:
			return fileStatus{}, fmt.Errorf("the temporary file: %w", uncertain(err))
		}
		if err := w.b.mkdirs(w.ctx, path.Dir(w.dst)); err != nil {
			return fileStatus{}, err
		}
	}
	return fileStatus{}, fmt.Errorf("its directory %s is removed again and again: %w", path.Dir(w.dst), errdefs.ErrUnavailable)
}

func (b *Backend) mkdirs(ctx context.Context, dir string) error {
	var a boolean
	r := request{method: http.MethodPut, op: "MKDIRS", path: dir, query: url.Values{"permission": {dirMode}}}
	if err := b.call(ctx, r, &a); err != nil {
		return fmt.Errorf("making %s: %w", dir, uncertain(err))
	}
	if a.is(false) {
		return fmt.Errorf("%s could not be made: %w", dir, errdefs.ErrUnavailable)
	}
	return nil
}

// renamed looks where HttpFS has put the file: into a directory by the object's name, if there is one.
func (w *writing) renamed() (fileStatus, error) {
	st, err := w.b.status(w.ctx, w.dst)
	switch {
	case err != nil:
		w.doubt = true
		return fileStatus{}, uncertain(err)
	case st.isFile():
		return w.file, nil
	}
	w.tmp = w.dst + "/" + path.Base(w.tmp)
	return fileStatus{}, fmt.Errorf("there is a directory %s: %w", w.dst, errdefs.ErrFailedPrecondition)
}

// inPlace looks at what HttpFS has not overwritten. ok: it is what was to be written.
func (w *writing) inPlace() (st fileStatus, ok bool, err error) {
	st, err = w.b.status(w.ctx, w.dst)
	switch {
	case errdefs.IsNotFound(err):
		return st, false, nil
	case err != nil:
		return st, false, err
	case !st.isFile():
		return st, false, fmt.Errorf("there is a directory %s: %w", w.dst, errdefs.ErrFailedPrecondition)
	case st.same(w.file):
		return st, true, nil // an answer was lost
	}
	if st.Length == w.file.Length {
		equal, err := w.b.equal(w.ctx, w.tmp, w.dst)
		if err != nil {
			return st, false, uncertain(err)
		}
		if equal {
			_, _ = w.b.remove(w.ctx, w.tmp, nil) // if that fails, it is swept later
			return st, true, nil
		}
	}
	return st, false, fmt.Errorf("HttpFS cannot replace an object by another in one step; delete it first, or name the "+
		"namenodes themselves: %w",
		errdefs.ErrFailedPrecondition)
}

// equal compares the checksums of two files as HDFS keeps them (of CRC32Cs).
func (b *Backend) equal(ctx context.Context, x, y string) (bool, error) {
	var sums [2]struct {
		FileChecksum *struct{ Algorithm, Bytes string }
	}
	for i, p := range []string{x, y} {
		if err := b.call(ctx, request{method: http.MethodGet, op: "GETFILECHECKSUM", path: p}, &sums[i]); err != nil {
			return false, fmt.Errorf("comparing: %w", err)
		}
	}
	p, q := sums[0].FileChecksum, sums[1].FileChecksum
	return p != nil && q != nil && p.Bytes != "" && *p == *q, nil
}

// abandon removes the temporary file after an error. If it may have been renamed all the same, it finds
// out whether it was: as soon as it is removed it cannot be any more.
func (w *writing) abandon(cause error) (fileStatus, error) {
	if _, err := w.b.remove(w.ctx, w.tmp, nil); err != nil {
		if w.doubt {
			cause = fmt.Errorf("%w (and whether it was written is not known: %v)", cause, err) //nolint:errorlint // the first counts
		}
		return fileStatus{}, cause
	}
	if !w.doubt {
		return fileStatus{}, cause
	}
	st, err := w.b.status(w.ctx, w.dst)
	switch {
	case err == nil && st.same(w.file):
		return st, nil
	case err != nil && !errdefs.IsNotFound(err):
		cause = fmt.Errorf("%w (and whether it was written is not known: %v)", cause, err) //nolint:errorlint // the first counts
	}
	return fileStatus{}, cause
}

// copySize is how much is read at a time from what is to be written, in bytes.
const copySize = 128 << 10

// source is what is to be written.
type source struct {
	ctx   context.Context
	r     io.Reader
	size  int64  // negative: unknown
	buf   []byte // its room
	have  []byte // read and not yet taken
	first []byte // what was read first, as long as it is in buf
	read  int64  // bytes
	sent  int64  // bytes that were taken
	err   error  // after have: io.EOF if that is the right end
}

func newSource(ctx context.Context, size int64, r io.Reader) *source {
	room := int64(copySize)
	if size >= 0 && size < room {
		room = size + 1 // one more, to see whether there is more
	}
	return &source{ctx: ctx, r: r, size: size, buf: make([]byte, room)}
}

// failed reports whether there will be no right end.
func (s *source) failed() bool { return s.err != nil && s.err != io.EOF }

// ended reports whether all was taken.
func (s *source) ended() bool { return s.err == io.EOF && len(s.have) == 0 }

// small reports whether all is there, taken or not.
func (s *source) small() bool { return s.err == io.EOF && s.read <= int64(len(s.first)) }

// rewind reports whether all can be taken once more.
func (s *source) rewind() bool {
	if s.sent == 0 {
		return true
	}
	if s.small() {
		s.have, s.sent = s.first, 0
		return true
	}
	return false
}

// length is how long all is, if that is known already; else -1. It is asked before anything was taken.
func (s *source) length() int64 {
	if s.size < 0 && s.err == io.EOF {
		return s.read
	}
	return s.size
}

// fill reads on, if all was taken, until there is something to take or an end.
func (s *source) fill() {
	for len(s.have) == 0 && s.err == nil {
		if s.err = s.ctx.Err(); s.err != nil {
			return
		}
		// What is smaller than the buffer is read to its end into it, and can be sent again.
		at := 0
		if s.read == int64(len(s.first)) && len(s.first) < len(s.buf) {
			at = len(s.first)
		} else {
			s.first = nil
		}
		n, err := s.r.Read(s.buf[at:])
		if s.size >= 0 && int64(n) > s.size-s.read {
			s.err = fmt.Errorf("there are more than %d bytes to write: %w", s.size, errdefs.ErrInvalidArgument)
			return
		}
		s.have, s.read = s.buf[at:at+n], s.read+int64(n)
		if s.first != nil || at == 0 && s.read == int64(n) {
			s.first = s.buf[:at+n]
		}
		switch {
		case err == io.EOF && s.size >= 0 && s.read < s.size:
			s.err = fmt.Errorf("there are %d bytes to write instead of %d: %w: %w", s.read, s.size, io.ErrUnexpectedEOF, errdefs.ErrInvalidArgument)
		case err == io.EOF:
			s.err = io.EOF
		case err != nil:
			s.err = &sourceError{s.read, err}
		}
	}
}

// copyTo gives all to w, until w wants no more. The end, right or not, is w's, too.
func (s *source) copyTo(w *io.PipeWriter) {
	for {
		if s.fill(); len(s.have) == 0 {
			if s.err == io.EOF {
				w.Close()
			} else {
				w.CloseWithError(s.err)
			}
			return
		}
		n, err := w.Write(s.have)
		s.have, s.sent = s.have[n:], s.sent+int64(n)
		if err != nil {
			return
		}
	}
}

// sweeper removes what crashes have left.
type sweeper struct {
	mu   chan struct{}
	next time.Time
}

const (
	// sweepAge is how old temporary files are, by the namenode's clock, that nobody writes any more.
	sweepAge = 24 * time.Hour
	// sweepPause is the time between two sweeps, and sweepMost how many files one removes.
	sweepPause = 6 * time.Hour
	sweepMost  = 100
)

// sweepOld removes temporary files that are old, now and then. That fails silently: the next one may succeed.
func (b *Backend) sweepOld(ctx context.Context) {
	select {
	case b.sweep.mu <- struct{}{}:
		defer func() { <-b.sweep.mu }()
	default:
		return // another one does it
	}
	if time.Now().Before(b.sweep.next) {
		return
	}
	b.sweep.next = time.Now().Add(sweepPause)
	dir := b.cfg.Path + "/" + tmpDir
	var old []string
	_ = b.readDir(ctx, dir, "", func(now time.Time, st fileStatus) bool {
		if st.isFile() && isTmp(st.PathSuffix) && now.Sub(time.UnixMilli(st.ModificationTime)) > sweepAge {
			old = append(old, st.PathSuffix)
		}
		return len(old) < sweepMost
	})
	for _, name := range old {
		if _, err := b.remove(ctx, dir+"/"+name, nil); err != nil {
			return
		}
	}
}

// isTmp reports whether a name is one that rand.Text made.
func isTmp(name string) bool {
	return len(name) == len(rand.Text()) && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}
