package swarm

import (
	"errors"
	"slices"
	"time"
)

// blame is who has sent pieces of a blob that did not verify: either they or the sums are
// wrong. It belongs to the blob while that is wanted, and decides (mismatch, cleared); the
// Peer carries that out: it cuts nodes off, drops sums, and counts in node.doubt for how
// many pieces each is a suspect.
//
// Nobody is blamed before a second source has sent the piece. If its bytes verify, the
// first is convicted. If they are the same, they prove a provisional list wrong; against a
// list that the tracker vouches for, two may have conspired, so a third must agree, and
// nobody be left who could contradict.
type blame struct {
	suspects map[int][]suspect // by piece; none is empty
}

// suspect is a node that sent a piece that did not verify.
type suspect struct {
	name  string
	hash  [32]byte // the SHA-256 of what it sent first; zero: not known
	times int
	at    time.Duration // the last time
}

const (
	retrySame   = 150 * time.Millisecond // then a piece is asked again from whoever sent it wrong, if nobody else has sent it
	maxSuspects = 8                      // of one piece that are remembered
	maxSlips    = 3                      // as often one node may send a piece wrong, against all others
)

var (
	errBytes = errors.New("another source's bytes verified")
	errAlone = errors.New("sent a piece that does not verify again and again")
	errSums  = errors.New("its sums were disproved by equal bytes of two sources")
)

// judgement is what follows from a piece that did not verify.
type judgement uint8

const (
	judgeNobody   judgement = iota // yet
	judgeSender                    // it is convicted
	judgeSums                      // the list is disproved
	judgeHopeless                  // sources agree against a list that cannot fall: the swarm is not one to be joined
)

// mismatch notes that name has sent piece i, whose bytes have that hash, and judges.
// vouched says that the list cannot be disproved; untried, whether somebody could send
// the piece who has not sent it wrong. agree is how many sources sent those bytes; added,
// whether name became a suspect.
func (m *blame) mismatch(
	i int, name string, hash [32]byte, now time.Duration, vouched bool, untried func() bool,
) (j judgement, agree int, added bool) {
	agree, times := 1, 1
	all := m.suspects[i]
	for k := range all {
		switch s := &all[k]; {
		case s.name == name:
			s.at = now
			s.times++
			times = s.times
		case hash != [32]byte{} && s.hash == hash:
			agree++
		}
	}
	if times > 1 {
		switch {
		case times < maxSlips:
			return judgeNobody, agree, false
		case agree < 2:
			return judgeSender, agree, false
		case times < maxSuspects && untried(): // somebody may contradict
			return judgeNobody, agree, false
		}
		return judgeHopeless, agree, false // two insist: rather without a swarm than without them
	}
	if len(all) < maxSuspects {
		if m.suspects == nil {
			m.suspects = make(map[int][]suspect)
		}
		m.suspects[i] = append(all, suspect{name, hash, times, now})
		added = true
	}
	switch {
	case agree < 2:
	case !vouched:
		j = judgeSums
	case agree >= maxSuspects, agree >= 3 && !untried():
		j = judgeHopeless
	}
	return j, agree, added
}

// cleared forgets the suspects of a piece, and returns them.
func (m *blame) cleared(i int) []suspect {
	all := m.suspects[i]
	delete(m.suspects, i)
	return all
}

// none reports whether no piece has suspects.
func (m *blame) none() bool { return len(m.suspects) == 0 }

// accused reports whether name has sent piece i wrong; avoided, whether just now, so
// that it is not asked for it.
func (m *blame) accused(i int, name string) bool {
	return slices.ContainsFunc(m.suspects[i], func(s suspect) bool { return s.name == name })
}

func (m *blame) avoided(i int, name string, now time.Duration) bool {
	return slices.ContainsFunc(m.suspects[i], func(s suspect) bool { return s.name == name && now-s.at < retrySame })
}
