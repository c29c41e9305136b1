package walk

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// All returns the objects whose keys begin with prefix, which ends in "/" or is empty, and come after the string after, in
// ascending order. It ends after an error.
func All(ctx context.Context, b fetcher.Backend, prefix, after string) iter.Seq2[fetcher.Info, error] {
	return func(yield func(fetcher.Info, error) bool) {
		for more := true; more; {
			var page []fetcher.Info
			var err error
			page, more, err = b.List(ctx, prefix, after, 0)
			if err != nil {
				yield(fetcher.Info{}, err)
				return
			}
			for _, info := range page {
				if info.Key <= after { // else it may never end
					yield(fetcher.Info{}, fmt.Errorf("%s: listing %q: %q comes after %q: %w", b.Name(), prefix, info.Key, after, errdefs.ErrDataLoss))
					return
				}
				after = info.Key
				if !yield(info, nil) {
					return
				}
			}
			more = more && len(page) > 0
		}
	}
}

// Pair is an object that one of two storages has, or both.
type Pair struct {
	Key  string
	A, B *fetcher.Info // nil: it is not there
}

// Both returns the objects of two storages as All does, by key.
func Both(ctx context.Context, a, b fetcher.Backend, prefix, after string) iter.Seq2[Pair, error] {
	return func(yield func(Pair, error) bool) {
		var next [2]func() (fetcher.Info, error, bool)
		var head [2]*fetcher.Info
		pull := func(i int) error {
			info, err, ok := next[i]()
			head[i] = nil
			if ok && err == nil {
				head[i] = &info
			}
			return err
		}
		for i, s := range []fetcher.Backend{a, b} {
			var stop func()
			next[i], stop = iter.Pull2(All(ctx, s, prefix, after))
			defer stop()
			if err := pull(i); err != nil {
				yield(Pair{}, err)
				return
			}
		}
		for head[0] != nil || head[1] != nil {
			var p Pair
			if head[1] == nil || head[0] != nil && head[0].Key <= head[1].Key {
				p.Key, p.A = head[0].Key, head[0]
			}
			if head[0] == nil || head[1] != nil && head[1].Key <= head[0].Key {
				p.Key, p.B = head[1].Key, head[1]
			}
			if !yield(p, nil) {
				return
			}
			for i, taken := range []bool{p.A != nil, p.B != nil} {
				if !taken {
					continue
				}
				if err := pull(i); err != nil {
					yield(Pair{}, err)
					return
				}
			}
		}
	}
}

// Read returns an object of at most limit bytes; one that is larger is errdefs.ErrDataLoss.
func Read(ctx context.Context, b fetcher.Backend, key string, limit int64) ([]byte, fetcher.Info, error) {
	r, info, err := b.Open(ctx, key, 0, -1)
	if err != nil {
		return nil, info, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: %s has more than %d bytes: %w", b.Name(), key, limit, errdefs.ErrDataLoss)
	}
	return data, info, err
}
