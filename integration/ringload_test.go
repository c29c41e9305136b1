package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/integration/harness"
)

// load is clients that push and pull all the time.
type load struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	acked   []*ringBlob // that are not about to be deleted
	deleted []*ringBlob
	counts  map[string]int // what went well
	longest map[string]time.Duration
	failed  []error
	absent  []error // those of them by which a blob is said not to be there
}

// loadOptions say what a load does.
type loadOptions struct {
	size                       int64
	pushers, pullers, deleters int
	pause                      time.Duration // of each after each
}

// begin has a client be used until end is called; first are blobs that were acknowledged before.
func (r *rings) begin(c *origin.Client, first []*ringBlob, o loadOptions) *load {
	ctx, cancel := context.WithCancel(r.ctx)
	l := &load{stop: cancel, acked: slices.Clone(first), counts: map[string]int{}, longest: map[string]time.Duration{}}
	run := func(n int, what string, f func() (bool, error)) {
		for range n {
			l.wg.Go(func() {
				for ctx.Err() == nil {
					began := time.Now()
					did, err := f()
					took := time.Since(began)
					if did {
						l.note(what, err, took)
					}
					select {
					case <-time.After(o.pause):
					case <-ctx.Done():
					}
				}
			})
		}
	}
	run(o.pushers, "push", func() (bool, error) {
		b := r.blob(o.size)
		err := push(r.ctx, c, b) // one that has begun goes on
		if err == nil {
			l.mu.Lock()
			l.acked = append(l.acked, b)
			l.mu.Unlock()
		}
		return true, err
	})
	run(o.pullers, "pull", func() (bool, error) {
		b := l.any(false)
		if b == nil {
			return false, nil
		}
		err := pull(r.ctx, c, b)
		return l.has(b), err
	})
	run(o.deleters, "delete", func() (bool, error) {
		b := l.any(true)
		if b == nil {
			return false, nil
		}
		err := c.Delete(r.ctx, b.ref())
		if err == nil {
			l.mu.Lock()
			l.deleted = append(l.deleted, b)
			l.mu.Unlock()
		}
		return true, err
	})
	return l
}

// has reports whether a blob is not about to be deleted.
func (l *load) has(b *ringBlob) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.acked, b)
}

// any returns one of the acknowledged blobs; take: it is none any more.
func (l *load) any(take bool) *ringBlob {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.acked) == 0 || take && len(l.acked) < 10 {
		return nil
	}
	i := rand.IntN(len(l.acked))
	b := l.acked[i]
	if take {
		l.acked = slices.Delete(l.acked, i, i+1)
	}
	return b
}

// note counts how something went.
func (l *load) note(what string, err error, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest[what] = max(l.longest[what], took)
	if err == nil {
		l.counts[what]++
		return
	}
	err = fmt.Errorf("%s, %s: %w", time.Now().Format("05.000"), what, err)
	l.failed = append(l.failed, err)
	if errdefs.IsNotFound(err) {
		l.absent = append(l.absent, err)
	}
}

// end waits until all have ended what they are at.
func (l *load) end() {
	l.stop()
	l.wg.Wait()
}

// done returns how often something went well.
func (l *load) done(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[what]
}

// A ring of which all members restart, one after the other, while clients push and pull: nothing fails.
func TestRingRollingRestart(t *testing.T) {
	t.Parallel()
	r := newRing(t, 3, quick(nil))
	first := r.blobs(sized(10, 100), 256<<10)
	none(t, "pushes", each(first, 8, func(b *ringBlob) error { return push(r.ctx, r.client, b) }))
	l := r.begin(r.client, first, loadOptions{
		size: sized[int64](256<<10, 4<<20), pushers: 2, pullers: 2, pause: sized(50*time.Millisecond, 10*time.Millisecond),
	})
	for _, m := range r.ring.Members {
		pushes, pulls := l.done("push"), l.done("pull")
		must(t, m.Stop())
		r.poll(t, "pushes and pulls without "+m.Name, func() bool { return l.done("push") > pushes+5 && l.done("pull") > pulls+5 })
		must(t, r.ring.Start(r.ctx, m))
		r.poll(t, m.Name+" up", func() bool { return r.state(m, m) == origin.RingUp })
		// Whoever restarts one after the other waits until the others see that, too.
		for _, o := range r.ring.Members {
			r.poll(t, m.Name+" seen", func() bool { return r.state(o, m) == origin.RingUp })
		}
	}
	l.end()
	none(t, "pushes and pulls", l.failed)
	figure(t, "3 members restarted one after the other: %d pushes and %d pulls, %d failed; the longest push took %.1f s, pull %.1f s",
		l.done("push"), l.done("pull"), len(l.failed), l.longest["push"].Seconds(), l.longest["pull"].Seconds())
	r.whole(t)
	none(t, "pulls afterwards", each(l.acked, 8, func(b *ringBlob) error { return pull(r.ctx, r.client, b) }))
	r.exact(t, l.acked, r.ring.Members, 3)
}

// Of three members one is cut off, with some of the clients. It acknowledges nothing; nobody says of an acknowledged blob that it is not
// there; and when they are together again they agree.
func TestRingPartition(t *testing.T) {
	t.Parallel()
	r := newRing(t, 3, quick(nil))
	first := r.blobs(sized(20, 200), 256<<10)
	none(t, "pushes", each(first, 8, func(b *ringBlob) error { return push(r.ctx, r.client, b) }))
	r.whole(t)
	alone, two := r.ring.Members[0], r.ring.Members[1:]
	near := get(r.c.NewHost("near"))(t) // to the one that is alone
	few := get(origin.New(origin.Config{Origins: r.ring.Origins(), Dial: near.DialContext}))(t)
	t.Cleanup(few.Close)
	cut := func(yes bool) {
		for _, o := range two {
			must(t, errors.Join(r.c.Cut(alone.Host, o.Host, yes), r.c.Cut(near, o.Host, yes)))
		}
		must(t, r.c.Cut(r.ring.Client, alone.Host, yes))
	}
	cut(true)
	began := time.Now()
	o := loadOptions{size: 256 << 10, pushers: 2, pullers: 2, pause: 50 * time.Millisecond}
	o.deleters = 1
	minority := r.begin(few, first[:len(first)/2], o)
	majority := r.begin(r.client, first[len(first)/2:], o)
	took := sized(10*time.Second, 2*time.Minute)
	r.poll(t, "both sides at work", func() bool {
		return time.Since(began) > took && majority.done("push") > 10 && majority.done("pull") > 10 && majority.done("delete") > 2 &&
			r.state(two[0], alone) == origin.RingDown
	})
	minority.stop()
	majority.stop()
	acked := minority.done("push") + minority.done("delete")
	if acked > 0 {
		t.Errorf("the minority acknowledged %d pushes and deletions", acked)
	}
	cut(false)
	healed := time.Now()
	for _, m := range r.ring.Members {
		r.poll(t, m.Name+" up", func() bool {
			return !slices.ContainsFunc(r.ring.Members, func(o *harness.RingMember) bool { return r.state(o, m) != origin.RingUp })
		})
	}
	r.whole(t)
	within(t, "whole after a partition", time.Since(healed), 20*time.Second)
	majority.end()
	minority.end()
	r.whole(t) // after what ended meanwhile
	none(t, "said not to be there", slices.Concat(minority.absent, majority.absent))
	figure(t, "longest push, pull, deletion of the majority: %.1f s, %.1f s, %.1f s", majority.longest["push"].Seconds(),
		majority.longest["pull"].Seconds(), majority.longest["delete"].Seconds())
	figure(t, "minority: %d pushes and deletions acknowledged, %d pulls; majority: %d pushes, %d pulls, %d deletions, %d failed; "+
		"404 of an acknowledged blob: %d",
		acked, minority.done("pull"), majority.done("push"), majority.done("pull"), majority.done("delete"), len(majority.failed),
		len(minority.absent)+len(majority.absent))
	for _, e := range majority.failed[:min(5, len(majority.failed))] {
		t.Log("majority: ", e)
	}
	all := slices.Concat(minority.acked, majority.acked)
	none(t, "pulls afterwards", each(all, 8, func(b *ringBlob) error { return pull(r.ctx, r.client, b) }))
	for _, m := range r.ring.Members {
		none(t, "deleted, and not gone", each(majority.deleted, 8, func(b *ringBlob) error {
			if _, err := m.API().Stat(r.ctx, b.ref()); !errdefs.IsNotFound(err) {
				return fmt.Errorf("%s: %w", m.Name, err)
			}
			return nil
		}))
	}
}
