package origind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/swarm/piece"
)

const testGrace = 10 * time.Second

// cellar is cold reads of a test in a bubble, from one backend with one blob. It is
// everybody whom they tell: the swarm, the finder.
type cellar struct {
	*coldReads
	t     *testing.T
	data  []byte
	at    place
	gate  *gated
	count *fetchertest.Counting

	keep chan struct{} // closed when what is found may be kept

	mu    sync.Mutex
	told  []string
	taken bool
}

func newCellar(t *testing.T, size int, over func(fetcher.Backend) fetcher.Backend) *cellar {
	t.Helper()
	c := &cellar{t: t, keep: make(chan struct{})}
	close(c.keep)
	c.data, _ = testBlob(size, 1)
	mem := &fetchertest.Memory{}
	d := put(t, mem, "", c.data)
	c.gate = newGated(mem)
	c.gate.let(1 << 40)
	c.count = &fetchertest.Counting{Backend: c.gate}
	var b fetcher.Backend = c.count
	if over != nil {
		b = over(b)
	}
	key, _ := fetcher.BlobKey(d)
	c.at = place{id: idOf(t, c.data), name: "mem", backend: b, key: key, namespace: "team/app"}
	c.coldReads = &coldReads{
		cfg:   ColdConfig{Max: 2, Attempts: 3, Grace: config.Duration(testGrace)},
		blobs: newHoldings(t), ring: c, objects: c, peers: c, metrics: newMetrics(prometheus.NewRegistry()), tasks: newTasks(t),
		m: map[piece.ID]*coldRead{},
	}
	return c
}

func (c *cellar) tell(s string) { c.mu.Lock(); defer c.mu.Unlock(); c.told = append(c.told, s) }

func (c *cellar) arriving(context.Context, piece.ID) { c.tell("arriving") }
func (c *cellar) complete(_ piece.ID, h *[32]byte)   { c.tell(fmt.Sprintf("complete %t", h != nil)) }
func (c *cellar) arrived(piece.ID)                   { c.tell("arrived") }
func (c *cellar) gone(piece.ID)                      { c.tell("gone") }
func (c *cellar) Taken(piece.ID) bool                { c.mu.Lock(); defer c.mu.Unlock(); return c.taken }
func (c *cellar) vanished(digest.Digest)             { c.tell("vanished") }

func (c *cellar) condemn(_ place, err error) {
	c.tell(fmt.Sprintf("condemned %t", errdefs.IsDataLoss(err)))
}

// expect checks who was told what since the last time.
func (c *cellar) expect(when string, told ...string) {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.told, told) {
		c.t.Errorf("%s: told %q, want %q", when, c.told, told)
	}
	c.told = nil
}

// read joins a read and waits for its end.
func (c *cellar) read() error {
	r, release, err := c.join(c.t.Context(), c.at)
	if err != nil {
		return err
	}
	defer release()
	<-r.done
	if r.err == nil {
		got := make([]byte, len(c.data))
		if _, err := r.blob.ReadAt(got, 0); err != nil || !bytes.Equal(got, c.data) {
			c.t.Errorf("read other bytes, %v", err)
		}
	}
	return r.err
}

// found keeps where the blob was, after c.keep.
func (c *cellar) found(_ context.Context, _ digest.Digest, size int64, at record.Place) error {
	<-c.keep
	if size != c.at.id.Size || at != c.at.at() {
		c.t.Errorf("found %d bytes at %+v", size, at)
	}
	c.tell("found")
	return nil
}

// However many want a blob, the backend is read once. Who joins later joins that read; all
// have each byte when it has come.
func TestColdReadIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCellar(t, 1<<20, nil)
		c.gate.only(300_000)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				if err := c.read(); err != nil {
					t.Errorf("reader %d: %v", i, err)
				}
			})
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if p := c.prefix(c.at.id); p < 200_000 || p > 300_000 || c.count.Opens() != 1 || c.coldReads.count() != 1 {
			t.Errorf("%d bytes arrived of 300,000, %d reads of the backend", p, c.count.Opens())
		}
		if at, ok := c.find(digest.Digest(c.at.id.Digest())); !ok || at.key != c.at.key {
			t.Errorf("it is being read at %q, %t", at.key, ok)
		}
		c.expect("under way", "arriving")
		c.gate.let(1 << 40)
		wg.Wait()
		c.expect("at the end", "found", "complete true", "arrived")
		if n := c.count.Opens(); n != 1 || c.coldReads.count() != 0 {
			t.Errorf("%d reads of the backend, %d are under way", n, c.coldReads.count())
		}
		if p := c.blobs.store.Presence(c.at.id); p != content.Cached {
			t.Errorf("the blob is %v, want what may be evicted", p)
		}
		if err := c.read(); err != nil || c.count.Opens() != 1 {
			t.Errorf("what is here is read again: %v, %d reads", err, c.count.Opens())
		}
	})
}

// broken is a backend that breaks off, or fails, as a test says.
func broken(after func(try int, off int64) (n int64, err error)) func(fetcher.Backend) fetcher.Backend {
	try := 0
	return func(b fetcher.Backend) fetcher.Backend {
		return &fetchertest.Faulty{Backend: b, ReadAfter: func(_ string, off int64) (int64, error) {
			try++
			return after(try, off)
		}}
	}
}

// A read that breaks off goes on where it was, after a pause that doubles and begins anew
// with each byte; so many times in a row, and not if trying again is of no use.
func TestColdReadAttempts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		after  func(try int, off int64) (int64, error)
		want   string // class
		opens  int64
		pauses time.Duration // their sum is between half of it and one and a half
		told   []string
	}{
		{"without a fault", func(int, int64) (int64, error) { return -1, nil }, "ok", 1, 0,
			[]string{"arriving", "found", "complete true", "arrived"}},
		{"four times, with bytes in between", func(try int, _ int64) (int64, error) {
			if try < 5 {
				return 200_000, nil
			}
			return -1, nil
		}, "ok", 5, 4 * coldPauseMin, []string{"arriving", "found", "complete true", "arrived"}},
		{"it ends early, once", func(try int, _ int64) (int64, error) {
			if try == 1 {
				return 700_000, io.ErrUnexpectedEOF
			}
			return -1, nil
		}, "ok", 2, coldPauseMin, []string{"arriving", "found", "complete true", "arrived"}},
		{"never a byte", func(int, int64) (int64, error) { return 0, nil }, "unavailable", 3, 3 * coldPauseMin, []string{"arriving", "gone"}},
		{"for ever at one place", func(_ int, off int64) (int64, error) { return 700_000 - off, nil }, "unavailable", 3, 3 * coldPauseMin,
			[]string{"arriving", "gone"}},
		{"refused", func(int, int64) (int64, error) { return 0, errdefs.ErrPermissionDenied }, "unavailable", 1, 0, []string{"arriving", "gone"}},
		{"it is not there", func(int, int64) (int64, error) { return 0, errdefs.ErrNotFound }, "not_found", 1, 0,
			[]string{"arriving", "vanished", "gone"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCellar(t, 1<<20, broken(tt.after))
				start := time.Now()
				err := c.read()
				took := time.Since(start)
				if got := class(err); got != tt.want || c.count.Opens() != tt.opens {
					t.Errorf("%s (%v) with %d reads, want %s with %d", got, err, c.count.Opens(), tt.want, tt.opens)
				}
				if took < tt.pauses/2 || took > tt.pauses*3/2 {
					t.Errorf("paused for %v, want about %v", took, tt.pauses)
				}
				if read := c.count.Bytes(); tt.want == "ok" && read > int64(len(c.data))+10*chunk {
					t.Errorf("%d bytes were read", read)
				}
				c.expect("at the end", tt.told...)
			})
		})
	}
}

// What is not the blob that its name says is read once more if a part of it was here
// before, and then condemned.
func TestColdReadOfSomethingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCellar(t, 1<<20, nil)
		right := bytes.Clone(c.data)
		write := func(data []byte) {
			t.Helper()
			if _, err := c.gate.Backend.Write(t.Context(), c.at.key, int64(len(data)), bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
		}
		wrong := bytes.Clone(right)
		wrong[900_000] ^= 1
		write(wrong)
		if err := c.read(); !errdefs.IsDataLoss(err) || c.count.Opens() != 1 {
			t.Errorf("%v after %d reads, want lost data after one", err, c.count.Opens())
		}
		c.expect("wrong bytes", "arriving", "condemned true", "gone")
		write(right[:1000])
		if err := c.read(); !errdefs.IsDataLoss(err) {
			t.Errorf("another size: %v", err)
		}
		c.expect("another size", "arriving", "condemned true", "gone")

		// The first part of it was wrong when it was read, and the backend has the blob by now.
		write(wrong)
		c.gate.only(950_000)
		r, release, err := c.join(t.Context(), c.at)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		release()
		time.Sleep(2 * testGrace)
		<-r.done
		c.expect("abandoned", "arriving", "gone")
		write(right)
		c.gate.let(1 << 40)
		before := c.count.Opens()
		if err := c.read(); err != nil || c.count.Opens() != before+2 {
			t.Errorf("%v after %d reads, want a second one from the beginning", err, c.count.Opens()-before)
		}
		c.expect("healed", "arriving", "found", "complete true", "arrived")
	})
}

// A read goes on for a while when nobody wants the blob any more, and for as long as
// somebody reads, a peer takes of it, or a tracker asked for it; whoever comes later begins
// where it stopped.
func TestColdReadIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCellar(t, 2<<20, nil)
		c.gate.only(1 << 20)
		reading := func(when string, want int64) {
			t.Helper()
			synctest.Wait()
			if n := c.count.Reading(); n != want {
				t.Errorf("%s: %d reads are under way, want %d", when, n, want)
			}
		}
		_, release, err := c.join(t.Context(), c.at)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * testGrace)
		reading("somebody waits", 1)
		c.mu.Lock()
		c.taken = true
		c.mu.Unlock()
		release()
		release() // once is enough
		time.Sleep(3 * testGrace)
		reading("a peer takes of it", 1)
		c.mu.Lock()
		c.taken = false
		c.mu.Unlock()
		time.Sleep(testGrace - time.Second)
		reading("until a while later", 1)
		if !c.wanted(c.at.id, 2*testGrace) {
			t.Error("it is not known that it is being read")
		}
		time.Sleep(3*testGrace - time.Second)
		reading("a peer has asked for it", 1)
		time.Sleep(testGrace)
		reading("nobody wants it", 0)
		c.expect("abandoned", "arriving", "gone")
		if c.wanted(c.at.id, time.Hour) {
			t.Error("it is said to be read still")
		}
		first := c.count.Bytes()
		c.gate.let(1 << 40)
		if err := c.read(); err != nil {
			t.Error(err)
		}
		if again := c.count.Bytes() - first; again > 1<<20+chunk {
			t.Errorf("%d bytes were read again", again-1<<20)
		}
	})
}

// A blob that is deleted while it is being read has no record afterwards, and its readers
// are told that it is not there.
func TestColdReadOfWhatIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCellar(t, 1<<20, nil)
		d := digest.Digest(c.at.id.Digest())
		c.gate.only(100_000)
		read := make(chan error, 1)
		go func() { read <- c.read() }()
		synctest.Wait()
		c.stop(d)
		if _, ok := c.find(d); ok {
			t.Error("it is offered to others")
		}
		if err := <-read; !errdefs.IsNotFound(err) {
			t.Errorf("its reader is told %v", err)
		}
		c.expect("deleted", "arriving", "gone")

		// All of it is here, but where it was found is not kept, when it is deleted.
		c.gate.let(1 << 40)
		c.keep = make(chan struct{})
		go func() { read <- c.read() }()
		synctest.Wait()
		if p := c.blobs.store.Presence(c.at.id); p != content.Cached {
			t.Errorf("the blob is %v, want all of it here", p)
		}
		c.promise(c.at.id, func() { t.Error("it is promised when its end is about to be announced") })
		c.stop(d)
		close(c.keep)
		if err := <-read; !errdefs.IsNotFound(err) {
			t.Errorf("its reader is told %v", err)
		}
		c.expect("deleted late", "arriving", "found", "gone")
	})
}

// Only so many are read at once; nobody is promised a blob whose end was announced.
func TestColdReadBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCellar(t, 1<<20, nil)
		c.gate.only(0)
		for i := range 3 {
			at := c.at
			at.id.Sum[0] ^= byte(i)
			if err := c.want(at, time.Hour); (i == 2) != errdefs.IsUnavailable(err) || (i < 2) != (err == nil) {
				t.Errorf("read %d: %v", i, err)
			}
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		third := c.at
		third.id.Sum[1] ^= 1
		if _, _, err := c.join(ctx, third); !errdefs.IsUnavailable(err) {
			t.Errorf("one more: %v", err)
		}
		promised := 0
		c.promise(c.at.id, func() { promised++ })
		c.promise(third.id, func() { promised++ })
		if promised != 1 {
			t.Errorf("%d were promised, want the one that is being read", promised)
		}
	})
}

// A backend that opens and then says nothing lets nobody wait who does not want to, and a
// reader that gives up is told so; never "not found".
func TestColdReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := func(b fetcher.Backend) fetcher.Backend { return slowStat(b, time.Hour) }
		c := newCellar(t, 1<<20, stuck)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _, err := c.join(ctx, c.at)
		if !errors.Is(err, context.DeadlineExceeded) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "backend mem") {
			t.Errorf("got %v", err)
		}
		if p := c.prefix(c.at.id); p != 0 {
			t.Errorf("%d bytes have arrived", p)
		}
		time.Sleep(2 * testGrace)
		if n := c.coldReads.count(); n != 0 {
			t.Errorf("%d reads go on for nobody", n)
		}
	})
}

// A backend that does not answer is "unavailable" to clients, at once when the budget is
// over, and never "not found", for a read, a look-up, and a preheat.
func TestSilentBackendIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := testBlob(1000, 1)
		cfg := testConfig(t, t.TempDir(), stores{"empty": &fetchertest.Memory{}, "silent": slowStat(&fetchertest.Memory{}, time.Hour)})
		s, ctx := newServer(t, cfg)
		h := s.handler()
		for _, method := range []string{"GET", "HEAD"} {
			rec := httptest.NewRecorder()
			start := time.Now()
			h.ServeHTTP(rec, httptest.NewRequest(method, origin.PathBlobs+"/"+string(d), nil))
			took, again := time.Since(start), rec.Header().Get("Retry-After")
			if rec.Code != http.StatusServiceUnavailable || again == "" || took != cfg.Lookup.Budget.D() {
				t.Errorf("%s: status %d after %v, %v", method, rec.Code, took, rec.Header())
			}
		}
		if err := s.errands.bring(ctx, idOf(t, make([]byte, 1000))); !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
			t.Errorf("preheat: %v", err)
		}
	})
}
