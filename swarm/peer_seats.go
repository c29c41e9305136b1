package swarm

import (
	"math/bits"

	"github.com/capelin-io/capelin/swarm/piece"
)

// fetchable reports whether i is to be downloaded and not under way.
func (b *blob) fetchable(i int) bool {
	return b.want && i < b.sums.verifiable() && !b.have.Has(i) && !b.flight.has(i)
}

// addWanted puts i among the wanted pieces if it is fetchable.
func (b *blob) addWanted(i int) {
	if b.pick == nil || b.pick.has(i) || !b.fetchable(i) {
		return
	}
	b.pick.add(i)
	b.count(i, 1)
}

func (b *blob) removeWanted(i int) {
	if b.pick == nil || !b.pick.has(i) {
		return
	}
	b.pick.remove(i)
	b.count(i, -1)
}

// spread returns how many wanted pieces no partial neighbour has, and how many bytes from the
// first on are here or with them, without a gap; those in failed do not count.
func (b *blob) spread(failed uint64) (missing int, reach int64) {
	if missing = b.pick.nowhere(); failed != 0 {
		missing = 0
		for _, i := range b.pick.order {
			if b.pick.at[i].mask&^failed == 0 {
				missing++
			}
		}
	}
	i := b.have.Prefix()
	for i < b.n && (b.have.Has(i) || b.pick.at[i].mask&^failed != 0) {
		i++
	}
	return missing, min(b.id.Offset(i), b.id.Size)
}

// count adjusts the useful counters of the neighbours that have i.
func (b *blob) count(i, d int) {
	for m := b.pick.at[i].mask; m != 0; m &= m - 1 {
		b.seats.at[bits.TrailingZeros64(m)].useful += d
	}
}

// seat gives the link a slot to download from, and counts what the peer has.
func (l *link) seat() {
	b := l.blob
	if b == nil || b.pick == nil || !l.open || l.slot >= 0 {
		return
	}
	if !b.seats.take(l) {
		return
	}
	l.useful = 0
	if l.complete {
		b.seats.seeder(l)
		return
	}
	for i := l.have.NextSet(0); i >= 0; i = l.have.NextSet(i + 1) {
		l.gain(i)
	}
}

// announced reports whether the peer, which has not everything, has piece i.
func (l *link) announced(i int) bool {
	if l.slot >= 0 {
		return l.blob.pick.at[i].mask>>l.slot&1 != 0 // nearer than its own set
	}
	return l.have.Has(i)
}

// has reports whether the peer has piece i.
func (l *link) has(i int) bool { return l.complete || l.have.Has(i) }

// gain counts a piece that a partial neighbour has; lose, that it has it no more.
func (l *link) gain(i int) {
	if b := l.blob; l.slot >= 0 && b.pick.gain(i, l.slot) && b.pick.has(i) {
		l.useful++
	}
}

func (l *link) lose(i int) {
	if b := l.blob; l.slot >= 0 && b.pick.lose(i, l.slot) && b.pick.has(i) {
		l.useful--
	}
}

// completed makes a partial neighbour that has everything now a seeder.
func (l *link) completed() {
	if b := l.blob; b != nil && l.slot >= 0 {
		l.retire()
		b.seats.seeder(l)
		l.useful = 0
	}
	l.complete, l.have = true, nil
}

// partial makes a seeder that lost piece i a partial neighbour.
func (l *link) partial(i int) {
	have := piece.NewBits(l.id.Pieces())
	have.SetAll()
	have.Clear(i)
	l.complete, l.have = false, have
	if b := l.blob; b != nil && l.slot >= 0 {
		b.seats.partial(l)
		for j := have.NextSet(0); j >= 0; j = have.NextSet(j + 1) {
			l.gain(j)
		}
	}
}

// unseat takes the link's slot away, and what its peer had out of the picker.
func (l *link) unseat() {
	b := l.blob
	if b == nil || l.slot < 0 {
		return
	}
	if !l.complete {
		l.retire()
	}
	b.seats.leave(l)
	l.useful = 0
}

// retire takes what a partial neighbour has out of the picker.
func (l *link) retire() {
	for i := l.have.NextSet(0); i >= 0; i = l.have.NextSet(i + 1) {
		l.blob.pick.lose(i, l.slot)
	}
}
