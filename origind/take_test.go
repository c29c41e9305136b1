package origind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// giver is another member of the ring, as a test has it.
type giver struct {
	data  []byte      // what it gives
	sums  *piece.Sums // nil: it has none
	none  error       // that it answers
	after int64       // bytes after which each of its answers breaks off; 0: never
	gate  *gated      // nil: nothing holds it up

	mu    sync.Mutex
	asked []int64 // offsets
}

func (g *giver) Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error) {
	g.mu.Lock()
	g.asked = append(g.asked, off)
	g.mu.Unlock()
	if g.none != nil {
		return nil, origin.Info{}, g.none
	}
	var r io.Reader = bytes.NewReader(g.data[off:min(off+n, int64(len(g.data)))])
	if g.after > 0 {
		r = io.MultiReader(io.LimitReader(r, g.after), broke{})
	}
	rc := io.NopCloser(r)
	if g.gate != nil {
		rc = &gatedReader{rc, g.gate, ctx}
	}
	return rc, origin.Info{Size: int64(len(g.data))}, nil
}

func (g *giver) Sums(context.Context, piece.ID) (*piece.Sums, error) {
	if g.sums == nil {
		return nil, errdefs.ErrNotFound
	}
	return g.sums, nil
}

func (g *giver) offsets() []int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]int64{}, g.asked...)
}

type broke struct{}

func (broke) Read([]byte) (int, error) { return 0, fmt.Errorf("broke off: %w", errdefs.ErrUnavailable) }

// sumsFor returns the sums of a blob.
func sumsFor(t testing.TB, data []byte) *piece.Sums {
	t.Helper()
	sums, err := sumsOf(bytes.NewReader(data), idOf(t, data))
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// spoiled returns data with a wrong byte in some pieces.
func spoiled(t testing.TB, data []byte, pieces ...int) []byte {
	id, b := idOf(t, data), bytes.Clone(data)
	for _, i := range pieces {
		b[id.Offset(i)+7] ^= 1
	}
	return b
}

// circle is a member of a test among givers, in a bubble.
type circle struct {
	*cellar
	*copies
	givers map[string]*giver
}

func newCircle(t *testing.T, size int, givers map[string]*giver) *circle {
	t.Helper()
	c := &circle{cellar: newCellar(t, size, nil), givers: givers}
	for _, g := range givers {
		if g.data == nil {
			g.data = c.data
		}
	}
	c.copies = newCopies(c.blobs.store, c.coldReads, func(name string) (donor, error) {
		if g := givers[name]; g != nil {
			return g, nil
		}
		return nil, fmt.Errorf("member %s is not known: %w", name, errdefs.ErrUnavailable)
	}, 0, c.coldReads.metrics)
	return c
}

func (c *circle) taking(sources ...string) (func(), error) {
	return c.copies.take(c.cellar.t.Context(), digest.Digest(c.at.id.Digest()), c.at.id.Size, sources)
}

// whole checks that the blob is here, durable and right.
func (c *circle) holds() {
	c.cellar.t.Helper()
	b, err := c.store.Blob(c.cellar.t.Context(), c.at.id, false)
	if err != nil {
		c.cellar.t.Fatal(err)
	}
	defer b.Close()
	got := make([]byte, len(c.data))
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, c.data) || !b.Completed() {
		c.cellar.t.Errorf("what is here is not the blob: %v", err)
	}
}

func (c *circle) moved() int64 {
	return counterOf(c.cellar.t, c.coldReads.metrics, "capelin_origin_ring_repair_bytes_total")
}

// counterOf returns the value of a counter.
func counterOf(t testing.TB, m *metrics, name string) int64 {
	t.Helper()
	all, err := m.reg.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return int64(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// A copy comes from whoever has it, the next member from the byte where one failed, and from the last piece that
// verified where one's bytes are wrong. No record is made of it.
func TestTake(t *testing.T) {
	const size = 1 << 20 // 16 pieces of 64 KiB
	const at = 64 << 10
	data, _ := testBlob(size, 1)
	sums := sumsFor(t, data)
	lie := piece.NewSums(idOf(t, data))
	if err := lie.Append(sumsFor(t, make([]byte, size)).Bytes()); err != nil {
		t.Fatal(err)
	}
	offline := fmt.Errorf("down: %w", errdefs.ErrUnavailable)
	for _, tt := range []struct {
		name    string
		givers  map[string]*giver
		sources string
		class   string
		asked   map[string][]int64
		moved   int64 // bytes at most
	}{
		{"the best has it", map[string]*giver{"a": {sums: sums}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": nil}, size},
		{"one is down, one lacks it, one is not known", map[string]*giver{
			"a": {none: offline}, "b": {none: errdefs.ErrNotFound}, "c": {sums: sums}}, "a x b c", "ok",
			map[string][]int64{"a": {0}, "b": {0}, "c": {0}}, size},
		{"one breaks off", map[string]*giver{"a": {sums: sums, after: 300_000}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {300_000}}, size},
		{"both break off all the time", map[string]*giver{"a": {sums: sums, after: 300_000}, "b": {sums: sums, after: 200_000}}, "a b", "ok",
			map[string][]int64{"a": {0, 500_000, 1_000_000}, "b": {300_000, 800_000}}, size},
		{"a wrong piece", map[string]*giver{"a": {sums: sums, data: spoiled(t, data, 3)}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {3 * at}}, 2*size + 10*chunk},
		{"each has another wrong piece", map[string]*giver{
			"a": {sums: sums, data: spoiled(t, data, 3, 12)}, "b": {sums: sums, data: spoiled(t, data, 7)}}, "a b", "ok",
			// b is asked for piece 3, and a from 7 to 12: it is wrong as often as b.
			map[string][]int64{"a": {0, 7 * at}, "b": {3 * at, 12 * at}}, 3 * size},
		{"both have the same wrong piece", map[string]*giver{
			"a": {sums: sums, data: spoiled(t, data, 3)}, "b": {sums: sums, data: spoiled(t, data, 3)}}, "a b", "unavailable",
			map[string][]int64{"a": {0}, "b": {3 * at}}, 2*size + 10*chunk},
		{"the last piece is wrong", map[string]*giver{"a": {sums: sums, data: spoiled(t, data, 15)}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {0}}, 2 * size},
		{"the last piece is wrong at one, another at the other", map[string]*giver{
			"a": {sums: sums, data: spoiled(t, data, 15)}, "b": {sums: sums, data: spoiled(t, data, 7)}}, "a b", "ok",
			map[string][]int64{"a": {0, 7 * at}, "b": {0, 15 * at}}, 4 * size},
		{"nobody else has the last piece", map[string]*giver{"a": {sums: sums, data: spoiled(t, data, 15)}}, "a", "unavailable",
			map[string][]int64{"a": {0, 0}}, 2 * size},
		{"a wrong piece and no sums", map[string]*giver{"a": {data: spoiled(t, data, 3)}, "b": {}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {0}}, 2 * size},
		{"another blob of that size", map[string]*giver{"a": {sums: sums, data: make([]byte, size)}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {0}}, 2*size + 10*chunk},
		{"other bytes, and their sums", map[string]*giver{"a": {sums: lie, data: make([]byte, size)}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {0}}, 2 * size},
		{"another size", map[string]*giver{"a": {sums: sums, data: data[:1000]}, "b": {sums: sums}}, "a b", "ok",
			map[string][]int64{"a": {0}, "b": {0}}, size},
		{"nobody has it", map[string]*giver{"a": {none: errdefs.ErrNotFound}}, "a", "unavailable", map[string][]int64{"a": {0}}, 0},
		{"nobody answers", map[string]*giver{"a": {none: offline}}, "a", "unavailable", map[string][]int64{"a": {0, 0, 0}}, 0},
		{"nobody is named", nil, "", "unavailable", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCircle(t, size, tt.givers)
				release, err := c.taking(strings.Fields(tt.sources)...)
				if class(err) != tt.class {
					t.Errorf("%v, want %s", err, tt.class)
				}
				if err == nil {
					c.holds()
					if p := c.store.Presence(c.at.id); p != content.Cached {
						t.Errorf("the blob is %v", p)
					}
					release()
					release()
				}
				for name, want := range tt.asked {
					if got := c.givers[name].offsets(); fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("%s was asked at %v, want %v", name, got, want)
					}
				}
				if n := c.moved(); n > tt.moved || err == nil && n < size {
					t.Errorf("%d bytes were moved, want %d at most", n, tt.moved)
				}
				told := []string{"arriving"}
				if strings.HasPrefix(tt.name, "the last piece") || tt.name == "a wrong piece and no sums" || tt.name == "other bytes, and their sums" {
					told = append(told, "gone", "arriving") // all of it is asked for again
				}
				if err == nil {
					c.expect("at the end", append(told, "complete true", "arrived")...)
				}
				if c.count.Opens() != 0 || counterOf(t, c.coldReads.metrics, "capelin_origin_backend_reads_total") != 0 {
					t.Error("the backend was asked")
				}
			})
		})
	}
}

// A piece of which two members gave a part blames neither.
func TestTakeBlamesNobodyForBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, _ := testBlob(1<<20, 1)
		sums := sumsFor(t, data)
		a := &giver{sums: sums, data: spoiled(t, data, 2), after: 150_000} // in the middle of piece 2, after the wrong byte
		b := &giver{sums: sums}
		c := newCircle(t, len(data), map[string]*giver{"a": a, "b": b})
		release, err := c.taking("a", "b")
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		c.holds()
		// Piece 2 is asked for once more, of a alone, which breaks off later this time and is blamed; then of b.
		ofA, ofB := a.offsets(), b.offsets()
		if fmt.Sprint(ofA) != "[0 131072]" || ofB[0] != 150_000 || ofB[len(ofB)-1] != 131_072 {
			t.Errorf("asked at %v and %v", ofA, ofB)
		}
	})
}

// Copies and reads of backends share what arrives, and do not take each other's places.
func TestTakeAmongColdReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, _ := testBlob(1<<20, 1)
		g := &giver{sums: sumsFor(t, data), gate: newGated(nil)}
		c := newCircle(t, len(data), map[string]*giver{"a": g})
		// All places are taken, and a copy comes all the same.
		c.gate.only(0)
		for i := range 2 {
			at := c.at
			at.id.Sum[0] ^= byte(i + 1)
			if err := c.want(at, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		took := make(chan error, 1)
		g.gate.let(300_000)
		go func() {
			release, err := c.taking("a")
			if err == nil {
				release()
			}
			took <- err
		}()
		synctest.Wait()
		if n := c.coldReads.count(); n != 2 {
			t.Errorf("%d places are taken, want 2", n)
		}
		if p := c.prefix(c.at.id); p != 4*(64<<10) {
			t.Errorf("%d bytes have arrived", p)
		}
		// Whoever wants to read it has what has arrived, although no place is left.
		r, release, err := c.join(t.Context(), c.at)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		g.gate.let(1 << 40)
		if err := <-took; err != nil {
			t.Fatal(err)
		}
		<-r.done
		if r.err != nil {
			t.Error(r.err)
		}
		other := c.at
		other.id.Sum[1] ^= 1
		if err := c.want(other, 0); !errdefs.IsUnavailable(err) {
			t.Errorf("the end of a copy made a place: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // it is being read from a backend, with a record at its end
		data, _ := testBlob(1<<20, 1)
		c := newCircle(t, len(data), map[string]*giver{"a": {sums: sumsFor(t, data)}})
		c.gate.only(100_000)
		if err := c.want(c.at, time.Hour); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		took := make(chan error, 1)
		go func() {
			_, err := c.taking("a")
			took <- err
		}()
		synctest.Wait()
		c.gate.let(1 << 40)
		if err := <-took; err != nil || c.moved() != 0 || !slices.Contains(c.told, "found") {
			t.Errorf("%v, %d bytes of members, told %q", err, c.moved(), c.told)
		}
		c.holds()
		// And now it is here.
		if release, err := c.taking(); err != nil {
			t.Error(err)
		} else {
			release()
		}
	})
	synctest.Test(t, func(t *testing.T) { // but the backend fails
		data, _ := testBlob(1<<20, 1)
		c := newCircle(t, len(data), map[string]*giver{"a": {sums: sumsFor(t, data)}})
		c.gate.only(100_000)
		refuse := func(string, int64) (int64, error) { return 0, errdefs.ErrPermissionDenied }
		c.at.backend = &fetchertest.Faulty{Backend: c.gate, ReadAfter: refuse}
		if err := c.want(c.at, time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := c.taking("a"); err != nil {
			t.Error(err)
		}
		c.holds()
	})
}

// What is held is not evicted; the end of whoever waits ends the copy; a deletion ends it.
func TestTakeHolds(t *testing.T) {
	data, d := testBlob(1<<20, 1)
	synctest.Test(t, func(t *testing.T) {
		c := newCircle(t, len(data), map[string]*giver{"a": {sums: sumsFor(t, data)}})
		release, err := c.taking("a")
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.taking() // a second one, of what is here
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []content.Presence{content.Cached, content.Cached, content.Absent} {
			c.store.MakeRoom(t.Context(), 1<<30)
			if p := c.store.Presence(c.at.id); p != want {
				t.Errorf("%d were released: the blob is %v", i, p)
			}
			[]func(){release, again, func() {}}[i]()
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := &giver{sums: sumsFor(t, data), gate: newGated(nil)}
		c := newCircle(t, len(data), map[string]*giver{"a": g})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.take(ctx, d, int64(len(data)), []string{"a"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * testGrace)
		synctest.Wait()
		if at, ok := c.find(d); ok {
			t.Errorf("it is still being read from %v", at.source())
		}
		took := make(chan error, 1)
		go func() {
			_, err := c.taking("a")
			took <- err
		}()
		synctest.Wait()
		c.stop(d)
		if err := <-took; !errdefs.IsNotFound(err) {
			t.Errorf("deleted: %v", err)
		}
	})
}

// All copies together keep the pace.
func TestTakePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCircle(t, 5<<20, map[string]*giver{"a": {}})
		c.copies.pace = newPace(1 << 20)
		start := time.Now()
		release, err := c.taking("a")
		if err != nil {
			t.Fatal(err)
		}
		release()
		if took := time.Since(start); took < 4*time.Second || took > 5*time.Second {
			t.Errorf("5 MiB took %v at 1 MiB a second, with 1 MiB at once", took)
		}
	})
}

// A full disk is not a member's fault.
func TestTakeOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, _ := testBlob(1<<20, 1)
		c := newCircle(t, len(data), map[string]*giver{"a": {sums: sumsFor(t, data)}})
		defer disk.Intercept(c.store.(*content.Store).Root(), full{})()
		if _, err := c.taking("a"); !errdefs.IsResourceExhausted(err) || errdefs.IsUnavailable(err) {
			t.Errorf("got %v", err)
		}
	})
}

// full is a disk that takes no data.
type full struct{}

func (full) Do(op disk.Op, do func(int) error) error {
	if op.Kind == disk.OpWrite && strings.HasSuffix(op.Path, ".data") {
		return syscall.ENOSPC
	}
	return do(op.Bytes)
}

// faulty is a member of the ring whose answers about blobs a test spoils.
type faulty struct {
	next  http.Handler
	spoil func(w http.ResponseWriter, r *http.Request) http.ResponseWriter // nil: nothing is answered any more
}

func (f faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if w = f.spoil(w, r); w != nil {
		f.next.ServeHTTP(w, r)
	}
}

// flipped changes a byte of an answer.
type flipped struct {
	http.ResponseWriter
	at int64
}

func (f *flipped) Unwrap() http.ResponseWriter { return f.ResponseWriter }

func (f *flipped) Write(p []byte) (int, error) {
	if f.at >= 0 && f.at < int64(len(p)) {
		p = bytes.Clone(p)
		p[f.at] ^= 1
	}
	f.at -= int64(len(p))
	return f.ResponseWriter.Write(p)
}

// A copy over HTTP, from members of which one says 503, one breaks off, and one has a wrong byte on its way.
func TestTakeOverHTTP(t *testing.T) {
	data, d := testBlob(3<<20, 1)
	from, _ := newServer(t, testConfig(t, t.TempDir(), nil))
	if err := from.store.Import(t.Context(), uploadedFile(t, from, data), sumsFor(t, data)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := from.acknowledge(t.Context(), d, "any/app", nil); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	member := func(name string, spoil func(w http.ResponseWriter, r *http.Request) http.ResponseWriter) *origin.Member {
		srv := httptest.NewServer(faulty{from.handler(), func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			what := strings.TrimPrefix(r.URL.Path, origin.PathBlobs+"/"+string(d))
			q := r.URL.Query()
			if what == "" && q.Get(origin.ParamHop) != "1" {
				t.Errorf("%s is asked for %s", name, r.URL)
			}
			mu.Lock()
			asked = append(asked, name+what+" "+r.Header.Get("Range"))
			mu.Unlock()
			if what != "" {
				return w
			}
			return spoil(w, r)
		}})
		t.Cleanup(srv.Close)
		m, err := origin.NewMember(origin.Config{Origins: []string{srv.URL}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
	members := map[string]*origin.Member{
		"busy": member("busy", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			fail(w, r, errdefs.ErrUnavailable)
			return nil
		}),
		"cut": member("cut", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			w.Header().Set(origin.HeaderSize, strconv.Itoa(len(data)))
			_, _ = w.Write(data[:1_000_000])
			panic(http.ErrAbortHandler)
		}),
		"flips": member("flips", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter { return &flipped{w, 500_000} }),
		"right": member("right", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter { return w }),
	}
	to, _ := newServer(t, testConfig(t, t.TempDir(), nil))
	c := newCopies(to.store, to.cold, func(name string) (donor, error) { return members[name], nil }, 0, to.metrics)
	release, err := c.take(t.Context(), d, int64(len(data)), []string{"busy", "cut", "flips", "right"})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	f, err := to.file(t.Context(), d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// The first who answers flips byte 1,500,000, in piece 22.
	if last := asked[len(asked)-1]; last != "right bytes=1441792-3145727" || !slices.Contains(asked, "flips bytes=1000000-3145727") {
		t.Errorf("asked %q", asked)
	}
}

// uploadedFile writes a file that the server's store can import.
func uploadedFile(t testing.TB, s *server, data []byte) string {
	t.Helper()
	path := filepath.Join(s.store.pick().root, "imported")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serving is a ring in which nobody has anything.
type serving struct{}

func (serving) serving() bool           { return true }
func (serving) peers() []ringstate.Peer { return nil }

func (serving) where(context.Context, digest.Digest, bool) (ringstate.ActFound, error) {
	return ringstate.ActFound{Where: ringstate.Unavailable}, nil
}

func (serving) reader(context.Context, digest.Digest) (string, error) { return "", nil }

// What is being copied is read by clients, and by no member: it might be copied from there.
func TestTakeIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, d := testBlob(1<<20, 1)
		g := &giver{gate: newGated(nil)}
		c := newCircle(t, len(data), map[string]*giver{"a": g})
		go func() {
			if release, err := c.taking("a"); err == nil {
				release()
			}
		}()
		synctest.Wait()
		l := &locator{blobs: c.blobs, cold: c.coldReads, ring: serving{}}
		if at, err := l.locate(t.Context(), origin.Ref{Digest: d}, false); err != nil || at.place == nil || at.info.Durable {
			t.Errorf("a client is told %+v, %v", at, err)
		}
		if _, err := l.locate(t.Context(), origin.Ref{Digest: d}, true); !errdefs.IsUnavailable(err) {
			t.Errorf("a member is told %v", err)
		}
		g.gate.let(1 << 40)
	})
}
