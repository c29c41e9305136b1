package file

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// awaitTick waits until what is changed now has another time than dir has, which is the kernel's doing and no bubble's.
func awaitTick(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return
	}
	stampAt := func(path string) stamp {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s, err := stampOf(f)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	other := filepath.Join(t.TempDir(), "other")
	for {
		if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if stampAt(other).ctime != stampAt(dir).ctime {
			return
		}
	}
}

// kept reports whether the names of a directory are.
func kept(b *Backend, dir string) bool {
	b.large.mu.Lock()
	defer b.large.mu.Unlock()
	d := b.large.dirs[dir]
	return d != nil && d.kept.names != nil
}

// Whatever is kept of large directories, and however little room there is for it, pages hold what is there: while objects come and
// go, some directories are large and some are not, and pages are asked for in any order.
func TestLargeDirectories(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		b := open(t, t.TempDir())
		b.large.least, b.large.room, b.large.one = 6, 600, 450
		key := func() string {
			key := []string{"a/", "b/", "b/c/"}[r.IntN(3)] + fmt.Sprint("k", r.IntN(40))
			if r.IntN(4) == 0 {
				key += fmt.Sprintf(".d/%c", 'x'+r.IntN(3))
			}
			return key
		}
		want := map[string]bool{}
		was := 0 // pages of directories whose names were kept
		for range 6000 {
			switch k := key(); r.IntN(40) {
			case 0:
				for dir := range strings.SplitSeq("a b b/c "+filepath.Dir(k), " ") {
					awaitTick(t, filepath.Join(b.path, dir))
				}
				put(t, b, k, "x")
				want[k] = true
			case 1:
				for dir := range strings.SplitSeq("a b b/c "+filepath.Dir(k), " ") {
					awaitTick(t, filepath.Join(b.path, dir))
				}
				if err := b.Delete(t.Context(), k); err != nil {
					t.Fatal(err)
				}
				delete(want, k)
			case 2:
				time.Sleep(time.Duration(r.IntN(6)) * time.Second)
			case 3:
				if r.IntN(10) == 0 {
					time.Sleep(2 * idleNames)
				}
			default:
				prefix := []string{"", "a/", "b/", "b/c/"}[r.IntN(4)]
				after := []string{"", k, k + "/", prefix}[r.IntN(4)]
				if kept(b, "a") || kept(b, "b/c") || kept(b, "b") {
					was++
				}
				checkPage(t, b, want, prefix, after, 1+r.IntN(12))
			}
		}
		if was < 500 {
			t.Errorf("names were kept for %d pages: that is no test", was)
		}
	})
}

func checkPage(t *testing.T, b *Backend, want map[string]bool, prefix, after string, limit int) {
	t.Helper()
	var all, got []string
	for k := range want {
		if strings.HasPrefix(k, prefix) && k > after {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	total := 0
	for _, d := range b.large.dirs {
		total += d.kept.bytes
	}
	if total > b.large.room {
		t.Fatalf("%d bytes are kept", total)
	}
	page, more, err := b.List(t.Context(), prefix, after, limit)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range page {
		got = append(got, info.Key)
	}
	if n := min(limit, len(all)); !slices.Equal(got, all[:n]) || more != (n < len(all)) {
		t.Fatalf("prefix %q, after %q, limit %d: got %q, more %v; want %q of %d", prefix, after, limit, got, more, all[:n], len(all))
	}
}

// Names are kept of a directory that is large and has been as it is for longer than a tick, until it changes or nobody asks.
func TestLargeIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, t.TempDir())
		b.large.least = 3
		for i := range 4 {
			put(t, b, fmt.Sprint("d/", i), "x")
		}
		first := "d/2"
		page := func(want bool) {
			t.Helper()
			if page, _, err := b.List(t.Context(), "d/", "d/1", 2); err != nil || len(page) != 2 || page[0].Key != first {
				t.Errorf("%v, %v", page, err)
			}
			if got := kept(b, "d"); got != want {
				t.Errorf("kept: %v", got)
			}
		}
		page(false)
		time.Sleep(longTick)
		page(false) // a tick may be as long
		time.Sleep(time.Nanosecond)
		page(true)
		page(true)
		awaitTick(t, filepath.Join(b.path, "d"))
		put(t, b, "d/15", "x")
		first = "d/15"
		page(false)
		time.Sleep(longTick + 1)
		page(true)
		time.Sleep(idleNames)
		time.Sleep(idleNames)
		synctest.Wait()
		if kept(b, "d") {
			t.Error("kept, although nobody asks")
		}
		put(t, b, "small/1", "x")
		for range 3 {
			if _, _, err := b.List(t.Context(), "small/", "", 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(longTick + 1)
		}
		if b.large.dirs["small"] != nil {
			t.Error("a small directory is known as large")
		}
	})
}
