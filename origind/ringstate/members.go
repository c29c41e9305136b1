package ringstate

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/origind/record"
)

// Mode is what a member says of itself.
type Mode uint8

const (
	Joining  Mode = iota // its disk is new: it is no owner yet
	Up                   // an owner
	Draining             // no owner any more, and has blobs that owners may lack
	Drained              // has nothing that is needed
)

func (m Mode) String() string { return [...]string{"joining", "up", "draining", "drained"}[m] }

// maxMembers is how many names a member can know in its life.
const maxMembers = 64

// View is what has to be the same for two members to compare what they have: R, names,
// zones, and who is an owner.
type View [sha256.Size]byte

// Lost is a disk that was in the ring, and is not any more, or was not heard of for long.
type Lost struct {
	Name        string
	Incarnation uint64
	At          Order // when that was noted
	Drained     bool  // somebody knows that nothing on it was needed any more
}

// Whole is when each blob was proved to have Min copies.
type Whole struct {
	At  Order
	Min int
}

// Removal is what operators said of a name; the later counts.
type Removal struct {
	Name                           string
	Removed, Readmitted, Forgotten Order
}

// Saved is what survives a restart beside blobs, records and the deletion log.
type Saved struct {
	Incarnation uint64
	Clock       record.Stamp // no stamp above it was made
	Order       Order
	Members     []SavedMember
	Removals    []Removal
	Lost        []Lost
	Whole       Whole
	Lowest      int // MinReplicas since
}

// SavedMember is what is kept of a member, this one included.
type SavedMember struct {
	Name, Addr, Zone string
	Incarnation      uint64
	Mode             Mode
	ModeAt           Order
	Gone             bool
	Read             uint64 // of its log
}

// member is one of the ring, or was.
type member struct {
	slot             uint8
	name, addr, zone string
	inc              uint64 // 0: never heard of
	mode             Mode
	modeAt           Order
	gone             bool
	full             bool
	removal          Removal

	heard    int64 // the last sign of life; 0: none yet
	live     int64 // when it was last known not to be down
	status   *Status
	statusAt int64         // when that was asked for
	skew     time.Duration // how far its clock is ahead of this one's, if that matters
	hears    uint64        // slots of those whom it has heard itself, as it said then
	probing  bool

	read     uint64 // how far its log was read
	head     uint64 // its log's head, as it said when asked at headSent
	headSent int64
	fresh    int64 // its log was read up to what it was at that time; 0: never
	reading  bool
	reads    uint64 // how far it has read this member's log

	compared compare
}

// listed reports whether it counts as a member: it was not removed, and has not left, which is
// what a drained one has that is gone. Who has left is a member again when it is heard of.
func (m *member) listed() bool {
	return !m.out() && !(m.gone && m.mode == Drained)
}

// out reports whether an operator has taken it out.
func (m *member) out() bool { return m.removal.Removed > m.removal.Readmitted }

func (m *member) owner() bool { return m.listed() && m.mode == Up && !m.gone }
func (m *member) bit() uint64 { return 1 << m.slot }

// find returns a member by its name, or nil.
func (r *Ring) find(name string) *member {
	i, ok := slices.BinarySearchFunc(r.members, name, func(m *member, n string) int { return strings.Compare(m.name, n) })
	if !ok {
		return nil
	}
	return r.members[i]
}

// learn returns a member, which may be new; nil if there are too many.
func (r *Ring) learn(name string) *member {
	if m := r.find(name); m != nil || len(r.slots) == maxMembers {
		return m
	}
	m := &member{slot: uint8(len(r.slots)), name: name, live: r.now, removal: Removal{Name: name}}
	r.slots = append(r.slots, m)
	i, _ := slices.BinarySearchFunc(r.members, name, func(m *member, n string) int { return strings.Compare(m.name, n) })
	r.members = slices.Insert(r.members, i, m)
	r.dirty = true
	return m
}

// listed are the members, this one included, by name.
func (r *Ring) listed() iter.Seq[*member] {
	return func(yield func(*member) bool) {
		for _, m := range r.members {
			if m.listed() && !yield(m) {
				return
			}
		}
	}
}

// size is how many members there are.
func (r *Ring) size() (n int) {
	for range r.listed() {
		n++
	}
	return n
}

// others are the listed ones without this one.
func (r *Ring) others() iter.Seq[*member] {
	return func(yield func(*member) bool) {
		for m := range r.listed() {
			if m != r.me && !yield(m) {
				return
			}
		}
	}
}

// hear notes a sign of life of a member. It returns nil for those that are none.
func (r *Ring) hear(name string, inc uint64) *member {
	m := r.learn(name)
	if m == nil || m == r.me {
		return nil
	}
	m.heard, m.live = r.now, r.now
	r.incarnation(m, inc)
	return m
}

// incarnation notes the disk that a member has.
func (r *Ring) incarnation(m *member, inc uint64) {
	if m.inc == inc {
		return
	}
	if m.inc != 0 {
		r.lose(m)
		m.mode, m.modeAt, m.status = Joining, 0, nil
		r.void()
	}
	m.inc, m.read, m.head, m.fresh, m.reads = inc, 0, 0, 0, 0
	r.dirty = true
}

// lose notes that a member's disk may be no more.
func (r *Ring) lose(m *member) {
	if m.inc != 0 {
		r.addLost(Lost{m.name, m.inc, r.turn(), m.mode == Drained})
	}
}

func (r *Ring) addLost(l Lost) {
	if l.At <= r.whole.At {
		return
	}
	i, ok := slices.BinarySearchFunc(r.lost, l, func(a, b Lost) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Incarnation, b.Incarnation))
	})
	switch {
	case !ok && len(r.lost) == maxLost:
		return // there are more than enough for nothing to be said to be nowhere
	case !ok:
		r.lost = slices.Insert(r.lost, i, l)
	default:
		old := r.lost[i]
		r.lost[i].At = max(old.At, l.At)
		r.lost[i].Drained = old.Drained || l.Drained
		if r.lost[i] == old {
			return
		}
	}
	r.dirty = true
}

// isLost reports whether a lost disk is still missed: it is not back, and nobody said that
// it never will be.
func (r *Ring) isLost(l Lost) bool {
	m := r.find(l.Name)
	return m != nil && m.removal.Forgotten < l.At && r.isAway(l)
}

// isAway reports whether a lost disk is not back, whatever was said of it.
func (r *Ring) isAway(l Lost) bool {
	m := r.find(l.Name)
	if m == nil || l.Drained {
		return false
	}
	back := m == r.me || m.listed() && r.alive&m.bit() != 0
	return !back || m.inc != l.Incarnation
}

// Order counts what is said of members: whatever is said has a greater one than all that
// whoever says it had heard of. It has nothing to do with the time of day, so that a clock that is
// wrong by any amount loses nothing.
type Order uint64

func (r *Ring) turn() Order {
	r.order++
	return r.order
}

// stamp makes a stamp for a push to a blob, or a removal, of which rec is known.
func (r *Ring) stamp(rec *record.Record) record.Stamp { return r.clock.Next(r.wall, rec.Latest()) }

// judge decides who is alive, and whether this member may have missed deletions.
func (r *Ring) judge() {
	before := r.lives
	r.alive, r.lives = r.me.bit(), r.me.bit()
	for _, m := range r.members {
		switch {
		case m != r.me && (r.hears(m) || r.heardOf(m)):
			m.live = r.now
			r.alive |= m.bit()
		case m.heard == 0 && !m.gone && r.now-r.born < int64(r.cfg.Down):
			r.lives |= m.bit()
		}
	}
	r.lives |= r.alive
	if before&^r.lives != 0 {
		r.blobs.rescan, r.blobs.news = 0, r.now // what they had may have too few copies now
	}
	for _, m := range r.members {
		if m == r.me {
			continue
		}
		gone := r.now-m.live >= int64(r.cfg.Gone) || m.gone && r.alive&m.bit() == 0
		if gone == m.gone {
			continue
		}
		m.gone, r.dirty = gone, true
		if gone {
			r.lose(m)
		}
	}
	r.judgeMe()
}

// hears reports whether a member gave a sign of life lately.
func (r *Ring) hears(m *member) bool { return m.heard != 0 && r.now-m.heard < int64(r.cfg.Down) }

// heardOf reports whether another one that this one hears has heard m itself.
func (r *Ring) heardOf(m *member) bool {
	for _, o := range r.members {
		if o == r.me || o == m || !o.listed() || o.status == nil || !r.hears(o) || r.now-o.statusAt >= int64(r.cfg.Down) {
			continue
		}
		if o.hears&m.bit() != 0 {
			return true
		}
	}
	return false
}

// judgeMe decides whether this member has started, and whether it may have missed deletions.
//
// A deletion is acknowledged when more than all but MinReplicas members have it. Whoever is
// in touch with MinReplicas - 1 others is in touch with one who has it. A new member was not
// counted then: it reads all logs but MinReplicas - 1, however long that takes.
func (r *Ring) judgeMe() {
	fresh, met, others := 0, 0, 0
	for m := range r.others() {
		others++
		if m.fresh != 0 && r.now-m.fresh < int64(r.cfg.Down) {
			fresh++
		}
		if m.heard > r.born {
			met++
		}
	}
	need := r.cfg.MinReplicas - 1
	if r.starting && r.me.mode == Joining {
		need = max(need, others-r.cfg.MinReplicas+1)
	}
	switch {
	case fresh >= need:
		r.stale = 0
	case r.stale == 0:
		r.stale = r.now
	}
	waited := r.now-r.born >= int64(r.cfg.Starting)
	read := r.stale == 0 || r.me.mode != Joining && r.serving()
	if r.starting && (2*met >= others || waited) && read {
		r.starting = false
		if r.me.mode == Joining {
			r.setMode(Up)
		}
	}
}

// serving reports whether blobs may be read here: it is known what was deleted, or it could
// not be found out for long.
func (r *Ring) serving() bool { return r.stale == 0 || r.now-r.stale >= int64(r.cfg.Starting) }

func (r *Ring) setMode(m Mode) {
	r.me.mode, r.me.modeAt = m, r.turn()
	r.dirty = true
}

func (r *Ring) removal(v Removal) {
	m := r.learn(v.Name)
	if m == nil {
		return
	}
	old := m.removal
	m.removal.Removed = max(old.Removed, v.Removed)
	m.removal.Readmitted = max(old.Readmitted, v.Readmitted)
	m.removal.Forgotten = max(old.Forgotten, v.Forgotten)
	if m.removal != old {
		r.dirty = true
	}
}

// operate does what an operator says of a member.
func (r *Ring) operate(ev EvMember) {
	m := r.learn(ev.Name)
	if m == nil {
		r.do(ActDone{ID: ev.ID, Why: fmt.Sprintf("more than %d members", maxMembers)})
		return
	}
	alive := r.alive&m.bit() != 0
	switch {
	case ev.Do == Readmit:
		m.removal.Readmitted = r.turn()
	case ev.Do == Forget && alive: // what is missed is an earlier disk of its
		m.removal.Forgotten = r.turn()
	default:
		left := 0
		for _, o := range r.owners {
			if o != m {
				left++
			}
		}
		if m.owner() && left < r.cfg.MinReplicas && alive {
			r.do(ActDone{ID: ev.ID, Why: fmt.Sprintf("without %s, which is up, there are %d owners of the %d that min_replicas asks for",
				m.name, left, r.cfg.MinReplicas)})
			return
		}
		r.lose(m)
		m.removal.Removed = r.turn()
		if ev.Do == Forget {
			m.removal.Forgotten = m.removal.Removed
		}
	}
	r.dirty = true
	r.do(ActDone{ID: ev.ID, OK: true})
}

// drain begins to leave, or ends that.
func (r *Ring) drain(ev EvDrain) {
	left := 0
	for _, m := range r.owners {
		if m != r.me && r.alive&m.bit() != 0 {
			left++
		}
	}
	switch {
	case !ev.On && r.me.mode >= Draining:
		r.setMode(Up)
	case ev.On && left < r.cfg.MinReplicas:
		r.do(ActDone{ID: ev.ID, Why: fmt.Sprintf("%d other owners are up, and min_replicas is %d", left, r.cfg.MinReplicas)})
		return
	case ev.On && r.me.mode < Draining:
		r.setMode(Draining)
	}
	r.do(ActDone{ID: ev.ID, OK: true})
}

// drained notes that nothing of what is here is needed any more, or that it is again.
func (r *Ring) drained() {
	empty := r.blobs.n == 0 && len(r.puts)+len(r.deletes)+len(r.takes)+len(r.erases) == 0
	switch {
	case r.me.mode == Draining && empty && r.now-r.changed >= int64(r.cfg.Calm):
		r.setMode(Drained)
	case r.me.mode == Drained && !empty:
		r.setMode(Draining)
	}
}

// see computes the view.
func (r *Ring) see() {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", r.cfg.Replicas)
	owners := r.owners[:0:0]
	for m := range r.listed() {
		fmt.Fprintf(h, "%q %q %v\n", m.name, m.zone, m.owner())
		if m.owner() {
			owners = append(owners, m)
		}
	}
	v := View(h.Sum(nil))
	if v != r.view {
		r.view, r.owners, r.place = v, owners, nil
		for _, m := range owners {
			r.place = append(r.place, ring.Member{Name: m.name, Zone: m.zone})
		}
		r.void()
	}
}

// void forgets all that was confirmed: it was so in another view, or by another disk.
func (r *Ring) void() {
	r.epoch++
	r.changed = r.now
	r.blobs.restart()
	for _, m := range r.slots {
		m.compared = compare{}
	}
	r.give.clear()
}
