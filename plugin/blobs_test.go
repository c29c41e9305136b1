package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/plugin/shim"
	"github.com/capelin-io/capelin/swarm/piece"
)

// shimRegistry is an upstream that notes from where it was read.
type shimRegistry struct {
	data  []byte
	asked []int64
	// dies is after how many bytes each answer ends; 0: never.
	dies int
	slow time.Duration // per 64 KiB
	err  error
}

func (u *shimRegistry) open(_ context.Context, off int64) (io.ReadCloser, error) {
	u.asked = append(u.asked, off)
	if u.err != nil {
		return nil, u.err
	}
	data := u.data[off:]
	var end io.Reader
	if u.dies > 0 && u.dies < len(data) {
		data, end = data[:u.dies], iotest.ErrReader(errors.New("connection reset"))
	} else {
		end = bytes.NewReader(nil)
	}
	return io.NopCloser(io.MultiReader(&slowly{bytes.NewReader(data), u.slow}, end)), nil
}

type slowly struct {
	io.Reader
	wait time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	time.Sleep(s.wait)
	return s.Reader.Read(p[:min(len(p), 64<<10)])
}

func openBlob(w *fetchtest.World, up shim.Upstream) io.ReadSeekCloser {
	w.Helper()
	r, err := shimBlobs{w.Fetches, w.Blobs}.Open(w.Context(), w.ID, shim.Want{Upstream: up})
	if err != nil {
		w.Fatal(err)
	}
	return r
}

func wantAsked(w *fetchtest.World, u *shimRegistry, want ...int64) {
	w.Helper()
	if !slices.Equal(u.asked, want) {
		w.Errorf("the registry was read from %d on, want %d", u.asked, want)
	}
}

// wantAll reads r to its end.
func wantAll(w *fetchtest.World, r io.Reader) {
	w.Helper()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, w.Data) {
		w.Errorf("read %d bytes (%v), not the blob's %d", len(got), err, len(w.Data))
	}
}

func pieces(from, to int) (all []int) {
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

func TestShimBlobHere(t *testing.T) {
	fetchtest.Bubble(t, func(c *fetch.Config) { c.AuthorizeBlob = true }, func(w *fetchtest.World) {
		w.Blobs.Deliver(w.ID, w.Data, pieces(0, w.ID.Pieces())...)
		w.Blobs.Set(w.ID, func(st *fetchtest.State) { st.Done = true })
		u := &shimRegistry{data: w.Data}
		r := openBlob(w, u.open)
		wantAll(w, r)
		for _, tt := range []struct{ from, n int64 }{{0, 1}, {65535, 2}, {w.ID.Size - 1, 1}, {w.ID.Size, 0}, {70000, 100000}} {
			if _, err := r.Seek(tt.from, io.SeekStart); err != nil {
				w.Fatal(err)
			}
			got, err := io.ReadAll(io.LimitReader(r, tt.n))
			if err != nil || !bytes.Equal(got, w.Data[tt.from:tt.from+tt.n]) {
				w.Errorf("%d bytes from %d: %d (%v)", tt.n, tt.from, len(got), err)
			}
		}
		for _, off := range []int64{-1, w.ID.Size + 1} {
			if _, err := r.Seek(off, io.SeekStart); err == nil {
				w.Errorf("seeking to %d was no error", off)
			}
		}
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			w.Error(err)
		}
		wantAsked(w, u)
		w.WantEvents()
	})
}

// What the swarm delivers is read when all of it is here, whatever order it came in: before that
// nobody knows whether it is the blob.
func TestShimBlobWaitsForProof(t *testing.T) {
	fetchtest.Bubble(t, func(c *fetch.Config) { c.AuthorizeBlob = true }, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		u := &shimRegistry{data: w.Data}
		r := openBlob(w, u.open)
		defer r.Close()
		go func() {
			for _, i := range []int{3, 0, 2, 1} {
				time.Sleep(time.Second)
				w.Blobs.Deliver(w.ID, w.Data, i)
			}
			time.Sleep(time.Second)
			w.Blobs.Deliver(w.ID, w.Data, pieces(4, w.ID.Pieces())...)
		}()
		buf := make([]byte, w.ID.Size)
		n, err := r.Read(buf)
		if after := time.Since(w.Start); int64(n) != w.ID.Size || err != nil || after != 5*time.Second || !bytes.Equal(buf, w.Data) {
			w.Errorf("%d bytes (%v) after %v", n, err, after)
		}
		if _, err := r.Read(buf); err != io.EOF {
			w.Errorf("at the end: %v", err)
		}
		wantAsked(w, u)
	})
}

// What a registry sends goes to its own client as it comes, and to no other.
func TestShimBlobOwnRegistry(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Lease)
		lies := make([]byte, w.ID.Size)
		liar, honest := &shimRegistry{data: lies, slow: time.Second}, &shimRegistry{data: w.Data}
		his, mine := openBlob(w, liar.open), openBlob(w, honest.open)
		buf := make([]byte, w.ID.Size)
		if n, err := his.Read(buf); n != sentBlock || err != nil || time.Since(w.Start) != time.Second {
			w.Errorf("his registry's bytes: %d (%v) after %v", n, err, time.Since(w.Start))
		}
		wantAll(w, mine)
		his.Close()
		mine.Close()
	})
}

// A registry's bytes that others have replaced on disk are not its bytes any more.
func TestSentBytes(t *testing.T) {
	const size = 3*sentBlock + 100
	data := random(size)
	onDisk := bytes.Clone(data)
	var s sentBytes
	read := func(off int64) []byte {
		t.Helper()
		p := make([]byte, 1000)
		n, err := s.readAt(p, off, func(p []byte, off int64) (int, error) { return copy(p, onDisk[off:]), nil })
		if err != nil {
			t.Fatal(err)
		}
		return p[:n]
	}
	if got := read(0); len(got) > 0 {
		t.Errorf("%d bytes were read before any were sent", len(got))
	}
	s.begin(sentBlock - 10)
	s.add(data[sentBlock-10 : 2*sentBlock+5])
	for off, want := range map[int64]int{0: 0, sentBlock - 10: 0, sentBlock: 1000, 2*sentBlock - 7: 7, 2 * sentBlock: 0, 3 * sentBlock: 0} {
		if got := read(off); !bytes.Equal(got, data[off:][:want]) {
			t.Errorf("at %d: %d bytes, want %d", off, len(got), want)
		}
	}
	s.begin(0) // once more, as after a failure
	s.add(data)
	onDisk[2*sentBlock+3] ^= 1
	for off, want := range map[int64]int{5: 1000, sentBlock: 1000, 2 * sentBlock: 0, 3 * sentBlock: 0} {
		if got := read(off); !bytes.Equal(got, data[off:][:want]) {
			t.Errorf("after others wrote, at %d: %d bytes, want %d", off, len(got), want)
		}
	}
}

// A part of a blob that is not here comes from the registry soon, for this client alone.
func TestShimBlobPart(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		u := &shimRegistry{data: w.Data}
		r, err := shimBlobs{w.Fetches, w.Blobs}.Open(w.Context(), w.ID, shim.Want{Upstream: u.open, Part: true})
		if err != nil {
			w.Fatal(err)
		}
		if _, err := r.Seek(70_000, io.SeekStart); err != nil {
			w.Error(err)
		}
		buf := make([]byte, 2000)
		if _, err := io.ReadFull(r, buf); err != nil || !bytes.Equal(buf, w.Data[70_000:72_000]) || time.Since(w.Start) != partPatience {
			w.Errorf("%v after %v", err, time.Since(w.Start))
		}
		r.Close()
		wantAsked(w, u, 70_000)
	})
}

// Where each blob is authorized, what others have is for whom the registry sends its end.
func TestShimBlobTail(t *testing.T) {
	for name, whole := range map[string]bool{"here": true, "from the swarm": false} {
		t.Run(name, func(t *testing.T) {
			fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
				w.Finder.Answer(w.ID, tracker.Sources)
				if whole {
					w.Blobs.Deliver(w.ID, w.Data, pieces(0, w.ID.Pieces())...)
					w.Blobs.Set(w.ID, func(st *fetchtest.State) { st.Done = true })
				}
				tail := w.Data[w.ID.Size-shim.Tail:]
				u := &shimRegistry{data: w.Data}
				open := func(tail []byte) io.ReadCloser {
					r, err := shimBlobs{w.Fetches, w.Blobs}.Open(w.Context(), w.ID, shim.Want{Upstream: u.open, Tail: tail})
					if err != nil {
						w.Fatal(err)
					}
					return r
				}
				mine, his := open(tail), open(make([]byte, shim.Tail))
				if !whole {
					go func() {
						time.Sleep(time.Second)
						w.Blobs.Deliver(w.ID, w.Data, pieces(0, w.ID.Pieces())...)
					}()
				}
				wantAll(w, mine)
				if n, err := his.Read(make([]byte, 10)); n != 0 || !errdefs.IsPermissionDenied(err) {
					w.Errorf("%d bytes (%v) for a client whose registry does not have the blob", n, err)
				}
				mine.Close()
				his.Close()
				wantAsked(w, u)
			})
		})
	}
}

// What nobody has is downloaded once, however many read it, and told to the trackers.
func TestShimBlobLease(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Lease)
		u := &shimRegistry{data: w.Data, slow: time.Second}
		done := make(chan struct{})
		for range 3 {
			go func() {
				r := openBlob(w, u.open)
				wantAll(w, r)
				r.Close()
				done <- struct{}{}
			}()
		}
		for range 3 {
			<-done
		}
		wantAsked(w, u, 0)
		synctest.Wait()
		if ev := w.Finder.Events(); !slices.Contains(ev, "done true") {
			w.Errorf("the trackers heard %v, not of the end of the lease", ev)
		}
		if !w.Blobs.Whole(w.ID) || w.Blobs.Committed(w.ID) {
			w.Error("the blob is not just in the cache")
		}
	})
}

// A client that goes away ends its download; another one goes on with it.
func TestShimBlobClientGone(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Lease)
		u := &shimRegistry{data: w.Data, slow: time.Second}
		first, second := openBlob(w, u.open), openBlob(w, u.open)
		if _, err := first.Read(make([]byte, 10)); err != nil {
			w.Error(err)
		}
		go func() {
			time.Sleep(2500 * time.Millisecond)
			first.Close()
		}()
		wantAll(w, second)
		second.Close()
		wantAsked(w, u, 0, 4<<16)
	})
}

func TestShimBlobRegistryDies(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		u := &shimRegistry{data: w.Data, dies: 4<<16 + 100}
		r := openBlob(w, u.open)
		wantAll(w, r)
		r.Close()
		wantAsked(w, u, 0, 4<<16, 8<<16)
	})
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		u := &shimRegistry{data: w.Data, dies: 1000} // never a whole piece
		r := openBlob(w, u.open)
		if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil {
			w.Errorf("%d bytes, %v", n, err)
		}
		r.Close()
		wantAsked(w, u, 0, 0, 0)
	})
	for name, tt := range map[string]struct {
		err   error
		tries int
	}{
		"unreachable": {fmt.Errorf("no route: %w", errdefs.ErrUnavailable), maxFailures},
		"refuses":     {fmt.Errorf("status 403: %w", errdefs.ErrPermissionDenied), 1},
	} {
		t.Run(name, func(t *testing.T) {
			fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
				w.Finder.Answer(w.ID, tracker.Lease)
				u := &shimRegistry{err: tt.err}
				r := openBlob(w, u.open)
				if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.Is(err, tt.err) {
					w.Errorf("%d bytes, %v", n, err)
				}
				r.Close()
				if len(u.asked) != tt.tries {
					w.Errorf("the registry was asked %d times, want %d", len(u.asked), tt.tries)
				}
				synctest.Wait()
				if n := w.Fetches.Len(); n != 0 {
					w.Errorf("%d fetches are left", n)
				}
			})
		})
	}
}

// What the swarm delivered and the registry contradicts is replaced before it is read; a
// registry whose own bytes make another digest is believed no more than once.
func TestShimBlobMismatch(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		w.Blobs.Deliver(w.ID, make([]byte, w.ID.Size), 0, 1)
		u := &shimRegistry{data: w.Data}
		r := openBlob(w, u.open)
		wantAll(w, r)
		r.Close()
		wantAsked(w, u, 2<<16, 0)
	})
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		u := &shimRegistry{data: make([]byte, w.ID.Size), slow: time.Second}
		r := openBlob(w, u.open)
		if _, err := io.ReadAll(r); !errors.Is(err, piece.ErrMismatch) {
			w.Errorf("error %v", err)
		}
		r.Close()
		wantAsked(w, u, 0)
	})
}

// The same with a real store, and sums that are as false as the bytes.
func TestShimBlobLies(t *testing.T) {
	s := newServer(t, serverOptions{})
	id, data := fetchtest.Random(t, 21<<16+3, 40)
	lies := slices.Clone(data)
	lies[5<<16+7] ^= 1
	s.swarm.has(id, lies, 10, nil)
	for range 2 {
		r, err := shimBlobs{s.fs, &disk{s.store}}.Open(t.Context(), id, shim.Want{Upstream: (&shimRegistry{data: data}).open})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes of %d: %v", len(got), id.Size, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if p := s.store.Presence(id); p != content.Cached {
			t.Errorf("after it was read the blob is %v", p)
		}
	}
}

// A reader that waits is served when the blob comes by another way.
func TestShimBlobImported(t *testing.T) {
	s := newServer(t, serverOptions{})
	id, data := fetchtest.Random(t, 5<<16+3, 41)
	hold := make(chan struct{})
	s.swarm.has(id, data, -1, hold)
	defer close(hold)
	r, err := shimBlobs{s.fs, &disk{s.store}}.Open(t.Context(), id, shim.Want{Upstream: (&shimRegistry{err: errors.New("not needed")}).open})
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan []byte)
	go func() {
		got, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		read <- got
	}()
	s.news.until(func() bool { return len(s.swarm.wanted()) > 0 })
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	if err := ctrdcontent.WriteBlob(ctx, s.contents(), "import-1", bytes.NewReader(data), layer(id)); err != nil {
		t.Fatal(err)
	}
	if got := <-read; !bytes.Equal(got, data) {
		t.Errorf("read %d bytes of %d", len(got), id.Size)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// A disk that is full fails the reading; what was downloaded is dropped.
func TestShimBlobDiskFull(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		w.Blobs.Set(w.ID, func(st *fetchtest.State) { st.WriteErr = fetchtest.ErrFull })
		r := openBlob(w, (&shimRegistry{data: w.Data}).open)
		if _, err := r.Read(make([]byte, 1)); !errdefs.IsResourceExhausted(err) {
			w.Errorf("error %v", err)
		}
		r.Close()
		synctest.Wait()
		if w.Blobs.Get(w.ID).Dropped == 0 {
			w.Error("nothing was dropped")
		}
	})
}

// A few bytes far behind what is here are the registry's, without a download of
// all that is before them.
func TestShimBlobFarRange(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.ID, w.Data = fetchtest.Random(t, maxAhead+10<<16, 7)
		w.Finder.Answer(w.ID, tracker.Lease)
		u := &shimRegistry{data: w.Data}
		r := openBlob(w, u.open)
		at := w.ID.Size - 70000
		if _, err := r.Seek(at, io.SeekStart); err != nil {
			w.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, w.Data[at:]) {
			w.Errorf("%d bytes, %v", len(got), err)
		}
		r.Close()
		wantAsked(w, u, at)
		synctest.Wait()
		if ev := w.Finder.Events(); !slices.Contains(ev, "done false") {
			w.Errorf("the trackers heard %v, not that the lease is free", ev)
		}
	})
}

func TestShimBlobEnds(t *testing.T) {
	for name, end := range map[string]func(w *fetchtest.World, cancel func(), r io.Closer){
		"the client goes":  func(_ *fetchtest.World, cancel func(), _ io.Closer) { cancel() },
		"the agent stops":  func(w *fetchtest.World, _ func(), _ io.Closer) { w.Stop() },
		"the agent drains": func(w *fetchtest.World, _ func(), _ io.Closer) { w.Fetches.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
				w.Finder.Answer(w.ID, tracker.Sources)
				ctx, cancel := context.WithCancel(w.Context())
				defer cancel()
				u := &shimRegistry{data: w.Data}
				r, err := shimBlobs{w.Fetches, w.Blobs}.Open(ctx, w.ID, shim.Want{Upstream: u.open})
				if err != nil {
					w.Fatal(err)
				}
				go func() {
					time.Sleep(time.Second)
					end(w, cancel, r)
				}()
				n, err := r.Read(make([]byte, 10))
				if drained := len(u.asked) > 0; drained != (err == nil) || (n > 0) != drained {
					w.Errorf("%d bytes, %v; the registry was asked %d times", n, err, len(u.asked))
				}
				if after := time.Since(w.Start); after != time.Second {
					w.Errorf("it took %v", after)
				}
				r.Close()
			})
		})
	}
}
