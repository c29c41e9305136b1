package origind

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/swarm/piece"
)

// donor is another member of the ring, as a blob is read from it: an origin.Member.
type donor interface {
	Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error)
	Sums(ctx context.Context, id piece.ID) (*piece.Sums, error)
}

// donors are the members that may have one blob: a fetcher.Backend with one object, for a cold read. When one
// fails, the reader goes on with the next from the same byte.
//
// The read takes over the sums of whom it reads from, and so finds wrong bytes at the end of their piece. It then
// goes on from there with the next donor. One whose bytes were wrong may be right about other pieces: it is
// left out for that piece only, and asked after the others from then on.
type donors struct {
	id    piece.ID
	at    func(name string) (donor, error)
	pace  *pace
	moved func(n int) // counts bytes

	mu     sync.Mutex
	all    []*source // best first
	stream []stretch // who gave which bytes to the read of all of it, since it was opened last
	mixed  int       // wrong pieces in a row of which nobody knows whose they are
}

// source is one of them.
type source struct {
	name  string
	none  error        // it does not have the blob
	wrong map[int]bool // pieces of it that were
}

// stretch is a part of a stream: the bytes from off on, up to the next stretch.
type stretch struct {
	off int64
	s   *source
}

func newDonors(id piece.ID, names []string, at func(string) (donor, error), pace *pace, moved func(int)) *donors {
	d := &donors{id: id, at: at, pace: pace, moved: moved}
	for _, name := range names {
		if !slices.ContainsFunc(d.all, func(s *source) bool { return s.name == name }) {
			d.all = append(d.all, &source{name: name, wrong: map[int]bool{}})
		}
	}
	return d
}

// turns returns whom to ask for what begins at off: those who were wrong less often first, and not at all
// whoever was wrong about that piece, or has nothing.
func (d *donors) turns(off int64) []*source {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := int(off / d.id.Length())
	able := slices.DeleteFunc(slices.Clone(d.all), func(s *source) bool { return s.none != nil || s.wrong[i] })
	slices.SortStableFunc(able, func(a, b *source) int { return cmp.Compare(len(a.wrong), len(b.wrong)) })
	return able
}

// lacks notes that a member does not have the blob.
func (d *donors) lacks(s *source, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.none = err
}

// adopt makes the list of whom a read will ask first the one that its pieces are verified by, if that member
// has one. It reports whether pieces that counted were dropped: the lists are not the same.
func (d *donors) adopt(ctx context.Context, blob *content.Blob) (dropped bool) {
	if sums, _ := blob.Sums(); sums.Complete() {
		return false // it goes on by those
	}
	for _, s := range d.turns(blob.Prefix()) {
		m, err := d.at(s.name)
		if err != nil {
			continue
		}
		if sums, err := m.Sums(ctx, d.id); err == nil {
			lost, _ := blob.Adopt(sums)
			return len(lost) > 0
		}
	}
	return false
}

// blame says that a read of all of the blob has failed in the piece that has the byte at, since that piece is not
// what it should be. It reports whether somebody is left who can be asked for what begins at next.
func (d *donors) blame(at, next int64) (again bool) {
	i := int(at / d.id.Length())
	from := d.id.Offset(i)
	end := from + int64(d.id.PieceSize(i))
	d.mu.Lock()
	var gave []*source
	for k, s := range d.stream {
		if s.off < end && (k+1 == len(d.stream) || d.stream[k+1].off > from) {
			gave = append(gave, s.s)
		}
	}
	d.stream = nil
	if len(gave) == 1 {
		gave[0].wrong[i], d.mixed = true, 0
	} else {
		d.mixed++ // nobody knows which of them; it is asked for again, whole
	}
	tried := d.mixed > len(d.all)
	d.mu.Unlock()
	return !tried && len(d.turns(next)) > 0
}

// upTo returns how many of n bytes from off on a member is asked for: up to the next piece that was wrong there.
func (d *donors) upTo(s *source, off, n int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range s.wrong {
		if at := d.id.Offset(i); at > off {
			n = min(n, at-off)
		}
	}
	return n
}

// Open implements fetcher.Backend. A negative n is the read of all of the blob, of which there is one at a time.
func (d *donors) Open(ctx context.Context, _ string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r := &donated{d: d, ctx: ctx, off: off, n: n}
	if n < 0 {
		r.n = d.id.Size - off
		r.all = true
		d.mu.Lock()
		d.stream = nil
		d.mu.Unlock()
	}
	if err := r.next(); err != nil {
		return nil, fetcher.Info{}, err
	}
	return r, fetcher.Info{Size: d.id.Size}, nil
}

// donated reads a part of a blob from one member after the other.
type donated struct {
	d      *donors
	ctx    context.Context
	off, n int64 // still to come
	all    bool  // see Open
	from   *source
	body   io.ReadCloser // nil: there is none
	failed []*source     // since the last byte
}

// next asks the next member. errdefs.ErrUnavailable if one may answer another time.
func (r *donated) next() error {
	var errs []error
	later := len(r.failed) > 0
	for _, s := range r.d.turns(r.off) {
		if slices.Contains(r.failed, s) {
			continue
		}
		body, err := r.ask(s)
		if err == nil {
			r.from, r.body = s, body
			if r.all {
				r.d.mu.Lock()
				r.d.stream = append(r.d.stream, stretch{r.off, s})
				r.d.mu.Unlock()
			}
			return nil
		}
		if r.ctx.Err() != nil {
			return fmt.Errorf("asking member %s: %w", s.name, r.ctx.Err())
		}
		err = fmt.Errorf("member %s: %w", s.name, err)
		errs = append(errs, err)
		if !errdefs.IsUnavailable(err) {
			r.d.lacks(s, err)
			continue
		}
		later = true
	}
	err := errors.Join(errs...)
	switch {
	case err == nil:
		err = errors.New("no member is left to be asked")
	case !later:
		err = errors.New(err.Error()) // of no class: nobody has it
	}
	if later {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

func (r *donated) ask(s *source) (io.ReadCloser, error) {
	m, err := r.d.at(s.name)
	if err != nil {
		return nil, err
	}
	body, info, err := m.Open(r.ctx, origin.Ref{Digest: digest.Digest(r.d.id.Digest())}, r.off, r.d.upTo(s, r.off, r.n))
	if err == nil && info.Size != r.d.id.Size {
		body.Close()
		err = fmt.Errorf("its blob has %d bytes, not %d: %w", info.Size, r.d.id.Size, errdefs.ErrNotFound)
	}
	return body, err
}

func (r *donated) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	for {
		if r.body == nil {
			if err := r.next(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.n, r.d.pace.most())])
		if n > 0 {
			r.off, r.n = r.off+int64(n), r.n-int64(n)
			r.failed = nil
			r.d.moved(n)
			return n, r.d.pace.wait(r.ctx, n) // an error of the body comes again
		}
		if err == nil {
			continue
		}
		r.body.Close()
		r.body = nil
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		if errors.Is(err, io.EOF) { // what it was asked for
			continue
		}
		r.failed = append(r.failed, r.from)
	}
}

func (r *donated) Close() error {
	if r.body != nil {
		return r.body.Close()
	}
	return nil
}

// Name implements fetcher.Backend.
func (d *donors) Name() string {
	names := make([]string, len(d.all))
	for i, s := range d.all {
		names[i] = s.name
	}
	return "members " + strings.Join(names, ", ")
}

// The rest of a fetcher.Backend, which nobody needs of donors.

func (d *donors) Capabilities() fetcher.Capabilities { return fetcher.Capabilities{} }

func (d *donors) Stat(context.Context, string) (fetcher.Info, error) {
	return fetcher.Info{Size: d.id.Size}, nil
}

func (d *donors) Write(context.Context, string, int64, io.Reader) (fetcher.Info, error) {
	return fetcher.Info{}, d.refuse()
}

func (d *donors) WriteIf(context.Context, string, []byte, string) (fetcher.Info, error) {
	return fetcher.Info{}, d.refuse()
}

func (d *donors) List(context.Context, string, string, int) ([]fetcher.Info, bool, error) {
	return nil, false, d.refuse()
}

func (d *donors) Delete(context.Context, string) error { return d.refuse() }
func (d *donors) Check(context.Context) error          { return nil }
func (d *donors) Close() error                         { return nil }

func (d *donors) refuse() error {
	return fmt.Errorf("%s are read only: %w", d.Name(), errdefs.ErrNotImplemented)
}

// pace bounds the bytes that are moved per second, all together.
type pace struct{ *rate.Limiter }

// maxBurst is how many bytes go at once, however slow the pace is.
const maxBurst = 1 << 20

// newPace returns a pace of so many bytes per second; 0: none.
func newPace(perSecond int64) *pace {
	if perSecond <= 0 {
		return &pace{rate.NewLimiter(rate.Inf, maxBurst)}
	}
	return &pace{rate.NewLimiter(rate.Limit(perSecond), maxBurst)}
}

// most is how many bytes are moved at once at most.
func (p *pace) most() int64 { return int64(p.Burst()) }

// wait waits until n bytes may have gone.
func (p *pace) wait(ctx context.Context, n int) error {
	for n > 0 {
		m := min(n, p.Burst())
		if err := p.WaitN(ctx, m); err != nil {
			return err
		}
		n -= m
	}
	return nil
}
