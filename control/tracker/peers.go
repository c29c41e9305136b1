package tracker

// maxTold is how many peers of one blob are remembered; a tracker tells of far fewer.
const maxTold = 1000

// peers are those of a blob that trackers named, by node.
type peers map[string]toldPeer

// toldPeer is who said what of a peer; bit i stands for the blob's i-th tracker. One
// that nobody knows is not kept.
type toldPeer struct{ known, complete, source uint8 }

// tell notes what the i-th tracker says of a peer, and returns what is known of it by
// all. What one tracker knows counts, though the other may not know it (yet): only the
// one that granted a lease knows its holder at first. ok is false if there are too many.
func (p peers) tell(i int, node string, complete, source bool) (known toldPeer, ok bool) {
	if _, old := p[node]; !old && len(p) >= maxTold {
		return toldPeer{}, false
	}
	known = p[node].without(i)
	bit := uint8(1) << i
	known.known |= bit
	if complete {
		known.complete |= bit
	}
	if source {
		known.source |= bit
	}
	p[node] = known
	return known, true
}

// forget takes back what the i-th tracker said of a peer, and reports whether nobody
// knows it any more.
func (p peers) forget(i int, node string) bool {
	old, ok := p[node]
	if !ok {
		return false
	}
	if old = old.without(i); old.known == 0 {
		delete(p, node)
		return true
	}
	p[node] = old
	return false
}

// forgetAll takes back all that the i-th tracker said.
func (p peers) forgetAll(i int) {
	for node := range p {
		p.forget(i, node)
	}
}

// move puts what trackers said where they are now; see want.move.
func (p peers) move(from [2]int) {
	for node, old := range p {
		var now toldPeer
		for i, j := range from {
			if j >= 0 {
				now.known |= old.known >> j & 1 << i
				now.complete |= old.complete >> j & 1 << i
				now.source |= old.source >> j & 1 << i
			}
		}
		if now.known == 0 {
			delete(p, node)
		} else {
			p[node] = now
		}
	}
}

func (t toldPeer) without(i int) toldPeer {
	bit := uint8(1) << i
	return toldPeer{t.known &^ bit, t.complete &^ bit, t.source &^ bit}
}
