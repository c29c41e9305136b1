package ringstate

import (
	"crypto/sha256"
	"encoding/hex"
	"math/bits"
	"strings"

	"github.com/capelin-io/capelin/control/ring"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// Item stands for a pinned blob with its record: the first bytes of SHA-256(digest, the
// record's hash).
type Item [16]byte

// Sum is what is compared of many blobs: the XOR of their Items, and how many there are.
type Sum struct {
	XOR Item
	N   uint32
}

func (s *Sum) add(i Item, n int32) {
	for k := range s.XOR {
		s.XOR[k] ^= i[k]
	}
	s.N += uint32(n)
}

// index are the pinned blobs.
//
// Who owns a blob is computed anew after each change of view, one bucket a Step, so that a
// million blobs do not keep anybody waiting.
type index struct {
	buckets [256]map[digest.Digest]*blob // by the digest's first byte
	n       int
	placed  int   // buckets below it know their owners in this view
	rescan  int   // buckets below it were looked at since somebody went down
	under   int   // blobs that are short, of the buckets that are placed
	news    int64 // when there last was something new to compare: a blob, or that somebody went down
	sums    [maxMembers]*[256]Sum
	delayed []delayed
}

// blob is a pinned blob.
type blob struct {
	item      Item
	owners    uint64 // slots, in this view
	confirmed uint64 // who has it pinned with this very record, or more, as it said in this epoch
	lacks     uint64 // who is to be given it
	kept      bool   // there is a home that no backend has
	mine      bool   // the last push came here
	short     bool   // as in under
	works     []*work
	bad       []int // pieces
}

// delayed is a blob that is to be given to its owners in a while.
type delayed struct {
	due    int64
	digest digest.Digest
}

// spread returns the digest's first and second byte.
func spread(digest digest.Digest) (b [2]byte) {
	_, enc, _ := strings.Cut(string(digest), ":")
	if len(enc) >= 4 {
		_, _ = hex.Decode(b[:], []byte(enc[:4])) // of a wrong one: any
	}
	return b
}

func (x *index) get(digest digest.Digest) *blob { return x.buckets[spread(digest)[0]][digest] }

func (x *index) placing() bool { return x.placed < len(x.buckets) || x.rescan < len(x.buckets) }

// restart has all owners be computed anew.
func (x *index) restart() {
	x.placed, x.rescan, x.under = 0, 0, 0
	x.sums = [maxMembers]*[256]Sum{}
	x.delayed = nil
}

func count(slots uint64) int { return bits.OnesCount64(slots) }

// ownersOf returns the slots of a key's owners.
func (r *Ring) ownersOf(key string) (slots uint64) {
	for _, p := range ring.Place(r.place, key, r.cfg.Replicas) {
		slots |= r.find(p.Name).bit()
	}
	return slots
}

// local returns what is here of a blob, given what was when the Step began.
func (r *Ring) local(digest digest.Digest, l Local) Local {
	if s, ok := r.saved[digest]; ok {
		s.Have = s.Have || l.Have
		return s
	}
	return l
}

// write saves a record.
func (r *Ring) write(rec *record.Record, l Local, pinned bool) {
	l.Record = rec
	r.saved[rec.Digest] = l
	if e := r.erases[rec.Digest]; e != nil {
		e.record = rec
	}
	r.do(ActSave{rec, pinned, l.Wrote})
}

// keep saves a record, and has its blob pinned.
func (r *Ring) keep(rec *record.Record, l Local) {
	r.write(rec, l, true)
	r.enter(rec)
}

// merge has o be known here, too, and returns what is known then. What is too much for a record is not taken in:
// whoever says it is not confirmed.
func (r *Ring) merge(l Local, o *record.Record) *record.Record {
	if o == nil {
		return l.Record
	}
	l = r.local(o.Digest, l)
	rec, ok := merged(l.Record, o)
	if !ok {
		return l.Record
	}
	r.clock.See(r.wall, rec.Latest())
	if l.Record != nil && record.Equal(rec, l.Record) {
		return l.Record
	}
	b := r.blobs.get(rec.Digest)
	switch {
	case b != nil && rec.Live():
		r.keep(rec, l)
	default:
		if b != nil {
			r.leave(rec.Digest, b)
		}
		r.write(rec, l, false)
	}
	if removal(rec) > removal(l.Record) {
		r.erasable(rec, l)
		r.pushAgain(rec, l)
	}
	return r.local(rec.Digest, l).Record
}

// held takes in what is here at the start.
func (r *Ring) held(ev EvHeld) {
	rec := ev.Local.Record
	r.clock.See(r.wall, rec.Latest())
	switch {
	case ev.Pinned && rec.Live():
		r.enter(rec)
	case ev.Pinned:
		r.unpin(rec.Digest)
	}
	r.eraseAtStart(rec, ev.Local)
}

// enter takes a pinned blob into the index, or its new record.
func (r *Ring) enter(rec *record.Record) {
	x := &r.blobs
	at := spread(rec.Digest)[0]
	b := x.buckets[at][rec.Digest]
	h := rec.Hash()
	sum := sha256.Sum256(append([]byte(rec.Digest), h[:]...))
	item := Item(sum[:])
	switch {
	case b == nil:
		b = new(blob)
		if x.buckets[at] == nil {
			x.buckets[at] = map[digest.Digest]*blob{}
		}
		x.buckets[at][rec.Digest] = b
		x.n++
	case b.item == item:
		return
	default:
		r.count(rec.Digest, b, -1)
	}
	b.item, b.confirmed, b.lacks = item, 0, 0
	x.news = r.now
	r.duties(rec, b)
	if int(at) >= x.placed {
		return // later, when the owners of all in the bucket are computed
	}
	b.owners = r.ownersOf(string(rec.Digest))
	r.count(rec.Digest, b, 1)
	wait := int64(1e9)
	if !b.kept {
		wait = 10e9 // a backend may have it soon
	}
	if !b.mine {
		wait += 5e9
	}
	x.delayed = append(x.delayed, delayed{r.now + wait, rec.Digest})
}

// leave takes a blob out that is not pinned any more.
func (r *Ring) leave(digest digest.Digest, b *blob) {
	x := &r.blobs
	r.count(digest, b, -1)
	for _, w := range b.works {
		w.gone = true
	}
	delete(x.buckets[spread(digest)[0]], digest)
	x.n--
}

// count adds a blob to the sums and figures (n is 1), or takes it away again (-1).
func (r *Ring) count(digest digest.Digest, b *blob, n int32) {
	x := &r.blobs
	at := spread(digest)[0]
	if int(at) >= x.placed {
		return
	}
	if b.owners&r.me.bit() != 0 {
		for _, m := range r.owners {
			if m != r.me && b.owners&m.bit() != 0 {
				r.sumsWith(m)[at].add(b.item, n)
			}
		}
	}
	r.setShort(b, n > 0 && r.isShort(b))
}

func (r *Ring) sumsWith(m *member) *[256]Sum {
	s := &r.blobs.sums[m.slot]
	if *s == nil {
		*s = new([256]Sum)
	}
	return *s
}

// isShort reports whether it is not proved that a blob is pinned at all its owners, and
// only there.
func (r *Ring) isShort(b *blob) bool {
	me := r.me.bit()
	return b.owners&me == 0 || b.owners&^me&^b.confirmed != 0 || len(b.bad) > 0 || count(b.owners) < r.cfg.MinReplicas
}

func (r *Ring) setShort(b *blob, short bool) {
	if b.short == short {
		return
	}
	b.short = short
	if short {
		r.blobs.under++
	} else {
		r.blobs.under--
	}
}

// under returns how many pinned blobs are short, all of them while owners are not known.
func (r *Ring) under() int {
	if r.blobs.placed < len(r.blobs.buckets) {
		return max(r.blobs.n, 1)
	}
	return r.blobs.under
}

// placeOn computes the owners of one more bucket's blobs, and looks at those of another
// one that may have too few copies.
func (r *Ring) placeOn() {
	x := &r.blobs
	if at := x.placed; at < len(x.buckets) {
		x.placed++
		for _, digest := range sorted(x.buckets[at]) {
			b := x.buckets[at][digest]
			b.owners, b.confirmed, b.lacks, b.short = r.ownersOf(string(digest)), 0, 0, false
			if b.owners&r.me.bit() == 0 {
				b.lacks = b.owners
			}
			r.count(digest, b, 1)
			r.queue(digest, b)
		}
		return
	}
	if at := x.rescan; at < len(x.buckets) {
		x.rescan++
		for _, digest := range sorted(x.buckets[at]) {
			r.queue(digest, x.buckets[at][digest])
		}
	}
}

// bad notes pieces of a blob that are wrong here, and has them replaced.
func (r *Ring) bad(ev EvBad) {
	b := r.blobs.get(ev.Digest)
	if b == nil {
		return
	}
	r.count(ev.Digest, b, -1)
	b.bad = ev.Pieces
	r.count(ev.Digest, b, 1)
	r.heal(ev.Digest, b)
}

// heal replaces what is bad by what others have: first those who are known to have the
// blob, but anybody's piece that verifies is right.
func (r *Ring) heal(digest digest.Digest, b *blob) {
	if len(b.bad) == 0 {
		return
	}
	var from []string
	for pass := range 2 {
		for _, m := range r.ordered(string(digest)) {
			if m != r.me && r.hears(m) && (b.confirmed&m.bit() != 0) == (pass == 0) {
				from = append(from, m.name)
			}
		}
	}
	r.do(ActHeal{digest, b.bad, from})
}
