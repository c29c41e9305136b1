package fetcher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
)

const (
	provePrefix = "capelin-prove/"
	proveRounds = 8
	proveRacers = 16
)

// Prove finds out whether a storage really compares and swaps, whatever its documentation says: some ignore the
// condition of a write, and some let several of those win that come at the same time. It is asked through two clients, a and b, which
// may be one. Eight times, sixteen writers race to create an object, and then sixteen to replace it: one must win each
// race, the others must hear errdefs.ErrConflict, and its bytes must be what is there. A version from before must be refused.
//
// The error is errdefs.ErrFailedPrecondition if the storage failed, and says how; any other error means that it could not be
// found out. It writes about 300 small objects under "capelin-prove/" and removes them.
func Prove(ctx context.Context, a, b Backend) error {
	if !a.Capabilities().CompareAndSwap || !b.Capabilities().CompareAndSwap {
		return fmt.Errorf("%s does not compare and swap: %w", a.Name(), errdefs.ErrFailedPrecondition)
	}
	run := rand.Text()
	for round := range proveRounds {
		key := fmt.Sprintf("%s%s/%d", provePrefix, run, round)
		if err := prove(ctx, a, b, key); err != nil {
			_ = a.Delete(context.WithoutCancel(ctx), key)
			return fmt.Errorf("%s: finding out whether it compares and swaps: %w", a.Name(), err)
		}
		if err := a.Delete(ctx, key); err != nil {
			return fmt.Errorf("%s: removing what was written to find out whether it compares and swaps: %w", a.Name(), err)
		}
	}
	return nil
}

func prove(ctx context.Context, a, b Backend, key string) error {
	created, err := race(ctx, a, b, key, "")
	if err != nil {
		return fmt.Errorf("creating %s: %w", key, err)
	}
	replaced, err := race(ctx, a, b, key, created.Version)
	if err != nil {
		return fmt.Errorf("replacing %s: %w", key, err)
	}
	for _, stale := range []string{"", created.Version} {
		for _, s := range []Backend{a, b} {
			if _, err := s.WriteIf(ctx, key, []byte("stale"), stale); !errdefs.IsConflict(err) {
				return refused(err, "%s is of version %q, and a write that demands %q was done", key, replaced.Version, stale)
			}
		}
	}
	return nil
}

// race has one writer win, and returns what it wrote.
func race(ctx context.Context, a, b Backend, key, version string) (won Info, err error) {
	var mu sync.Mutex
	var winners []string
	var wrong error
	var wg sync.WaitGroup
	for i := range proveRacers {
		wg.Go(func() {
			data := fmt.Sprintf("%s %d", rand.Text(), i)
			info, err := []Backend{a, b}[i%2].WriteIf(ctx, key, []byte(data), version)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				winners, won = append(winners, data), info
			case !errdefs.IsConflict(err):
				wrong = errors.Join(wrong, err)
			}
		})
	}
	wg.Wait()
	if wrong != nil {
		return Info{}, wrong
	}
	if len(winners) != 1 {
		return Info{}, refused(nil, "of %d writers at the same time %d won", proveRacers, len(winners))
	}
	for _, s := range []Backend{a, b} {
		got, version, err := read(ctx, s, key)
		if err != nil {
			return Info{}, err
		}
		if got != winners[0] || version != won.Version {
			return Info{}, refused(nil, "what the winner wrote is not there: version %q instead of %q", version, won.Version)
		}
	}
	return won, nil
}

func read(ctx context.Context, b Backend, key string) (data, version string, err error) {
	r, info, err := b.Open(ctx, key, 0, -1)
	if err != nil {
		return "", "", err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, 1<<10))
	return string(text), info.Version, err
}

// refused is what a storage does that does not compare and swap; with err, that it could not be found out.
func refused(err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("it does not: "+format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
