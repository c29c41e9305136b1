package moving

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/owned"
	"github.com/capelin-io/capelin/fetcher/walk"
)

// world is a ring whose backend moves, and what has been acknowledged of it.
type world struct {
	a, b    *memory
	members []*Storage
	want    map[string]string // key → bytes
	gone    map[string]bool   // that were deleted
	n       int
}

func newWorld(t *testing.T, blobs, members int) *world {
	t.Helper()
	w := &world{a: new(memory), b: new(memory), want: map[string]string{}, gone: map[string]bool{}}
	for i := range members {
		s := Blobs.New(owned.New(w.a, "c"), owned.New(w.b, "c"), fmt.Sprint("origin-", i))
		check(t, s.Join(t.Context()))
		w.members = append(w.members, s)
	}
	for range blobs {
		check(t, w.push(t.Context(), w.members[0]))
	}
	return w
}

func blobKey(text string) string {
	key, err := fetcher.BlobKey(digest.FromString(text))
	if err != nil {
		panic(err)
	}
	return key
}

func recordKey(blob string) string { return "records/" + strings.TrimPrefix(blob, "blobs/") }

// push writes as an origin does: the blob, then its record.
func (w *world) push(ctx context.Context, s *Storage) error {
	w.n++
	text := strings.Repeat(fmt.Sprint("blob ", w.n, " "), 1+w.n%50)
	key := blobKey(text)
	if _, err := s.Write(ctx, key, int64(len(text)), strings.NewReader(text)); err != nil {
		return err
	}
	w.want[key] = text
	rec := fmt.Sprint("record ", w.n)
	_, err := s.WriteIf(ctx, recordKey(key), []byte(rec), "")
	if err == nil {
		w.want[recordKey(key)] = rec
	}
	return err
}

// delete deletes as an origin does: the record learns of it, the blob goes, then the record.
func (w *world) delete(ctx context.Context, s *Storage, key string) error {
	for {
		_, info, err := walk.Read(ctx, s, recordKey(key), 1<<20)
		if err == nil {
			_, err = s.WriteIf(ctx, recordKey(key), []byte("removed"), info.Version)
		}
		if err == nil {
			break
		}
		if !errdefs.IsConflict(err) { // which it is once, when it has moved
			return err
		}
	}
	w.want[recordKey(key)] = "removed"
	for _, k := range []string{key, recordKey(key)} {
		if err := s.Delete(ctx, k); err != nil {
			return err
		}
		delete(w.want, k)
		w.gone[k] = true
	}
	return nil
}

// step does something as one of the members. While writes wait it only reads.
func (w *world) step(t *testing.T, i int) {
	t.Helper()
	s := w.members[i%len(w.members)]
	st, err := Blobs.readState(t.Context(), w.a)
	check(t, err)
	blobs := slices.DeleteFunc(slices.Sorted(maps.Keys(w.want)), func(k string) bool { return Blobs.named(k) == "" })
	switch {
	case st.Phase == closed:
		w.same(t, s, "while writes wait")
	case i%3 == 0 && len(blobs) > 0:
		err = w.delete(t.Context(), s, blobs[(i*7)%len(blobs)])
	case i%3 == 1:
		err = w.push(t.Context(), s)
	}
	check(t, err)
}

// same compares what a storage has with what was acknowledged.
func (w *world) same(t *testing.T, b fetcher.Backend, when string) {
	t.Helper()
	have := map[string]string{}
	for _, prefix := range Blobs.prefixes {
		for info, err := range walk.All(t.Context(), b, prefix, "") {
			check(t, err)
			data, _, err := walk.Read(t.Context(), b, info.Key, 1<<20)
			check(t, err)
			have[info.Key] = string(data)
		}
	}
	for key, text := range w.want {
		if have[key] != text {
			t.Errorf("%s: %s is %.20q, want %.20q", when, key, have[key], text)
		}
		delete(have, key)
	}
	for key := range have {
		t.Errorf("%s: %s is there, deleted: %v", when, key, w.gone[key])
	}
}

// Whoever moves is killed before or after each of its writes, while origins push and delete after each: then, and when it has been done
// again, what was acknowledged is there, and what was deleted is not.
func TestBlobsCrashes(t *testing.T) {
	killed := errors.New("killed")
	slow := *Blobs
	slow.parallel, slow.batch = 1, 4 // in one order
	for _, when := range []string{"before", "after"} {
		points := 0
		for at := 1; ; at++ {
			w := newWorld(t, 6, 2)
			ops, steps := 0, 0
			hook := func(kill string) func(op, key string) error {
				return func(string, string) error {
					if kill == "before" {
						ops++
					}
					if steps < 12 && kill == "after" {
						steps++
						w.step(t, steps)
					}
					if ops == at && kill == when {
						return killed
					}
					return nil
				}
			}
			m := func() *Mover {
				return &Mover{
					Kind: &slow, From: &hooked{Backend: w.a, before: hook("before"), after: hook("after")},
					To: &hooked{Backend: w.b, before: hook("before"), after: hook("after")},
				}
			}
			_, err := m().Run(t.Context())
			whole := err == nil
			if !whole && !errors.Is(err, killed) {
				t.Fatalf("killed %s write %d: %v", when, at, err)
			}
			name := fmt.Sprintf("killed %s write %d", when, at)
			w.same(t, w.members[1], name)
			w.step(t, 1)
			w.step(t, 3)
			done, err := m().Run(t.Context())
			if err != nil || done.Phase != moved {
				t.Fatalf("%s, again: %v, %v", name, done, err)
			}
			w.same(t, w.b, name+", again")
			w.step(t, 3)
			w.step(t, 4)
			w.same(t, w.b, name+", afterwards")
			for _, s := range w.members {
				w.same(t, s, name+", at a member")
			}
			if t.Failed() {
				return
			}
			if whole {
				break
			}
			points++
		}
		t.Logf("killed %s each of %d writes", when, points)
		if points < 25 {
			t.Errorf("it was killed at %d places only", points)
		}
	}
}

// Several origins push, delete and read all the time, from goroutines of their own, while whoever moves is killed now and then.
func TestBlobsWhileServing(t *testing.T) {
	for seed := range uint64(3) {
		w := newWorld(t, 60, 3)
		parts := make([]*world, len(w.members))
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, s := range w.members {
			parts[i] = &world{want: map[string]string{}, gone: map[string]bool{}, n: 1000 * (i + 1)}
			chance := rand.New(rand.NewPCG(seed, uint64(i)))
			wg.Go(func() {
				p := parts[i]
				for ctx.Err() == nil {
					var err error
					blobs := slices.DeleteFunc(slices.Sorted(maps.Keys(p.want)), func(k string) bool { return Blobs.named(k) == "" })
					switch n := chance.IntN(3); {
					case n == 0 || len(blobs) < 10:
						err = p.push(t.Context(), s)
					case n == 1:
						err = p.delete(t.Context(), s, blobs[chance.IntN(len(blobs))])
					default:
						key := blobs[chance.IntN(len(blobs))]
						if got := text(t, s, key); got != p.want[key] {
							t.Errorf("seed %d: %s is %.20q", seed, key, got)
							return
						}
					}
					if errdefs.IsUnavailable(err) { // the move went on meanwhile; the ring does it again
						key := blobKey(strings.Repeat(fmt.Sprint("blob ", p.n, " "), 1+p.n%50))
						for _, k := range []string{key, recordKey(key)} {
							if err := s.Delete(t.Context(), k); err != nil && !errdefs.IsUnavailable(err) {
								t.Error(err)
							}
							delete(p.want, k)
						}
						for k, text := range p.want {
							if text == "removed" {
								check(t, p.finish(t.Context(), s, k))
							}
						}
					} else if err != nil {
						t.Errorf("seed %d: %v", seed, err)
						return
					}
				}
			})
		}
		killed := errors.New("killed")
		for try := 0; ; try++ {
			left, mu := 40+try*40, sync.Mutex{}
			die := func(string, string) error {
				mu.Lock()
				defer mu.Unlock()
				if left--; left < 0 && try < 6 {
					return killed
				}
				return nil
			}
			_, err := (&Mover{Kind: Blobs, From: &hooked{Backend: w.a, before: die}, To: &hooked{Backend: w.b, before: die}}).Run(t.Context())
			if err == nil {
				break
			}
			if !errors.Is(err, killed) {
				t.Fatal(err)
			}
		}
		stop()
		wg.Wait()
		for _, p := range parts {
			maps.Copy(w.want, p.want)
			maps.Copy(w.gone, p.gone)
		}
		w.same(t, w.b, fmt.Sprint("seed ", seed))
	}
}

// finish ends a deletion that was begun, whose record has the key.
func (w *world) finish(ctx context.Context, s *Storage, record string) error {
	for _, k := range []string{"blobs/" + strings.TrimPrefix(record, "records/"), record} {
		for {
			err := s.Delete(ctx, k)
			if err == nil {
				break
			}
			if !errdefs.IsUnavailable(err) {
				return err
			}
		}
		delete(w.want, k)
		w.gone[k] = true
	}
	return nil
}

// One that moves, and sleeps in the middle of a blob until another one has moved all and the blob was deleted, does not bring it back.
func TestBlobsSleeper(t *testing.T) {
	w := newWorld(t, 3, 1)
	var key string
	for k := range w.want {
		if Blobs.named(k) != "" {
			key = max(key, k)
		}
	}
	from := &reading{Backend: w.a, key: key, then: func() {
		_, err := (&Mover{Kind: Blobs, From: w.a, To: w.b}).Run(t.Context())
		check(t, err)
		check(t, w.delete(t.Context(), w.members[0], key))
	}}
	if _, err := (&Mover{Kind: Blobs, From: from, To: w.b}).Run(t.Context()); !errdefs.IsConflict(err) {
		t.Errorf("it has not found out that another one moves: %v", err)
	}
	if from.then != nil {
		t.Fatal("this tests nothing: it did not sleep")
	}
	w.same(t, w.b, "in the new storage")
}

// reading does something once while an object is being read.
type reading struct {
	fetcher.Backend
	key  string
	then func()
}

func (r *reading) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	rc, info, err := r.Backend.Open(ctx, key, off, n)
	if then := r.then; err == nil && key == r.key && then != nil {
		r.then = nil
		then()
	}
	return rc, info, err
}

// What has not the bytes that its name says is not copied, and keeps all from moving until that is accepted; what the new storage has of
// that kind is copied again.
func TestBlobsDamaged(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t, 5, 1)
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(w.want)), func(k string) bool { return Blobs.named(k) == "" })
	bad, other := keys[1], keys[3]
	spoil := func(b fetcher.Backend, key string) {
		text := w.want[key]
		put(t, b, key, text[:len(text)-1]+"!")
	}
	spoil(w.a, bad)
	m := &Mover{Kind: Blobs, From: w.a, To: &hooked{Backend: w.b, after: func(op, key string) error {
		if op == "write" && key == other {
			spoil(w.b, other)
			other += " "
		}
		return nil
	}}}
	done, err := m.Run(ctx)
	var damaged *DamagedError
	if !errors.As(err, &damaged) || !slices.Equal(damaged.Keys, []string{bad}) ||
		!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), bad) {
		t.Fatal(done, err)
	}
	if st, err := Blobs.readState(ctx, w.a); err != nil || st.Phase != copying {
		t.Error("it has gone on", st, err)
	}
	// Known again by who goes on, although the copy has passed it.
	if _, err := (&Mover{Kind: Blobs, From: w.a, To: w.b}).Run(ctx); !errors.As(err, &damaged) {
		t.Errorf("forgotten: %v", err)
	}
	done, err = (&Mover{Kind: Blobs, From: w.a, To: w.b, LeaveDamaged: true}).Run(ctx)
	if err != nil || !slices.Equal(done.Damaged, []string{bad}) {
		t.Fatal(done, err)
	}
	delete(w.want, bad)
	w.same(t, w.b, "without what is damaged")
}

// One that was pushed while writes wait, and is damaged, has them go on in the old storage.
func TestBlobsDamagedLate(t *testing.T) {
	w := newWorld(t, 3, 1)
	var bad string
	m := &Mover{Kind: Blobs, From: &hooked{Backend: w.a, before: func(_, key string) error {
		st, err := Blobs.readState(t.Context(), w.a)
		if err == nil && st.Phase == copying && st.Epoch > 1 && bad == "" && key == Blobs.stateKey() {
			bad = blobKey("x")
			put(t, w.members[0], bad, "y")
		}
		return nil
	}}, To: w.b}
	var damaged *DamagedError
	if _, err := m.Run(t.Context()); !errors.As(err, &damaged) || !slices.Equal(damaged.Keys, []string{bad}) {
		t.Fatal(err)
	}
	check(t, w.members[0].Delete(t.Context(), bad))
	done, err := m.Run(t.Context())
	if err != nil || done.Phase != moved || len(done.Damaged) > 0 {
		t.Error(done, err)
	}
	w.same(t, w.b, "afterwards")
}

// A storage that does not compare and swap is left, and moved to.
func TestBlobsPlain(t *testing.T) {
	a, b := new(memory), new(memory)
	from, to := fetcher.Backend(&plain{a}), fetcher.Backend(b)
	for range 2 {
		s := Blobs.New(from, to, "o")
		check(t, s.Join(t.Context()))
		if s.Capabilities().CompareAndSwap {
			t.Error("it compares and swaps in one of them only")
		}
		put(t, s, blobKey("x"), "x")
		put(t, s, "records/x", "1")
		_, err := (&Mover{Kind: Blobs, From: from, To: to}).Run(t.Context())
		check(t, err)
		put(t, s, "records/x", "2")
		if text(t, to, blobKey("x")) != "x" || text(t, to, "records/x") != "2" || text(t, from, "records/x") != "1" {
			t.Error("it has not moved")
		}
		check(t, s.Close())
		from, to = b, &plain{new(memory)}
	}
}

type plain struct{ *memory }

func (p *plain) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true}
}

func (p *plain) WriteIf(context.Context, string, []byte, string) (fetcher.Info, error) {
	return fetcher.Info{}, fmt.Errorf("plain: %w", errdefs.ErrNotImplemented)
}

// An origin is known by its name: one that was killed and started again is registered once, and one of before does not use
// what has moved.
func TestBlobsMembers(t *testing.T) {
	ctx := t.Context()
	a, b := new(memory), new(memory)
	for range 2 {
		check(t, Blobs.New(a, nil, "origin 1/x").Join(ctx)) // and is killed
	}
	m := &Mover{Kind: Blobs, From: a, To: b}
	var untold *UntoldError
	_, err := m.Run(ctx)
	if !errors.As(err, &untold) || len(untold.Members) != 1 || untold.Members[0].Name != "origin 1/x" ||
		!strings.Contains(err.Error(), "origins use") {
		t.Fatal(err)
	}
	stale := Blobs.New(a, nil, "origin 2")
	check(t, stale.Join(ctx))
	m.Gone = []string{"origin 2"}
	check(t, Blobs.New(a, b, "origin 1/x").Join(ctx))
	_, err = m.Run(ctx)
	check(t, err)
	old := Blobs.New(a, nil, "origin 2")
	for name, do := range map[string]func() error{
		"stat":  func() error { _, err := old.Stat(ctx, "blobs/x"); return err },
		"write": func() error { _, err := old.Write(ctx, "blobs/x", 0, strings.NewReader("")); return err },
	} {
		if err := do(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has moved to memory:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	alone := Blobs.New(b, nil, "origin 2")
	check(t, alone.Join(ctx))
	check(t, alone.Close())
	page, _, err := b.List(ctx, Blobs.memberPrefix(), "", 0)
	if err != nil || len(page) != 1 {
		t.Errorf("%d are registered in the new storage, %v", len(page), err)
	}
}

// Who may not write reads, and is not registered.
func TestBlobsReadOnly(t *testing.T) {
	a := new(memory)
	put(t, a, blobKey("x"), "x")
	denied := func(string, string) error { return fmt.Errorf("no: %w", errdefs.ErrPermissionDenied) }
	s := Blobs.New(&hooked{Backend: a, before: denied}, nil, "o")
	if got := text(t, s, blobKey("x")); got != "x" {
		t.Error(got)
	}
	_, err := s.Write(t.Context(), blobKey("y"), 1, strings.NewReader("y"))
	if !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
}

// The new storage belongs to the cluster of the old one, and has an id of its own; one of another cluster is refused.
func TestBlobsIdentity(t *testing.T) {
	w := newWorld(t, 1, 1)
	id := w.members[0].ID()
	other := new(memory)
	_, err := owned.Claim(t.Context(), other, "d")
	check(t, err)
	if _, err := (&Mover{Kind: Blobs, From: w.a, To: other}).Run(t.Context()); !errdefs.IsFailedPrecondition(err) ||
		!strings.Contains(err.Error(), `"d"`) {
		t.Errorf("it moves to another cluster: %v", err)
	}
	_, err = (&Mover{Kind: Blobs, From: w.a, To: w.b}).Run(t.Context())
	check(t, err)
	check(t, w.push(t.Context(), w.members[0]))
	is, err := owned.Read(t.Context(), w.b)
	if err != nil || is == nil || is.Cluster != "c" || is.ID == id || id == "" || w.members[0].ID() != is.ID {
		t.Errorf("the old one is %q, the new one %+v, %v, and the member says %q", id, is, err, w.members[0].ID())
	}
}

// Each blob is read from the new storage once, also if it goes on after half of it.
func TestBlobsVerified(t *testing.T) {
	const blobs = 200
	w := newWorld(t, blobs, 1)
	reads := map[string]int{}
	var mu sync.Mutex
	to := &opened{Backend: w.b, open: func(key string) {
		mu.Lock()
		defer mu.Unlock()
		if Blobs.named(key) != "" {
			reads[key]++
		}
	}}
	stopped := errors.New("stopped")
	n := 0
	_, err := (&Mover{Kind: Blobs, From: w.a, To: &hooked{Backend: to, before: func(op, key string) error {
		if key == Blobs.targetKey() {
			if n++; n == 3 {
				return stopped
			}
		}
		return nil
	}}}).Run(t.Context())
	if !errors.Is(err, stopped) {
		t.Fatal(err)
	}
	done, err := (&Mover{Kind: Blobs, From: w.a, To: to}).Run(t.Context())
	check(t, err)
	twice := 0
	for _, n := range reads {
		if n == 2 {
			twice++
		} else if n != 1 {
			t.Errorf("a blob was read %d times", n)
		}
	}
	if len(reads) != blobs || twice > Blobs.batch || done.Copied >= 2*blobs {
		t.Errorf("%d of %d blobs were read, %d of them twice; %v", len(reads), blobs, twice, done)
	}
	if s := (Progress{Phase: copying, At: "blobs/sha256/80/80…"}).String(); !strings.Contains(s, "about 50 %") {
		t.Error(s)
	}
}

type opened struct {
	fetcher.Backend
	open func(key string)
}

func (o *opened) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	o.open(key)
	return o.Backend.Open(ctx, key, off, n)
}

// A blob that arrives in small reads, and one of no bytes, are verified to the end.
func TestCarried(t *testing.T) {
	for _, text := range []string{"", "x", "abcdef"} {
		for _, wrong := range []bool{false, true} {
			ended := 0
			c := &carried{Reader: io.MultiReader(strings.NewReader(text[:len(text)/2]), strings.NewReader(text[len(text)/2:])),
				h: digest.SHA256.Hash(), left: int64(len(text)), end: func(hash.Hash) error {
					ended++
					if wrong {
						return errDamaged
					}
					return nil
				}}
			got, err := io.ReadAll(c)
			if ended != 1 || wrong != errors.Is(err, errDamaged) || !wrong && (err != nil || !bytes.Equal(got, []byte(text))) ||
				wrong && text != "" && len(got) == len(text) {
				t.Errorf("%q, wrong %v: %q, %v, ended %d times", text, wrong, got, err, ended)
			}
		}
	}
}

// What origins see of a backend is a storage as any.
func TestBlobsConformance(t *testing.T) {
	fetchertest.Run(t, func(*testing.T) fetcher.Backend { return &hidden{Blobs.New(new(memory), new(memory), "o")} }, fetchertest.Options{})
}
