package mirror

import (
	"bytes"
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/ring"
)

// world is a ring of members with disks, the clients of a push protocol, and a network
// between them that can do everything that networks do. Time is virtual; a byte in it stands
// for a MiB.
type world struct {
	t        *testing.T
	seed     uint64
	rng      *rand.Rand
	now      time.Time
	queue    queue
	seq      int
	trace    uint64 // of everything that machines did
	min      int
	slow     map[string]time.Duration // added to each message of a member
	slowSync map[string]time.Duration // added to each fsync of a member
	cut      map[[2]string]bool
	loss     float64 // of a message
	broken   float64 // of an fsync that fails
	chance   float64 // of a crash with each message, while crashes are left
	crashes  int
	reset    bool // crashed members' connections are refused, rather than silent
	nodes    []*node
	clients  []*client
	want     map[digest.Digest][]byte
	calls    []*call
	calm     bool              // nothing is lost, and nobody freezes: no client is refused anything
	content  map[string][]byte // by upload
	asked    int               // requests of members to members
	notes    []string
}

const (
	mib     = 20 // bits
	window  = 8  // bytes that are under way on a connection
	patient = 30 * time.Second
)

var errRefused = errors.New("connection refused")

type timer struct {
	at  time.Time
	seq int
	do  func()
}

type queue []timer

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].seq < q[j].seq
	}
	return q[i].at.Before(q[j].at)
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(timer)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func newWorld(t *testing.T, seed uint64, members, min int) *world {
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1e9, 0), min: min, reset: true,
		slow: map[string]time.Duration{}, cut: map[[2]string]bool{}, want: map[digest.Digest][]byte{}, content: map[string][]byte{},
	}
	for i := range members {
		n := &node{
			w: w, Member: ring.Member{Name: string(rune('a' + i)), Zone: string(rune('x' + i%2))}, alive: true,
			files: map[string][]byte{}, blobs: map[digest.Digest][]byte{}, confirmed: map[digest.Digest]time.Time{},
		}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		n.boot()
	}
	return w
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, s := range w.notes {
		w.t.Log(s)
	}
	w.t.Fatalf("seed %d, %v: %s", w.seed, w.now.Sub(time.Unix(1e9, 0)), fmt.Sprintf(format, args...))
}

// note keeps the latest lines of a story, for a failure.
func (w *world) note(format string, args ...any) {
	if !*verbose {
		return
	}
	w.notes = append(w.notes, fmt.Sprintf("%10v %s", w.now.Sub(time.Unix(1e9, 0)), fmt.Sprintf(format, args...)))
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, timer{w.now.Add(d), w.seq, do})
}

// run lets the world go on until done says so; false: there was nothing left to happen, or
// the time was over.
func (w *world) run(most time.Duration, done func() bool) bool {
	end := w.now.Add(most)
	for len(w.queue) > 0 {
		if done() {
			return true
		}
		next := heap.Pop(&w.queue).(timer)
		if next.at.After(end) {
			heap.Push(&w.queue, next)
			w.now = end
			return done()
		}
		w.now = next.at
		next.do()
	}
	return done()
}

// link names the way between two members.
func link(a, b *node) [2]string { return [2]string{min(a.Name, b.Name), max(a.Name, b.Name)} }

// between returns a duration of from to to milliseconds.
func (w *world) between(from, to int) time.Duration {
	return time.Duration(from*1000+w.rng.IntN((to-from)*1000)) * time.Microsecond
}

func (w *world) node(name string) *node {
	return w.nodes[slices.IndexFunc(w.nodes, func(n *node) bool { return n.Name == name })]
}

// deliver brings a message of c to the node, or to the client if that is nil; it may be lost,
// and then the connection is.
func (w *world) deliver(c *call, to *node, do func()) {
	other := c.from
	if to != nil && to == c.from {
		other = c.to
	}
	d := w.between(1, 15)
	for _, n := range []*node{to, other} {
		if n != nil {
			d += w.slow[n.Name]
		}
	}
	if c.stuck || to != nil && other != nil && w.cut[link(to, other)] || w.rng.Float64() < w.loss {
		c.stuck = true
		return
	}
	at := w.now.Add(d)
	if at.Before(c.latest) { // connections keep the order
		at = c.latest
	}
	c.latest = at
	if to == nil {
		w.after(at.Sub(w.now), do)
		return
	}
	if w.crashes > 0 && w.rng.Float64() < w.chance {
		w.crashes--
		n := []*node{to, other}[w.rng.IntN(2)]
		if n == nil {
			n = to
		}
		d := w.between(100, 20000)
		w.after(0, func() { n.crash(d) })
	}
	epoch := to.epoch
	w.after(at.Sub(w.now), func() {
		switch {
		case !to.alive && w.reset && to == c.to:
			c.finish(reply{Answer: Answer{Code: Unavailable, Err: errRefused}})
		case to.epoch == epoch:
			to.do(do)
		}
	})
}

// call is one HTTP request with its answer.
type call struct {
	w      *world
	from   *node // nil: a client
	to     *node
	req    Request
	ask    bool // HEAD, of a member or a client
	upload string
	key    string // of Start
	whole  []byte // of Start, what will come
	body   []byte
	sent   int
	acked  int
	got    int
	heard  time.Time // the receiver's last byte
	latest time.Time
	stuck  bool
	over   bool // for the caller
	served bool // for the other side
	moved  func()
	reply  func(reply)
}

type reply struct {
	Answer
	stands   Stands
	upload   string
	redirect string
}

func (w *world) send(c *call) *call {
	c.w = w
	c.req.ID = uint64(w.seq + 1)
	w.seq++
	if c.from != nil {
		c.req.From = c.from.Name
		w.asked++
	}
	w.calls = append(slices.DeleteFunc(w.calls, func(c *call) bool { return c.over && c.served }), c)
	w.deliver(c, c.to, func() { c.to.receive(c) })
	return c
}

// finish brings an answer to the caller, who is there.
func (c *call) finish(r reply) {
	if c.over {
		return
	}
	c.over = true
	if c.from != nil {
		c.from.do(func() { c.reply(r) })
	} else {
		c.reply(r)
	}
}

// answer is what the other side says.
func (c *call) answer(r reply) {
	if c.served {
		c.w.fail("two answers to a request %+v of upload %s", c.req, c.upload)
	}
	c.served = true
	c.w.deliver(c, c.from, func() { c.finish(r) })
}

// cancel is the caller's.
func (c *call) cancel() {
	if c.over {
		return
	}
	c.over = true
	c.w.deliver(c, c.to, func() { c.to.broke(c) })
}

// pump sends what the window lets through.
func (c *call) pump() {
	for !c.over && c.sent < len(c.body) && c.sent-c.acked < window {
		n := min(1+c.w.rng.IntN(3), len(c.body)-c.sent, window-(c.sent-c.acked))
		part := c.body[c.sent : c.sent+n]
		c.sent += n
		c.w.deliver(c, c.to, func() { c.to.data(c, part) })
	}
}

// node is a member: a process with a disk.
type node struct {
	w *world
	ring.Member
	alive bool
	thaw  time.Time
	epoch int
	seen  map[string]time.Time
	views []Member
	ups   map[string]*local
	ticks int
	wiped time.Time
	files map[string][]byte
	blobs map[digest.Digest][]byte // synced
	// confirmed is when the disk last said that it has a blob.
	confirmed map[digest.Digest]time.Time
}

// local is an upload at a member.
type local struct {
	id       string
	u        *Upload
	key      string
	due      time.Time
	open     *call // whose body is being written
	requests map[uint64]*call
	puts     map[uint64]time.Time // when clients' commits came
	feeds    map[uint64]*call
	blob     digest.Digest
}

// do lets the process do something: not when it has died, later when it is frozen.
func (n *node) do(f func()) {
	switch {
	case !n.alive:
	case n.w.now.Before(n.thaw):
		epoch := n.epoch
		n.w.after(n.thaw.Sub(n.w.now), func() {
			if n.epoch == epoch {
				n.do(f)
			}
		})
	default:
		f()
	}
}

// boot starts the process with what is on the disk.
func (n *node) boot() {
	n.alive, n.ups, n.seen, n.views = true, map[string]*local{}, map[string]time.Time{}, nil
	for _, o := range n.w.nodes {
		n.seen[o.Name] = n.w.now
	}
	n.look()
	ids := make([]string, 0, len(n.files))
	for id := range n.files {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		n.open(id, id)
	}
	n.probe(n.epoch)
}

// probe is the ring's: who answers.
func (n *node) probe(epoch int) {
	every := time.Second
	if n.w.finished() {
		every = time.Hour
	}
	n.w.after(every, func() {
		if n.epoch != epoch {
			return
		}
		n.do(func() {
			n.look()
			n.probe(epoch)
		})
	})
}

func (n *node) look() {
	var all []Member
	for _, o := range n.w.nodes {
		if o.alive && !n.w.now.Before(o.thaw) && !n.w.cut[link(n, o)] {
			n.seen[o.Name] = n.w.now
		}
		all = append(all, Member{o.Member, n.w.now.Sub(n.seen[o.Name]) < 10*time.Second})
	}
	if slices.Equal(all, n.views) {
		return
	}
	n.views = all
	for _, l := range n.locals() {
		n.step(l, EvMembers{all})
	}
}

func (n *node) locals() []*local {
	all := make([]*local, 0, len(n.ups))
	for _, l := range n.ups {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b *local) int { return cmp.Compare(a.id, b.id) })
	return all
}

// crash ends the process. It comes back after a while.
func (n *node) crash(back time.Duration) {
	w := n.w
	if !n.alive {
		return
	}
	w.note("%s crashes for %v", n.Name, back)
	n.alive = false
	n.epoch++
	for _, c := range slices.Clone(w.calls) {
		switch {
		case c.to == n && !c.over && w.reset:
			c.served = true
			w.deliver(c, c.from, func() { c.finish(reply{Answer: Answer{Code: Unavailable, Err: errRefused}}) })
		case c.to == n:
			c.served, c.stuck = true, true
		case c.from == n:
			c.over = true
			w.deliver(c, c.to, func() { c.to.broke(c) })
		}
	}
	w.after(back, func() {
		w.note("%s is back", n.Name)
		n.boot()
	})
}

// power is a crash that takes what was not synced.
func (n *node) power(back time.Duration) {
	if n.alive {
		n.crash(back)
		clear(n.files)
	}
}

// wipe loses the disk.
func (n *node) wipe(back time.Duration) {
	if !n.alive {
		return
	}
	n.crash(back)
	clear(n.files)
	clear(n.blobs)
	n.wiped = n.w.now
}

// open makes an upload's machine.
func (n *node) open(id, key string) *local {
	l := &local{
		id: id, key: key, requests: map[uint64]*call{}, puts: map[uint64]time.Time{}, feeds: map[uint64]*call{},
	}
	cfg := Config{Self: n.Member, Replicas: 3, MinReplicas: n.w.min, Expire: 24 * time.Hour, Key: key}
	l.u = New(cfg, int64(len(n.files[id]))<<mib, n.w.now)
	n.ups[id] = l
	if n.files[id] == nil {
		n.files[id] = []byte{}
	}
	n.step(l, EvMembers{n.views})
	return l
}

// receive takes a request.
func (n *node) receive(c *call) {
	l := n.ups[c.upload]
	switch {
	case c.ask && c.from != nil:
		r := reply{Answer: Answer{Code: Done}}
		if l != nil {
			r.stands = l.u.Stands(c.from.Name)
		}
		c.answer(r)
	case l == nil && c.req.Kind == Start:
		n.start(c)
	case l == nil && c.from != nil:
		c.answer(reply{Answer: Answer{Code: Unknown}})
	case l == nil:
		n.search(c)
	case c.ask:
		c.answer(reply{Answer: Answer{Code: Done, Offset: l.u.Stands("").Offset}})
	default:
		l.requests[c.req.ID] = c
		if c.req.Kind == Put && c.from == nil {
			l.puts[c.req.ID] = n.w.now
		}
		n.step(l, EvRequest{c.req})
	}
}

func (n *node) start(c *call) {
	if c.from == nil {
		n.ticks++
		c.upload = fmt.Sprintf("%s%d.%d", n.Name, n.epoch, n.ticks)
		n.w.content[c.upload] = c.whole
	}
	l := n.open(c.upload, cmp.Or(c.key, c.upload))
	l.requests[c.req.ID] = c
	n.step(l, EvRequest{c.req})
}

// search asks all others for an upload, for a client.
func (n *node) search(c *call) {
	var others []Member
	for _, m := range n.views {
		if m.Name != n.Name {
			others = append(others, m)
		}
	}
	s := NewSearch(others, n.w.now)
	answered := false
	look := func() {
		at, code := s.Result(n.w.now)
		if answered || code == Later {
			return
		}
		answered = true
		c.answer(reply{Answer: Answer{Code: code}, redirect: at})
	}
	for _, m := range others {
		if s.Asks()[m.Name] {
			n.w.send(&call{from: n, to: n.w.node(m.Name), ask: true, upload: c.upload, reply: func(r reply) {
				s.Answer(m.Name, r.stands, r.Code == Done)
				look()
			}})
		}
	}
	look()
	epoch := n.epoch
	n.w.after(stall, func() {
		if n.epoch == epoch {
			n.do(look)
		}
	})
}

// data are bytes of a body.
func (n *node) data(c *call, part []byte) {
	l := n.ups[c.upload]
	if l == nil || l.open != c {
		return
	}
	n.files[l.id] = append(n.files[l.id], part...)
	if !bytes.HasPrefix(n.w.content[l.id], n.files[l.id]) {
		n.w.fail("%s has %d bytes of %s that are not its beginning", n.Name, len(n.files[l.id]), l.id)
	}
	c.got += len(part)
	c.heard = n.w.now
	n.step(l, EvWrote{int64(len(n.files[l.id])) << mib})
	n.w.deliver(c, c.from, func() {
		if c.acked += len(part); c.moved != nil && !c.over {
			c.moved()
		}
		c.pump()
	})
	if c.got == len(c.body) {
		n.end(l, c, false)
	}
}

// end ends the body that is being written.
func (n *node) end(l *local, c *call, broken bool) {
	if l.open == c {
		l.open = nil
		n.step(l, EvAppended{Size: int64(len(n.files[l.id])) << mib, Broken: broken})
	}
}

// broke: the caller is not there any more.
func (n *node) broke(c *call) {
	if l := n.ups[c.upload]; l != nil && l.open == c {
		n.end(l, c, true)
	}
}

// step gives a machine an event and does what it says.
func (n *node) step(l *local, ev Event) {
	if n.ups[l.id] != l {
		return
	}
	acts := slices.Clone(l.u.Step(n.w.now, ev))
	if most := n.w.min - 1; len(l.u.feeders) > most {
		n.w.fail("%s feeds %d mirrors, not %d", n.Name, len(l.u.feeders), most)
	}
	if len(acts) > 0 {
		n.w.note("%s %s %T%v -> %+v", n.Name, l.id, ev, ev, acts)
	}
	for _, a := range acts {
		n.w.trace = n.w.trace*1099511628211 + uint64(n.w.now.UnixNano())
		n.perform(l, a)
	}
	at := l.u.Deadline()
	if at.IsZero() || at.Equal(l.due) && at.After(n.w.now) {
		return
	}
	l.due = at
	epoch := n.epoch
	n.w.after(max(at.Sub(n.w.now), time.Microsecond), func() {
		if n.epoch == epoch && l.due.Equal(at) {
			n.do(func() {
				l.due = time.Time{}
				n.step(l, EvTick{})
			})
		}
	})
}

// later is something that the disk does, for a while.
func (n *node) later(l *local, d time.Duration, do func()) {
	epoch := n.epoch
	n.w.after(d, func() {
		if n.epoch == epoch {
			n.do(func() {
				if n.ups[l.id] == l {
					do()
				}
			})
		}
	})
}

func (n *node) perform(l *local, a Action) {
	switch a := a.(type) {
	case ActReply:
		n.reply(l, a)
	case ActAccept:
		c := l.requests[a.ID]
		if l.open != nil {
			n.w.fail("two bodies are written to one upload")
		}
		l.open, c.heard = c, n.w.now
		n.watch(l, c)
		if len(c.body) == 0 {
			n.later(l, 0, func() { n.end(l, c, false) })
		}
		n.w.deliver(c, c.from, c.pump) // 100 Continue
	case ActStop:
		c := l.requests[a.ID]
		n.later(l, n.w.between(0, 3), func() { n.end(l, c, true) })
	case ActVerify:
		n.later(l, n.w.between(0, 5), func() { n.step(l, EvVerified{n.verify(l, a.Digest)}) })
	case ActCommit:
		n.later(l, n.w.between(1, 100)+n.w.slowSync[n.Name], func() { n.step(l, EvCommitted{n.commit(l, a.Digest)}) })
	case ActStart:
		n.feed(l, a.Call, &call{req: Request{Kind: Start}, key: l.key})
	case ActFeed:
		body := n.bytes(l)
		if a.To-a.Off > Chunk || a.To <= a.Off {
			n.w.fail("%d bytes at once", a.To-a.Off)
		}
		n.feed(l, a.Call, &call{req: Request{Kind: Append, Off: a.Off}, body: body[a.Off>>mib : a.To>>mib]})
	case ActConfirm:
		n.feed(l, a.Call, &call{req: Request{Kind: Put, Off: a.Size, Digest: a.Digest}})
	case ActDrop:
		if c := l.feeds[a.Feeder]; c != nil {
			c.cancel()
		}
	case ActErase:
		n.w.send(&call{from: n, to: n.w.node(a.Member), upload: l.id, req: Request{Kind: Delete, Term: a.Term}, reply: func(reply) {}})
	case ActAsk:
		n.w.send(&call{from: n, to: n.w.node(a.Member), upload: l.id, ask: true, reply: func(r reply) {
			if r.Code == Done {
				n.step(l, EvStands{a.Member, r.stands})
			}
		}})
	case ActForget:
		delete(n.ups, l.id)
		delete(n.files, l.id)
	}
}

// watch ends a body that brings nothing.
func (n *node) watch(l *local, c *call) {
	heard := c.heard
	n.later(l, patient, func() {
		switch {
		case l.open != c:
		case c.heard.Equal(heard):
			n.end(l, c, true)
		default:
			n.watch(l, c)
		}
	})
}

func (n *node) feed(l *local, to Call, c *call) {
	if old := l.feeds[to.Feeder]; old != nil && !old.over {
		n.w.fail("%s asks a mirror twice at once", n.Name)
	}
	c.from, c.to, c.upload, c.req.Term = n, n.w.node(to.Member), l.id, to.Term
	c.moved = func() { n.step(l, EvMoved{to.Feeder}) }
	c.reply = func(r reply) { n.step(l, EvAnswer{to.Feeder, r.Answer}) }
	l.feeds[to.Feeder] = n.w.send(c)
}

// bytes returns what an upload has.
func (n *node) bytes(l *local) []byte {
	if l.blob != "" {
		return n.blobs[l.blob]
	}
	return n.files[l.id]
}

func (n *node) verify(l *local, d digest.Digest) Result {
	if !bytes.Equal(n.bytes(l), n.w.want[d]) {
		return Result{d, WrongDigest, errors.New("other bytes")}
	}
	return Result{d, Done, nil}
}

func (n *node) commit(l *local, d digest.Digest) Result {
	b := n.bytes(l)
	switch {
	case l.blob == "" && n.w.rng.Float64() < n.w.broken:
		delete(n.files, l.id)
		return Result{d, Unknown, errors.New("fsync: input/output error")}
	case n.w.rng.Float64() < n.w.broken:
		return Result{d, Unavailable, errors.New("no space")}
	}
	if !bytes.Equal(b, n.w.want[d]) {
		n.w.fail("%s makes visible what is not whole: %d of %d bytes", n.Name, len(b), len(n.w.want[d]))
	}
	l.blob, n.blobs[d], n.confirmed[d] = d, b, n.w.now
	delete(n.files, l.id)
	return Result{d, Done, nil}
}

// reply answers a request; what it promises is checked here.
func (n *node) reply(l *local, a ActReply) {
	c := l.requests[a.ID]
	delete(l.requests, a.ID)
	if came, ok := l.puts[a.ID]; ok && a.Code == Done {
		d, copies := c.req.Digest, 0
		for _, o := range n.w.nodes {
			if at, ok := o.confirmed[d]; ok && !at.Before(came) && (bytes.Equal(o.blobs[d], n.w.want[d]) || o.wiped.After(came)) {
				copies++
			}
		}
		if copies < n.w.min {
			n.w.fail("%s acknowledges %s with %d copies that were confirmed since", n.Name, d, copies)
		}
	}
	delete(l.puts, a.ID)
	if c.from == nil && a.Code == Conflict && n.w.calm {
		n.w.fail("%s refuses a client's request: %v", n.Name, a.Err)
	}
	c.answer(reply{Answer: a.Answer, upload: l.id})
}
