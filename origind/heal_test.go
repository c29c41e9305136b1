package origind

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/swarm/piece"
)

// ward is a member of a test whose blobs fall ill.
type ward struct {
	t     *testing.T
	store *content.Store
	scrub *scrub

	mu   sync.Mutex
	told []string
}

func (w *ward) tell(s string) { w.mu.Lock(); defer w.mu.Unlock(); w.told = append(w.told, s) }

// expect checks who was told what since the last time.
func (w *ward) expect(when string, told ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.told, told) {
		w.t.Errorf("%s: told %q, want %q", when, w.told, told)
	}
	w.told = nil
}

func newWard(t *testing.T, root string, perSecond int64) *ward {
	t.Helper()
	w := &ward{t: t}
	var err error
	w.store, err = content.Open(t.Context(), content.Config{
		Root: root, FreeFloor: -1, Wrong: func(id piece.ID, i int) { w.scrub.found(id, i) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	w.scrub = newScrub(w.store, perSecond,
		func(_ piece.ID, i int) { w.tell(fmt.Sprint("lost ", i)) },
		func(_ digest.Digest, pieces []int) { w.tell(fmt.Sprint("bad ", pieces)) }, newMetrics(prometheus.NewRegistry()))
	return w
}

// pinned has a blob here.
func (w *ward) pinned(data []byte) piece.ID {
	w.t.Helper()
	path := filepath.Join(w.store.Root(), "imported")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Import(w.t.Context(), path, sumsFor(w.t, data)); err != nil {
		w.t.Fatal(err)
	}
	return idOf(w.t, data)
}

// write writes to a blob's file, as a failing disk does.
func (w *ward) write(dir string, data []byte, id piece.ID) {
	w.t.Helper()
	path := filepath.Join(w.store.Root(), dir, "sha256", id.Hex())
	if err := os.Chmod(path, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// copies takes from givers.
func (w *ward) copies(givers map[string]*giver) *copies {
	return newCopies(w.store, &coldReads{
		cfg: ColdConfig{Max: 1, Attempts: 1, Grace: 1e9}, blobs: &holdings{store: w.store}, peers: silent{},
		metrics: w.scrub.metrics, tasks: newTasks(w.t), m: map[piece.ID]*coldRead{},
	}, func(name string) (donor, error) {
		if g := givers[name]; g != nil {
			return g, nil
		}
		return nil, fmt.Errorf("member %s is not known: %w", name, errdefs.ErrUnavailable)
	}, 0, w.scrub.metrics)
}

// silent are offers to nobody.
type silent struct{}

func (silent) arriving(context.Context, piece.ID) {}
func (silent) complete(piece.ID, *[32]byte)       {}
func (silent) arrived(piece.ID)                   {}
func (silent) gone(piece.ID)                      {}
func (silent) Taken(piece.ID) bool                { return false }

// Wrong pieces are replaced by those of whoever has the right ones, and only those are moved.
func TestHealFromMembers(t *testing.T) {
	data, d := testBlob(1<<20, 1)
	sums := sumsFor(t, data)
	offline := fmt.Errorf("down: %w", errdefs.ErrUnavailable)
	const at = 64 << 10
	for _, tt := range []struct {
		name   string
		spoil  []int
		givers map[string]*giver
		from   string
		left   []int
		moved  int64
	}{
		{"one has them", []int{3, 15}, map[string]*giver{"a": {data: data}, "b": {data: data}}, "a b", nil, 2 * at},
		{"each has one of them", []int{3, 7},
			map[string]*giver{"a": {data: spoiled(t, data, 3)}, "b": {data: spoiled(t, data, 7)}}, "a b", nil, 3 * at},
		{"nobody has one", []int{3, 7},
			map[string]*giver{"a": {data: spoiled(t, data, 3)}, "b": {data: spoiled(t, data, 3)}}, "a b", []int{3}, 3 * at},
		{"one is down, one is unknown", []int{0, 5}, map[string]*giver{"a": {none: offline}, "b": {data: data}}, "a x b", nil, 2 * at},
		{"one has another blob", []int{0}, map[string]*giver{"a": {data: data[:100_000]}, "b": {data: data}}, "a b", nil, at},
		{"nobody is asked", []int{2, 3}, nil, "", []int{2, 3}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWard(t, t.TempDir(), 0)
			id := w.pinned(data)
			w.write("blobs", spoiled(t, data, tt.spoil...), id)
			b, err := w.store.Blob(t.Context(), id, false)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			recheck(b, 0, id.Size)
			if got := w.store.WrongOf(id); !slices.Equal(got, tt.spoil) {
				t.Fatalf("pieces %v are wrong", got)
			}
			c := w.copies(tt.givers)
			if left := c.heal(t.Context(), d, id.Size, append(tt.spoil, 99), strings.Fields(tt.from)); !slices.Equal(left, tt.left) {
				t.Errorf("pieces %v are left, want %v", left, tt.left)
			}
			if a := tt.givers["a"]; a != nil && a.none != nil && len(a.asked) != 1 {
				t.Errorf("who does not answer was asked %d times", len(a.asked))
			}
			if n := counterOf(t, c.metrics, "capelin_origin_ring_repair_bytes_total"); n != tt.moved {
				t.Errorf("%d bytes were moved, want %d", n, tt.moved)
			}
			if n := counterOf(t, c.metrics, "capelin_origin_ring_scrub_bad_total"); n != int64(len(tt.spoil)) {
				t.Errorf("%d wrong pieces are counted", n)
			}
			if got, err := os.ReadFile(filepath.Join(w.store.Root(), "blobs/sha256", id.Hex())); err != nil ||
				!bytes.Equal(got, spoiled(t, data, tt.left...)) {
				t.Errorf("the file is not right: %v", err)
			}
		})
	}
	t.Run("only a read was wrong", func(t *testing.T) {
		w := newWard(t, t.TempDir(), 0)
		id := w.pinned(data)
		w.write("blobs", spoiled(t, data, 3), id)
		b, err := w.store.Blob(t.Context(), id, false)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		recheck(b, 3*at, 1)
		w.write("blobs", data, id)
		if left := w.copies(nil).heal(t.Context(), d, id.Size, []int{3}, nil); left != nil {
			t.Errorf("pieces %v are left", left)
		}
	})
	t.Run("its sums are lost", func(t *testing.T) {
		root := t.TempDir()
		w := newWard(t, root, 0)
		id := w.pinned(data)
		w.write("blobs", spoiled(t, data, 3), id)
		w.store.Close()
		if err := os.Remove(filepath.Join(root, "swarm/sums/sha256", id.Hex())); err != nil {
			t.Fatal(err)
		}
		w = newWard(t, root, 1<<40)
		if _, err := w.store.Blob(t.Context(), id, false); err != nil { // learns its size
			t.Fatal(err)
		}
		if err := w.scrub.blob(t.Context(), id); err == nil {
			t.Error("nothing is wrong with it")
		}
		w.expect("scrubbed", fmt.Sprint("bad ", w.store.WrongOf(id)))
		if n := len(w.store.WrongOf(id)); n != 16 {
			t.Errorf("%d pieces are wrong, want all", n)
		}
		c := w.copies(map[string]*giver{"a": {data: data, sums: sums}})
		if left := c.heal(t.Context(), d, id.Size, []int{0}, []string{"a"}); left != nil {
			t.Errorf("pieces %v are left", left)
		}
		if p := w.store.Presence(id); p != content.Pinned {
			t.Errorf("the blob is %v", p)
		}
	})
	t.Run("it is gone", func(t *testing.T) {
		w := newWard(t, t.TempDir(), 0)
		if left := w.copies(nil).heal(t.Context(), d, 1<<20, []int{3}, nil); len(left) != 16 {
			t.Errorf("pieces %v are left, want all", left)
		}
		c := w.copies(map[string]*giver{"a": {data: data, sums: sums}})
		if left := c.heal(t.Context(), d, 1<<20, []int{3}, []string{"a"}); left != nil || w.store.PresenceOf(d) != content.Pinned {
			t.Errorf("pieces %v are left, and it is %v", left, w.store.PresenceOf(d))
		}
	})
}

// What is pinned is read again and again, at its pace; nothing else is. What is wrong is told, anew in each pass, until it is
// healed, and after a restart.
func TestScrub(t *testing.T) {
	data, _ := testBlob(1<<20, 1)
	cached, _ := testBlob(1<<20, 2)
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		w := newWard(t, root, 1<<20)
		id, other := w.pinned(data), w.pinned(cached)
		if err := w.store.Unpin(t.Context(), digest.Digest(other.Digest())); err != nil {
			t.Fatal(err)
		}
		go w.scrub.run(t.Context())
		read := func(when string, want int64) {
			t.Helper()
			synctest.Wait()
			if n := counterOf(t, w.scrub.metrics, "capelin_origin_ring_scrub_bytes_total"); n != want {
				t.Errorf("%s: %d bytes were read, want %d", when, n, want)
			}
		}
		time.Sleep(scrubPause - time.Second)
		read("before the first pass", 0)
		time.Sleep(1100 * time.Millisecond)
		read("one pass", id.Size) // the first MiB goes at once
		w.write("cache", spoiled(t, cached, 3), other)
		w.write("blobs", spoiled(t, data, 3, 4), id)
		time.Sleep(scrubPause)
		synctest.Wait()
		w.expect("the second pass", "lost 3", "bad [3]", "lost 4", "bad [3 4]", "bad [3 4]")
		read("which read all", 2*id.Size)
		w.write("blobs", spoiled(t, data, 3), id)
		c := w.copies(nil)
		if left := c.heal(t.Context(), digest.Digest(id.Digest()), id.Size, []int{3, 4}, nil); !slices.Equal(left, []int{3}) {
			t.Errorf("pieces %v are left", left)
		}
		time.Sleep(scrubPause)
		synctest.Wait()
		w.expect("the third pass", "bad [3]")
		if n := counterOf(t, w.scrub.metrics, "capelin_origin_ring_scrub_bad_total"); n != 2 {
			t.Errorf("%d wrong pieces are counted", n)
		}
		w.store.Close()
		w2 := newWard(t, root, 0)
		go w2.scrub.run(t.Context())
		synctest.Wait()
		w2.expect("after a restart", "bad [3]")
	})
	synctest.Test(t, func(t *testing.T) { // two blobs take as long as their bytes
		w := newWard(t, t.TempDir(), 1<<20)
		for seed := range 3 {
			data, _ := testBlob(2<<20, uint64(seed))
			w.pinned(data)
		}
		go w.scrub.run(t.Context())
		time.Sleep(scrubPause + 3*time.Second)
		synctest.Wait()
		if n := counterOf(t, w.scrub.metrics, "capelin_origin_ring_scrub_bytes_total"); n < 4<<20 || n > 4<<20+64<<10 {
			t.Errorf("%d bytes were read in 3 s at 1 MiB a second, with 1 MiB at once", n)
		}
	})
}

// A blob of which a piece is wrong goes on being served, but for that piece, until it is healed.
func TestServesWhatIsRight(t *testing.T) {
	s, _ := newServer(t, testConfig(t, t.TempDir(), nil))
	data, d := testBlob(3<<20, 1)
	if err := s.store.Import(t.Context(), uploadedFile(t, s, data), sumsFor(t, data)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.acknowledge(t.Context(), d, "any/app", nil); err != nil {
		t.Fatal(err)
	}
	spoil(t, s.cfg.Root, d) // a byte in the middle
	id := idOf(t, data)
	b, err := s.store.Blob(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := io.ReadAll(newChecked(b)); !errdefs.IsDataLoss(err) { // a write to a backend finds it out
		t.Fatal(err)
	}
	const wrong = 24
	if got := s.store.WrongOf(id); !slices.Equal(got, []int{wrong}) {
		t.Fatalf("pieces %v are wrong", got)
	}
	srv := httptest.NewServer(s.handler())
	defer srv.Close()
	get := func(rng string) (int, []byte, error) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL+origin.PathBlobs+"/"+string(d), nil)
		if rng != "" {
			req.Header.Set("Range", "bytes="+rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, body, err
	}
	at := id.Offset(wrong)
	if code, got, err := get(""); code != 200 || err == nil || !bytes.Equal(got, data[:at]) {
		t.Errorf("all of it: %d, %d bytes, %v; want those before the wrong piece, and an error", code, len(got), err)
	}
	if code, got, err := get(fmt.Sprintf("%d-", at+id.Length())); code != 206 || err != nil || !bytes.Equal(got, data[at+id.Length():]) {
		t.Errorf("after it: %d, %d bytes, %v", code, len(got), err)
	}
	if code, _, _ := get(fmt.Sprintf("%d-%d", at+10, at+20)); code != http.StatusServiceUnavailable {
		t.Errorf("a part of it: %d", code)
	}
	if err := b.Heal(piece.NewClaim(sumsFor(t, data), wrong, data[at:at+id.Length()])); err != nil {
		t.Fatal(err)
	}
	if code, got, err := get(""); code != 200 || err != nil || !bytes.Equal(got, data) {
		t.Errorf("healed: %d, %d bytes, %v", code, len(got), err)
	}
}

// A member that starts with a wrong piece heals it from the other one. (The mark is what a member leaves that ends before it has.)
func TestRingHeals(t *testing.T) {
	data, d := testBlob(3<<20, 1)
	cfgs, ring := startPair(t, data)
	ring[1].stop()

	spoil(t, cfgs[1].Root, d) // a byte of piece 24
	mark := filepath.Join(cfgs[1].Root, "swarm/sums/sha256", d.Encoded()+".bad")
	if err := os.WriteFile(mark, []byte("24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", ring[1].addr)
	if err != nil {
		t.Fatal(err)
	}
	cfgs[1].Listener = l
	start(t, cfgs[1])
	eventually(t, "it is healed", func() bool { _, err := os.Stat(mark); return os.IsNotExist(err) })
	if got, err := os.ReadFile(filepath.Join(cfgs[1].Root, "blobs/sha256", d.Encoded())); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file is not right: %v", err)
	}
}
