package swarm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// crowd is an uplink at which pieces wait for peers a, b, c …, in order; a letter in upper
// case is of another zone, one with a question mark was chosen here and is not begun.
func crowd(waiting string) (*uplink, map[string]*link) {
	k := &uplink{meter: meter{rate: 100 * mib, since: never}}
	peers := make(map[string]*link)
	for _, w := range strings.Fields(waiting) {
		name := strings.TrimSuffix(w, "?")
		l := peers[name]
		if l == nil {
			c := &conn{far: strings.ToUpper(name) == name}
			l = &link{c: c}
			c.swarms.links = []*link{l}
			peers[name] = l
		}
		u := &upload{l: l, i: len(k.uploads), any: name != w, size: 1000}
		k.add(u)
		k.request(u, span{0, 1000}, 0)
	}
	return k, peers
}

// TestAdmission decides on another piece for a peer of a crowd.
func TestAdmission(t *testing.T) {
	const all = 1 << 30
	for _, tt := range []struct {
		name    string
		waiting string // for whom
		left    int    // bytes in all, at 100 MiB/s
		peer    string
		any     bool
		want    bool
	}{
		{"nobody waits", "", 0, "a", false, true},
		{"nobody else waits", "a a a a a a a a a a", all, "a", false, true},
		{"room in the queue", "b c d", 40 * mib, "a", false, true},
		{"the queue is full", "b c d e", 40 * mib, "a", false, false},
		{"full, but quickly gone", "b c d e f", mib / 4, "a", false, true},
		{"not quite as quickly", "b c d e f", mib / 2, "a", false, false},
		{"too long to wait for the first block", "b c", 51 * mib, "a", false, false},
		{"as long as may be", "b c", 50 * mib, "a", false, true},

		{"half of what waits is its own", "a a b b", mib / 4, "a", false, true},
		{"half and one more", "a a a b b", mib / 4, "a", false, true},
		{"no room is left for others", "a a a b", mib / 4, "a", false, false},
		{"nor in a longer queue", "a a a a b b b", mib / 4, "a", false, true},
		{"nor there", "a a a a a b b b", mib / 4, "a", false, false},
		{"one is alone against one", "a b", mib / 4, "a", false, true},
		{"two against one", "a a b", mib / 4, "a", false, true},

		{"a choice for another zone", "b c", mib / 4, "A", true, false},
		{"a piece for another zone", "b c", mib / 4, "A", false, true},
		{"a choice, all are of others", "B C", mib / 4, "A", true, true},
		{"a choice for our own zone", "B c", mib / 4, "a", true, true},

		{"a second choice while others wait", "a? b", mib / 4, "a", true, false},
		{"a piece beside a choice", "a? b", mib / 4, "a", false, true},
		{"a choice beside a piece", "a b", mib / 4, "a", true, true},
		{"a second choice while nobody waits", "a?", mib / 4, "a", true, true},
	} {
		k, peers := crowd(tt.waiting)
		k.left = int64(tt.left)
		l := peers[tt.peer]
		if l == nil {
			l = &link{c: &conn{far: strings.ToUpper(tt.peer) == tt.peer}}
			l.c.swarms.links = []*link{l}
		}
		if got := k.admit(l, tt.any, 4); got != tt.want {
			t.Errorf("%s: admitted %v", tt.name, got)
		}
	}
}

// Whatever waits, nothing is admitted beyond the bound; and what is begun does not count as
// a choice that waits; and an uplink that runs dry takes everything.
func TestAdmissionAtTheEdges(t *testing.T) {
	k, peers := crowd(strings.Repeat("a ", maxUploads-1))
	if !k.admit(peers["a"], false, 4) {
		t.Error("one below the bound is refused")
	}
	if k, peers = crowd(strings.Repeat("a ", maxUploads)); k.admit(peers["a"], false, 4) {
		t.Error("one beyond the bound is admitted")
	}
	k, peers = crowd("a? b")
	k.take(peers["a"].uploads[0], 0)
	if !k.admit(peers["a"], true, 4) {
		t.Error("a choice is refused although the one before it has begun")
	}
	k, _ = crowd("b b b b b b")
	l := &link{c: &conn{}}
	for _, tt := range []struct {
		name            string
		pending, active int
		want            bool
	}{
		{"runs dry", 0, k.driverMax() - 1, true},
		{"has given the driver enough", 0, k.driverMax(), false},
		{"has more for the driver", 1, 0, false},
	} {
		k.left, k.pending, k.active = 1<<30, tt.pending, tt.active
		if got := k.admit(l, false, 4); got != tt.want {
			t.Errorf("an uplink that %s: admitted %v", tt.name, got)
		}
	}
}

func TestUplinkRate(t *testing.T) {
	for _, tt := range []struct {
		measured, limit float64
		rate            float64
		driver          int
	}{
		{0, 0, guessedRate, 2},
		{0, 1000e6, guessedRate, 2},
		{300 * mib, 0, 300 * mib, 4},
		{300 * mib, 200 * mib, 200 * mib, 3},
		{10_000 * mib, 0, 10_000 * mib, 8},
		{5, 0, 1024, 2},
	} {
		k := uplink{meter: meter{rate: tt.measured}, limit: bucket{rate: tt.limit}}
		if got := k.rate(); got != tt.rate || k.driverMax() != tt.driver {
			t.Errorf("measured %.0f, limit %.0f: rate %.0f, %d blocks in the driver; want %.0f, %d",
				tt.measured, tt.limit, got, k.driverMax(), tt.rate, tt.driver)
		}
	}
}

func TestUplinkLoad(t *testing.T) {
	for pending, want := range map[int]uint16{0: 0, 7: 7, 65_535: 65_535, 70_000: 65_535} {
		if got := (&uplink{pending: pending}).load(); got != want {
			t.Errorf("%d blocks wait, %d are reported, want %d", pending, got, want)
		}
	}
}

// The refused come back one after the other, and a peer that is told twice, at one time.
func TestRetryAt(t *testing.T) {
	k := &uplink{meter: meter{rate: mib}, left: mib}
	a, b, c := &outbox{}, &outbox{}, &outbox{}
	const ms = time.Millisecond
	for _, tt := range []struct {
		o         *outbox
		now, want time.Duration
	}{
		{a, 0, 250 * ms}, {b, 0, 281250 * time.Microsecond}, {a, 100 * ms, 250 * ms},
		{c, 300 * ms, 550 * ms}, {a, 250 * ms, 581250 * time.Microsecond},
	} {
		if got := k.retryAt(tt.o, mib/8, tt.now); got != tt.want {
			t.Errorf("refused at %v, it is to come back at %v, want %v", tt.now, got, tt.want)
		}
	}
	k = &uplink{meter: meter{rate: mib}, left: 100 * mib}
	if got := k.retryAt(&outbox{}, mib, 0); got != maxRetry {
		t.Errorf("to come back after %v, want %v at most", got, maxRetry)
	}
}

// The first admitted is served first, as far as its peer takes what it is sent.
func TestNextUpload(t *testing.T) {
	k, peers := crowd("a a b c")
	conns := []*conn{peers["a"].c, peers["b"].c, peers["c"].c}
	got := ""
	for _, step := range []struct {
		now  time.Duration
		sent string // whose oldest block has left before
	}{{0, ""}, {0, ""}, {0, ""}, {0, "a"}, {stuckAfter - 1, ""}, {stuckAfter, ""}, {stuckAfter, "a"}} {
		if step.sent != "" {
			k.sent(&peers[step.sent].c.out, 1000, step.now)
		}
		u := k.next(conns, step.now)
		if u == nil {
			got += " -"
			continue
		}
		got += fmt.Sprint(" ", u.i)
		k.take(u, step.now)
	}
	// a has both places of the driver; then one is b's; when a is stuck, c gets its place.
	if want := " 0 1 - 2 - 3 -"; got != want {
		t.Errorf("served%s, want%s", got, want)
	}
	if k.pending != 0 || k.left != 0 {
		t.Errorf("%d blocks and %d bytes are left", k.pending, k.left)
	}
}

// Blobs share the uplink, whoever asked for them and how often; what a blob was not asked for
// it is not owed later.
func TestBlobsShare(t *testing.T) {
	k, peers := crowd("a b c d e f")
	x, y := &blob{}, &blob{}
	ask := func(l *link, b *blob, pieces int) {
		l.blob = b
		for range pieces {
			u := &upload{l: l, size: 1000}
			k.add(u)
			k.request(u, span{0, 1000}, 0)
		}
	}
	serve := func(steps int) (got string) {
		for range steps {
			u := k.next(nil, 0)
			k.take(u, 0)
			k.sent(&u.l.c.out, 1000, 0)
			k.remove(u)
			got += map[*blob]string{x: "x", y: "y"}[u.b]
		}
		return got
	}
	for _, u := range slices.Clone(k.uploads) {
		k.remove(u)
	}
	ask(peers["a"], x, 6)
	ask(peers["b"], x, 6)
	if got := serve(6); got != "xxxxxx" {
		t.Errorf("served %s of one blob", got)
	}
	other := func(b *blob) *link { return &link{c: peers["c"].c, blob: b} }
	if k.left = 1 << 30; !k.admit(other(y), false, 4) || k.admit(other(x), false, 4) {
		t.Error("a full queue takes more of its blob, or nothing of another")
	}
	ask(peers["c"], y, ownBlobs-1)
	if !k.admit(other(&blob{}), false, 4) {
		t.Error("a full queue has no room for a third blob")
	}
	if k.meter.rate = 2.9 * piece.MaxBlock / maxWait.Seconds(); k.admit(other(&blob{}), false, 4) {
		t.Error("a third blob is let in though its turn would not come soon")
	}
	if k.meter.rate = 100 * mib; k.admit(&link{c: peers["b"].c, blob: &blob{}}, false, 4) {
		t.Error("a connection that has enough waiting gets room for another blob")
	}
	if got := serve(8); got != "yxyxyxxx" {
		t.Errorf("served %s, want the blobs in turn", got)
	}
}

// A receiver that is stuck gets no more itself.
func TestStuckGetsNoMore(t *testing.T) {
	k, peers := crowd("a a")
	k.take(k.next(nil, 0), 0)
	if u := k.next([]*conn{peers["a"].c}, stuckAfter); u != nil {
		t.Errorf("a stuck receiver is sent piece %d", u.i)
	}
	if u := k.next([]*conn{peers["a"].c}, stuckAfter-1); u == nil {
		t.Error("it is stuck too early")
	}
}

func TestUploadEnds(t *testing.T) {
	k, peers := crowd("a b")
	u := k.uploads[0]
	k.request(u, span{0, 10}, time.Second)
	if u.idle(time.Hour) {
		t.Error("idle with requests")
	}
	k.take(u, time.Second)
	k.take(u, 2*time.Second)
	if u.idle(time.Hour) || u.over() {
		t.Error("over while the driver has some of it")
	}
	k.sent(&u.l.c.out, 1000, 2*time.Second)
	k.sent(&u.l.c.out, 10, 2*time.Second)
	if half := (&upload{size: 10, sent: 9}); half.over() || half.left() != 1 {
		t.Errorf("over with %d bytes left", half.left())
	}
	if !(&upload{size: 10, sent: 10}).over() {
		t.Error("not over with every byte sent")
	}
	if !u.over() || u.idle(2*time.Second+uploadIdle) || !u.idle(2*time.Second+uploadIdle+1) {
		t.Errorf("over: %v; idle after %v: %v", u.over(), uploadIdle, u.idle(2*time.Second+uploadIdle))
	}
	if !k.remove(u) || k.remove(u) || len(k.uploads) != 1 || len(peers["a"].uploads) != 0 {
		t.Errorf("%d uploads are left", len(k.uploads))
	}
	if v := k.uploads[0]; !k.remove(v) || k.pending != 0 || k.left != 0 || v.l.c.out.requests != 0 {
		t.Errorf("%d blocks and %d bytes are left, %d requests", k.pending, k.left, v.l.c.out.requests)
	}
}

// A seeder that chooses sends what it has sent least, beginning anywhere.
func TestLeastSent(t *testing.T) {
	var s sendCounts
	odd := func(i int) bool { return i%2 == 1 }
	got := ""
	for _, start := range []int{4, 4, 4, 4, 0} {
		i := s.least(6, start, odd)
		s.add(6, i)
		got += fmt.Sprint(" ", i)
	}
	if want := " 5 1 3 5 1"; got != want {
		t.Errorf("chosen%s, want%s", got, want)
	}
	s.takeBack(3)
	s.takeBack(3)
	s.takeBack(3)
	if i := s.least(6, 4, odd); i != 3 {
		t.Errorf("piece %d is chosen, want 3, of which nothing was sent", i)
	}
	if i := s.least(6, 0, func(int) bool { return false }); i != -1 {
		t.Errorf("piece %d is chosen of none", i)
	}
	if i := (&sendCounts{}).least(piece.MaxSize/piece.MaxLength, 7, func(int) bool { return true }); i != 7 {
		t.Errorf("piece %d is chosen first, want the first tried", i)
	}
}

// A seeder that chooses sends the first pieces first once it knows that it is alone, and any
// if it is not.
func TestSendCountsOrder(t *testing.T) {
	const n = 1000
	rng := rand.New(rand.NewPCG(1, 1))
	var s sendCounts
	send := func() int {
		i := s.least(n, s.first(n, rng), func(int) bool { return true })
		s.add(n, i)
		return i
	}
	inOrder := true
	for k := range probes + 10*amongFirst {
		i := send()
		inOrder = inOrder && i == k
	}
	if inOrder {
		t.Error("the first pieces are sent in order: two seeders send the same")
	}
	if s.times[0] != 1 || s.front < probes {
		t.Fatalf("sent up to piece %d without a gap", s.front)
	}
	last := s.front
	for range 100 {
		i := send()
		if i < last {
			t.Fatalf("piece %d after %d", i, last)
		}
		last = i
	}
	s.takeBack(70) // not sent after all
	if i := send(); i != 70 {
		t.Errorf("piece %d, not the first that was not sent", i)
	}
	for i := range manySources {
		s.elsewhere(n, i) // what it sent itself
	}
	if s.foreign != 0 {
		t.Errorf("%d pieces of others, of its own", s.foreign)
	}
	for i := range manySources {
		s.elsewhere(n, 900+i)
	}
	far := 0
	for range 100 {
		i := send()
		if i >= 900 && i < 900+manySources {
			t.Errorf("piece %d, which others had, before those that nobody has", i)
		}
		if i > last+100 {
			far++
		}
	}
	if far == 0 {
		t.Error("still in order, though there is another source")
	}
}
