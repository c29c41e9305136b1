package fetchertest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/capelin-io/capelin/fetcher"
)

func testList(t *testing.T, s suite) {
	keys := []string{
		"top", "l/a-b", "l/a/b", "l/a/b2/c", "l/a.b", "l/a0", "l/ab/c", "l/ab/d/e/f", "l/A", "l/~", "l/!", "l/é",
		"l/zz/1", "l/zz/2", "m/x", "l2/x", "l-/x", "k/x",
	}
	for i, key := range keys {
		s.write(t, key, make([]byte, i))
	}
	sizes := map[string]int64{}
	for i, key := range keys {
		sizes[key] = int64(i)
	}
	slices.Sort(keys)
	between := []string{"", "l/a", "l/a/", "l/a/b/c/d", "l/a/zzz", "l/b", "zzzz", "a", "l/ab/c/x", "l/zz", "\x00", "\xff"}
	for _, prefix := range []string{"", "l/", "l/a/", "l/ab/d/", "l/zz/", "l/a0/", "none/", "l/a-b/", "l/ab/d/e/f/"} {
		for _, after := range append(between, keys...) {
			var want []string
			for _, k := range keys {
				if strings.HasPrefix(k, prefix) && k > after {
					want = append(want, k)
				}
			}
			for _, limit := range []int{1, 2, 3, len(want), len(want) + 1, 0, -1, 1000, 5000} {
				page, more, err := s.List(t.Context(), prefix, after, limit)
				if err != nil {
					t.Fatalf("prefix %q, after %q, limit %d: %v", prefix, after, limit, err)
				}
				n := len(want)
				if limit > 0 {
					n = min(n, limit)
				}
				got := names(page)
				if !slices.Equal(got, want[:n]) || more != (n < len(want)) {
					t.Errorf("prefix %q, after %q, limit %d: got %q, more %v; want %q", prefix, after, limit, got, more, want[:n])
				}
				for _, info := range page {
					if info.Size != sizes[info.Key] {
						t.Errorf("%s has size %d, want %d", info.Key, info.Size, sizes[info.Key])
					}
				}
			}
		}
	}
	page, _, err := s.List(t.Context(), "m/", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := s.Stat(t.Context(), "m/x"); err != nil || page[0].Version != info.Version {
		t.Errorf("listed version %q, Stat says %q, %v", page[0].Version, info.Version, err)
	}
}

func names(page []fetcher.Info) (all []string) {
	for _, info := range page {
		all = append(all, info.Key)
	}
	return all
}

// testListLong has more than a page of objects.
func testListLong(t *testing.T, s suite) {
	var want []string
	for i := range 1050 {
		want = append(want, fmt.Sprintf("long/%02x/%04d", i%7, i))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := i; j < len(want); j += 8 {
				if _, err := s.Write(t.Context(), want[j], 1, strings.NewReader("x")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	for _, limit := range []int{0, 1000, 100, 333} {
		var got []string
		after := ""
		for {
			page, more, err := s.List(t.Context(), "long/", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, names(page)...)
			if more && (limit > 0 && len(page) != limit || limit == 0 && len(page) != 1000) {
				t.Errorf("limit %d: a page has %d", limit, len(page))
			}
			if !more {
				break
			}
			after = page[len(page)-1].Key
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: listed %d, want %d", limit, len(got), len(want))
		}
	}
}
