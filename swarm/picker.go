package swarm

import "math/rand/v2"

// picker holds the pieces of a blob that are to be downloaded and are not yet
// under way ("wanted"), ordered by how many partial neighbours have them, in
// random order among equals: rarest first with random ties. Neighbours that
// have everything make no piece rarer than another and are not counted.
//
// Which neighbour has which piece is a bit in mask, so a blob has at most
// maxSlots neighbours to download from. Updates cost O(neighbours) at most,
// mostly O(1); a pick scans from the rarest until it finds a piece that the
// neighbour has.
type picker struct {
	at    []holding // by piece
	order []int32   // wanted pieces, rarest first
	start [maxSlots + 2]int32
	rng   *rand.Rand
}

// start[k] is where the pieces with k holders begin in order; start[k+1] is
// where they end.

// holding is who has a piece.
type holding struct {
	mask  uint64 // slots of the partial neighbours that have it
	pos   int32  // its index in order, or -1 if not wanted
	avail uint8  // how many bits mask has
}

// maxSlots bounds the neighbours of one blob from which is downloaded.
const maxSlots = 64

func newPicker(n int, rng *rand.Rand) *picker {
	k := &picker{at: make([]holding, n), rng: rng}
	for i := range k.at {
		k.at[i].pos = -1
	}
	return k
}

// wanted returns how many pieces are wanted.
func (k *picker) wanted() int { return len(k.order) }

func (k *picker) has(i int) bool { return k.at[i].pos >= 0 }

func (k *picker) put(i int32, at int32) {
	k.order[at] = i
	k.at[i].pos = at
}

func (k *picker) swap(a, b int32) {
	x, y := k.order[a], k.order[b]
	k.put(x, b)
	k.put(y, a)
}

// add makes i wanted.
func (k *picker) add(i int) {
	if k.has(i) {
		return
	}
	// Append to the last bucket, then sink bucket by bucket: the first of each
	// goes to its end.
	at := int32(len(k.order))
	k.order = append(k.order, int32(i))
	k.at[i].pos = at
	a := int(k.at[i].avail)
	for b := maxSlots; b > a; b-- {
		if first := k.start[b]; first != at {
			k.swap(first, at)
			at = first
		}
		k.start[b]++
	}
	k.start[maxSlots+1]++
	k.shuffle(at, a)
}

// shuffle moves the piece at index at to a random place in its bucket.
func (k *picker) shuffle(at int32, a int) {
	if lo, hi := k.start[a], k.start[a+1]; hi-lo > 1 {
		k.swap(at, lo+k.rng.Int32N(hi-lo))
	}
}

// remove makes i not wanted.
func (k *picker) remove(i int) {
	at := k.at[i].pos
	if at < 0 {
		return
	}
	for b := int(k.at[i].avail); b <= maxSlots; b++ {
		last := k.start[b+1] - 1
		if last != at {
			k.swap(at, last)
			at = last
		}
		k.start[b+1]--
	}
	k.order = k.order[:len(k.order)-1]
	k.at[i].pos = -1
}

// gain and lose record that the neighbour of a slot has i, or has it no more.
// They report whether that is news.
func (k *picker) gain(i, slot int) bool {
	bit := uint64(1) << slot
	h := &k.at[i]
	if h.mask&bit != 0 {
		return false
	}
	h.mask |= bit
	a := int(h.avail)
	h.avail++
	if at := h.pos; at >= 0 {
		last := k.start[a+1] - 1
		k.swap(at, last)
		k.start[a+1]--
		k.shuffle(last, a+1)
	}
	return true
}

func (k *picker) lose(i, slot int) bool {
	bit := uint64(1) << slot
	h := &k.at[i]
	if h.mask&bit == 0 {
		return false
	}
	h.mask &^= bit
	a := int(h.avail)
	h.avail--
	if at := h.pos; at >= 0 {
		first := k.start[a]
		k.swap(at, first)
		k.start[a]++
		k.shuffle(first, a-1)
	}
	return true
}

// nowhere returns how many wanted pieces are with no partial neighbour, and rare
// whether there are any.
func (k *picker) nowhere() int { return int(k.start[1]) }
func (k *picker) rare() bool   { return k.nowhere() > 0 }

// pick returns the rarest wanted piece that the neighbour of slot has (any, if
// complete), and for which ok, if given, is true; or -1.
func (k *picker) pick(slot int, complete bool, ok func(i int) bool) int {
	bit := uint64(1) << slot
	from := k.start[1] // what no partial neighbour has, this one has not
	if complete {
		from = 0
	}
	for _, i := range k.order[from:] {
		if (complete || k.at[i].mask&bit != 0) && (ok == nil || ok(int(i))) {
			return int(i)
		}
	}
	return -1
}
