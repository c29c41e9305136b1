package limit

import (
	"cmp"
	"context"
	"fmt"
	"io"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/fetcher"
)

// burst is how many bytes go at once, however low the rate is.
const burst = 256 << 10

// Rates returns b with all its readers together moving at most read bytes per second, and its writers write; 0: no limit.
// WriteIf, whose objects are small, has none. It returns b itself if there is nothing to limit.
func Rates(b fetcher.Backend, read, write int64) fetcher.Backend {
	if read <= 0 && write <= 0 {
		return b
	}
	return &limited{b, limiter(read), limiter(write)}
}

func limiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return rate.NewLimiter(rate.Inf, burst)
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

type limited struct {
	fetcher.Backend
	read, write *rate.Limiter
}

var _ fetcher.Locator = (*limited)(nil)

// Locate implements fetcher.Locator.
func (l *limited) Locate(namespace string, d digest.Digest) (string, error) {
	return fetcher.Locate(l.Backend, namespace, d)
}

// Open implements fetcher.Backend.
func (l *limited) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, info, err := l.Backend.Open(ctx, key, off, n)
	if err != nil {
		return nil, info, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&reader{ctx, r, l.read, l.Name() + ": reading " + key}, r}, info, nil
}

// Write implements fetcher.Backend.
func (l *limited) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	return l.Backend.Write(ctx, key, size, &reader{ctx, r, l.write, l.Name() + ": writing " + key})
}

// reader waits after each Read until what it brought may have moved.
type reader struct {
	ctx   context.Context
	r     io.Reader
	limit *rate.Limiter
	what  string // for errors
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), burst)])
	if r.limit.WaitN(r.ctx, n) != nil {
		// The limiter says in words of its own that the deadline is too near.
		return 0, fmt.Errorf("%s: %w", r.what, cmp.Or(r.ctx.Err(), context.DeadlineExceeded))
	}
	return n, err
}
