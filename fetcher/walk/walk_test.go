package walk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func storage(t *testing.T, keys ...string) *fetchertest.Memory {
	t.Helper()
	m := new(fetchertest.Memory)
	for _, k := range keys {
		if _, err := m.Write(t.Context(), k, 1, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestBoth(t *testing.T) {
	for _, tt := range []struct{ a, b, after, want string }{
		{"", "", "", ""},
		{"p/a", "", "", "p/a< "},
		{"", "p/a", "", "p/a> "},
		{"p/a p/c p/d", "p/b p/c", "", "p/a< p/b> p/c= p/d< "},
		{"p/a p/c", "p/a p/c", "p/a", "p/c= "},
		{"q/a p/a", "o/b", "", "p/a< "},
	} {
		got := ""
		for p, err := range Both(t.Context(), storage(t, strings.Fields(tt.a)...), storage(t, strings.Fields(tt.b)...), "p/", tt.after) {
			if err != nil {
				t.Fatal(err)
			}
			got += p.Key + map[[2]bool]string{{true, true}: "=", {true, false}: "<", {false, true}: ">"}[[2]bool{p.A != nil, p.B != nil}] + " "
		}
		if got != tt.want {
			t.Errorf("%q and %q after %q: %q, want %q", tt.a, tt.b, tt.after, got, tt.want)
		}
	}
}

// Pages join without a gap, also where one is just full.
func TestPages(t *testing.T) {
	for _, n := range []int{999, 1000, 1001, 2000, 2001} {
		var keys []string
		for i := range n {
			keys = append(keys, fmt.Sprintf("p/%05d", i))
		}
		a := storage(t, keys...)
		seen := 0
		for info, err := range All(t.Context(), a, "p/", "") {
			if err != nil || info.Key != keys[seen] {
				t.Fatalf("%d: %q, %v, want %q", seen, info.Key, err, keys[seen])
			}
			seen++
		}
		if seen != n {
			t.Errorf("%d objects of %d", seen, n)
		}
		both := 0
		for p, err := range Both(t.Context(), a, storage(t, keys[1:]...), "", "") {
			if err != nil || p.A == nil || (p.B == nil) != (both == 0) {
				t.Fatal(p, err)
			}
			both++
		}
		if both != n {
			t.Errorf("%d pairs of %d", both, n)
		}
	}
}

// again lists the same page for ever.
type again struct{ fetcher.Backend }

func (b again) List(ctx context.Context, prefix, _ string, limit int) ([]fetcher.Info, bool, error) {
	page, _, err := b.Backend.List(ctx, prefix, "", limit)
	return page, true, err
}

func TestErrors(t *testing.T) {
	down := &fetchertest.Faulty{Backend: storage(t, "p/a"), Fail: func(fetchertest.Op, string) error { return errdefs.ErrUnavailable }}
	var got error
	for _, err := range Both(t.Context(), storage(t, "p/a"), down, "", "") {
		got = errors.Join(got, err)
	}
	if !errdefs.IsUnavailable(got) {
		t.Error(got)
	}
	got = nil
	for _, err := range All(t.Context(), again{storage(t, "p/a")}, "", "") {
		got = errors.Join(got, err)
	}
	if !errdefs.IsDataLoss(got) {
		t.Errorf("a listing that never ends: %v", got)
	}
	for range Both(t.Context(), storage(t, "p/a"), storage(t, "p/a"), "", "") {
		break // and nothing is left behind
	}
	if _, _, err := Read(t.Context(), storage(t, "p/a"), "p/a", 0); !errdefs.IsDataLoss(err) {
		t.Error(err)
	}
	if data, info, err := Read(t.Context(), storage(t, "p/a"), "p/a", 1); string(data) != "x" || info.Size != 1 || err != nil {
		t.Error(data, info, err)
	}
}
