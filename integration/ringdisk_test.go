package integration

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
)

// One of three disks of a member dies under pushes and pulls. The member stays, nothing fails, and what was there is copied to its other
// disks. Then it gets an empty disk instead, which fills by use.
func TestRingLosesDisk(t *testing.T) {
	t.Parallel()
	ctx, c := newCluster(t)
	r := &rings{ctx: ctx, c: c, ring: get(c.NewRing(harness.RingOptions{Members: 3, Rate: rate, Keys: quick(nil)}))(t)}
	m := r.ring.Members[0]
	n, size, room := sized(60, 500), int64(128<<10), int64(256<<20)
	for range 3 {
		must(t, m.Disk(ctx, room))
	}
	r.start(t)
	blobs := r.pushed(t, n, size)
	dead := m.Roots()[1]
	there := 0
	for _, b := range blobs {
		if hasAt(m, dead, b) {
			there++
		}
	}
	if there < n/5 {
		t.Fatalf("the disk has %d of %d blobs", there, n)
	}
	l := r.begin(r.client, blobs, loadOptions{size: size, pushers: 2, pullers: 3, pause: sized(100*time.Millisecond, 20*time.Millisecond)})
	used := func(want float64) func() bool {
		return func() bool { return get(m.Metric(ctx, "capelin_origin_disk_up", "disk="+dead))(t) == want }
	}
	r.poll(t, "some load", func() bool { return l.done("push") > 3 && l.done("pull") > 3 })
	must(t, m.FailDisk(m.Disks[1]))
	died := time.Now()
	r.poll(t, "the disk is found out", used(0))
	found := time.Since(died)
	pulls := l.done("pull")
	r.poll(t, "pulls go on", func() bool { return l.done("pull") > pulls+20 })
	l.end()
	none(t, "pushes and pulls", l.failed)
	out, err := r.capelin("origin", "ring", "--origin", m.Listen)
	if err == nil && !strings.Contains(out, "the ring is whole") || !strings.Contains(out, "disk "+dead+" of "+m.Name+" is not used") {
		t.Errorf("it says %v:\n%s", err, out)
	}
	r.whole(t)
	figure(t, "%d blobs of %d bytes on a disk of three that died, found out after %.1f s, copied after %.1f s; "+
		"%d pushes and %d pulls meanwhile, %d failed; the longest pull took %.1f s", there, size, found.Seconds(), time.Since(died).Seconds(),
		l.done("push"), l.done("pull"), len(l.failed), l.longest["pull"].Seconds())
	for _, b := range l.acked {
		if !hasAt(m, m.Roots()[0], b) && !hasAt(m, m.Roots()[2], b) {
			t.Errorf("%s is not on the disks that are left", b.digest)
		}
	}
	none(t, "pulls afterwards", each(l.acked, 8, func(b *ringBlob) error { return pull(ctx, get(r.ring.Open(m))(t), b) }))
	if ready, err := m.HTTP(ctx, "http://"+m.Addr+":7482/readyz"); err != nil {
		t.Errorf("it is not ready: %v: %s", err, ready)
	}

	must(t, m.Stop())
	must(t, m.Unmount(m.Disks[1]))
	must(t, m.NewDisk(ctx, m.Disks[1], room))
	must(t, r.ring.Start(ctx, m))
	r.whole(t)
	if !used(1)() {
		t.Errorf("the new disk is not used:\n%s", m.Tail(20))
	}
	more := r.pushed(t, n/2, size)
	fresh := len(more) - len(slices.DeleteFunc(slices.Clone(more), func(b *ringBlob) bool { return hasAt(m, dead, b) }))
	figure(t, "of %d blobs that were pushed then the new disk has %d", len(more), fresh)
	if fresh < len(more)/5 {
		t.Errorf("the new disk has %d of %d new blobs", fresh, len(more))
	}
	none(t, "pulls at last", each(slices.Concat(l.acked, more), 8, func(b *ringBlob) error { return pull(ctx, r.client, b) }))
}
