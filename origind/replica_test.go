package origind

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// duo is a member "a" of a ring, and all that it knows of its only other one, "b".
type duo struct {
	*member
	t     *testing.T
	blobs *holdings
	gate  chan error // what takes come to, in order
	data  []byte     // that they bring
}

var other1 = origin.Asker{Name: "b", Incarnation: 7}

func newDuo(t *testing.T) *duo {
	t.Helper()
	h := newHoldings(t)
	d := &duo{t: t, blobs: h, gate: make(chan error)}
	d.data, _ = testBlob(1000, 1)
	var err error
	d.member, err = newMember(t.Context(), ringstate.Config{
		Name: "a", Incarnation: h.ledger.incarnation(), Members: []string{"a", "b"}, Replicas: 2, MinReplicas: 1,
	}, memberParts{ledger: h.ledger, bytes: h.store, copies: d, asks: d, watch: d, tasks: newTasks(t)})
	if err != nil {
		t.Fatal(err)
	}
	d.begin(t.Context())
	t.Cleanup(d.close)
	for up := false; !up; time.Sleep(100 * time.Millisecond) {
		if err := d.look(t.Context(), func(r *ringstate.Ring) { s := r.Status(); up = s.Mode == ringstate.Up && !s.Starting }); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func (d *duo) ask(_ context.Context, _ string, q ringstate.Ask) (uint64, ringstate.Answer, error) {
	switch q.(type) {
	case ringstate.Probe:
		return other1.Incarnation, &ringstate.Status{Name: other1.Name, Replicas: 2, MinReplicas: 1}, nil
	case ringstate.ReadLog:
		return other1.Incarnation, &ringstate.LogPage{First: 1}, nil
	}
	return 0, nil, errDown
}

func (d *duo) take(ctx context.Context, _ digest.Digest, _ int64, _ []string) (release func(), err error) {
	select {
	case err = <-d.gate:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		d.blobs.keep(d.t, d.data)
	}
	return func() {}, err
}

func (d *duo) heal(context.Context, digest.Digest, int64, []int, []string) []int { return nil }
func (d *duo) wrong(digest.Digest, int64) []int                                  { return nil }
func (d *duo) heard(origin.Asker)                                                {}
func (d *duo) recorded(digest.Digest, *record.Entry, *record.Entry)              {}
func (d *duo) membersChanged([]ringstate.Peer)                                   {}

// replica has b ask for the blob.
func (d *duo) replica(ctx context.Context) (*ringstate.Replied, error) {
	of := digest.FromBytes(d.data)
	rec := record.Pushed(of, int64(len(d.data)), record.Place{Backend: "kept"}, "any/app", "b", 1)
	a, err := d.asked(ctx, other1, &ringstate.Replica{Digest: of, Record: rec, Urgent: true, Sources: []string{"b"}})
	r, _ := a.(*ringstate.Replied)
	return r, err
}

// Who asks to have a blob is answered when it is there, or is known not to come; after a second at most. Nothing else waits for that.
func TestReplicaWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDuo(t)
		began := time.Now()
		r, err := d.replica(t.Context())
		if err != nil || r.Code != ringstate.CodeTaking || time.Since(began).Round(time.Millisecond) != time.Second {
			t.Errorf("after %v: %+v, %v", time.Since(began), r, err)
		}
		began = time.Now()
		said := make(chan *ringstate.Replied, 2)
		ask := func() {
			r, err := d.replica(t.Context())
			if err != nil {
				t.Error(err)
			}
			said <- r
		}
		go ask()
		gone, cancel := context.WithCancel(t.Context())
		go func() {
			if _, err := d.replica(gone); !errors.Is(err, context.Canceled) {
				t.Errorf("who has gone is told %v", err)
			}
		}()
		synctest.Wait()
		cancel()
		if _, err := d.asked(t.Context(), other1, ringstate.Probe{}); err != nil || len(said) > 0 {
			t.Errorf("how it is: %v; of the blob it has said %d", err, len(said))
		}
		d.gate <- errDown
		if r := <-said; r.Code != ringstate.CodeLater {
			t.Errorf("it cannot be taken: %+v", r)
		}
		go ask()
		synctest.Wait()
		d.gate <- nil
		if r := <-said; r.Code != ringstate.CodePinned || r.Record == nil {
			t.Errorf("it was taken: %+v", r)
		}
		if time.Since(began) > 0 {
			t.Errorf("all that took %v", time.Since(began))
		}
		if err := d.look(t.Context(), func(*ringstate.Ring) {
			if n := len(d.calls); n != 0 {
				t.Errorf("%d calls are not answered", n)
			}
		}); err != nil {
			t.Error(err)
		}
	})
}

// Who is no member any more is told so.
func TestRemovedAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDuo(t)
		if err := d.operate(t.Context(), "b", ringstate.Remove); err != nil {
			t.Fatal(err)
		}
		if _, err := d.replica(t.Context()); !errdefs.IsPermissionDenied(err) {
			t.Errorf("it is told %v", err)
		}
	})
}

// That a clock is wrong is said once an hour, of each member.
func TestWarnsOfClocks(t *testing.T) {
	began := time.Now()
	m := &member{memberParts: memberParts{tasks: newTasks(t)}, warned: map[string]time.Time{}}
	see := func(after time.Duration, b, c time.Duration) (said int) {
		peers := []ringstate.Peer{{Skew: b}, {Skew: c}}
		peers[0].Name, peers[1].Name = "b", "c"
		at := began.Add(after)
		m.warn(&sight{at: at, peers: peers})
		for _, last := range m.warned {
			if last.Equal(at) {
				said++
			}
		}
		return said
	}
	for i, got := range []int{
		see(0, 0, 0), see(time.Second, time.Minute, 0), see(2*time.Second, -time.Minute, time.Hour), see(3*time.Second, time.Minute, time.Hour),
		see(warnEvery+time.Second, time.Minute, time.Hour), see(2*warnEvery+2*time.Second, time.Minute, time.Hour),
	} {
		if want := []int{0, 1, 1, 0, 1, 2}[i]; got != want {
			t.Errorf("look %d: it was said of %d, want %d", i, got, want)
		}
	}
}
