package fetcher_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// pretender is a storage that does not do what it says.
type pretender struct {
	fetchertest.Memory
	writeIf func(p *pretender, ctx context.Context, key string, data []byte, version string) (fetcher.Info, error)
	n       atomic.Int32
}

func (p *pretender) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if p.writeIf == nil {
		return p.Memory.WriteIf(ctx, key, data, version)
	}
	return p.writeIf(p, ctx, key, data, version)
}

func TestProve(t *testing.T) {
	always := func(p *pretender, ctx context.Context, key string, data []byte) (fetcher.Info, error) {
		return p.Write(ctx, key, int64(len(data)), bytes.NewReader(data))
	}
	for _, tt := range []struct {
		name string
		b    *pretender
		want string // of a refusal
	}{
		{"one that does", &pretender{}, ""},
		{"ignores conditions", &pretender{writeIf: func(p *pretender, ctx context.Context, key string, data []byte,
			_ string) (fetcher.Info, error) {
			return always(p, ctx, key, data)
		}}, "of 16 writers at the same time 16 won"},
		{"looks, and then writes", &pretender{writeIf: func(p *pretender, ctx context.Context, key string, data []byte,
			version string) (fetcher.Info, error) {
			if p.n.Add(1)%16 == 3 {
				return always(p, ctx, key, data)
			}
			return p.Memory.WriteIf(ctx, key, data, version)
		}}, "won"},
		{"knows creation only", &pretender{writeIf: func(p *pretender, ctx context.Context, key string, data []byte,
			version string) (fetcher.Info, error) {
			if version != "" {
				return always(p, ctx, key, data)
			}
			return p.Memory.WriteIf(ctx, key, data, version)
		}}, "replacing"},
		{"takes what is stale", &pretender{writeIf: func(p *pretender, ctx context.Context, key string, data []byte,
			version string) (fetcher.Info, error) {
			if string(data) == "stale" && version != "" {
				return always(p, ctx, key, data)
			}
			return p.Memory.WriteIf(ctx, key, data, version)
		}}, "was done"},
		{"loses the winner's bytes", &pretender{writeIf: func(p *pretender, ctx context.Context, key string, data []byte,
			version string) (fetcher.Info, error) {
			return p.Memory.WriteIf(ctx, key, []byte("other"), version)
		}}, "what the winner wrote is not there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := fetcher.Prove(t.Context(), tt.b, tt.b)
			if tt.want == "" && err != nil || tt.want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if page, _, err := tt.b.List(t.Context(), "", "", 0); err != nil || len(page) > 0 {
				t.Errorf("left there: %v, %v", page, err)
			}
		})
	}
	t.Run("cannot be reached", func(t *testing.T) {
		away := errors.New("away")
		b := &fetchertest.Faulty{Backend: &fetchertest.Memory{}, Fail: func(fetchertest.Op, string) error { return away }}
		if err := fetcher.Prove(t.Context(), b, b); !errors.Is(err, away) || errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
	})
}
