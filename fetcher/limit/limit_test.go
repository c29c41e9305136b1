package limit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/limit"
)

func TestContract(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
		return limit.Rates(&fetchertest.Memory{}, 100<<30, 100<<30)
	}, fetchertest.Options{})
}

// TestRates: readers share one rate, writers another.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 10 << 20
		b := limit.Rates(&fetchertest.Memory{}, 1<<20, 2<<20)
		took := func(what string, want time.Duration, f func(key string) error) {
			t.Helper()
			began := time.Now()
			var wg sync.WaitGroup
			for _, key := range []string{"a", "b"} {
				wg.Go(func() {
					if err := f(key); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if got := time.Since(began); got < want-time.Second || got > want+time.Second {
				t.Errorf("%s took %v, want %v", what, got, want)
			}
		}
		took("writing", 10*time.Second, func(key string) error {
			_, err := b.Write(t.Context(), key, size, bytes.NewReader(make([]byte, size)))
			return err
		})
		took("reading", 20*time.Second, func(key string) error {
			r, _, err := b.Open(t.Context(), key, 0, -1)
			if err != nil {
				return err
			}
			defer r.Close()
			n, err := io.Copy(io.Discard, r)
			if n != size {
				t.Errorf("read %d bytes", n)
			}
			return err
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Write(ctx, "a", size, bytes.NewReader(make([]byte, size))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a write that may take a second ended with %v", err)
		}
	})
}

func TestNone(t *testing.T) {
	m := &fetchertest.Memory{}
	if b := limit.Rates(m, 0, 0); b != fetcher.Backend(m) {
		t.Errorf("got %T", b)
	}
}
