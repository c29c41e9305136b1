package ringstate

import (
	"crypto/sha256"
	"fmt"
	"sort"

	"github.com/capelin-io/capelin/origind/record"
)

// Log is a deletion log as it is found at the start.
type Log struct {
	First   uint64 // the number of the first entry; 0 is 1
	Entries []record.Deletion
}

// deletions is what is kept in memory of this member's log, which has what was deleted
// here and what was received: some 60 bytes for an entry of the last week.
type deletions struct {
	first uint64
	since []int64 // by number, from first on: when they were appended, or found at the start
	keys  [][16]byte
	seqs  map[[16]byte]uint64 // numbers by key
}

func (l *deletions) load(log Log, now int64) {
	l.first, l.seqs = max(log.First, 1), map[[16]byte]uint64{}
	for _, e := range log.Entries {
		l.append(e, now)
	}
}

func (l *deletions) head() uint64 { return l.first + uint64(len(l.since)) - 1 }

func (l *deletions) append(e record.Deletion, now int64) uint64 {
	l.since, l.keys = append(l.since, now), append(l.keys, entryKey(e))
	l.seqs[entryKey(e)] = l.head()
	return l.head()
}

func entryKey(e record.Deletion) [16]byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", e.Digest, e.Namespace, e.Stamp))
	return [16]byte(sum[:])
}

// logEntry appends an entry, if it is not in the log, and returns its number there.
func (r *Ring) logEntry(e record.Deletion) uint64 {
	if seq, ok := r.log.seqs[entryKey(e)]; ok {
		return seq
	}
	r.do(ActLog{e})
	return r.log.append(e, r.now)
}

// apply takes a removal into the log and the record. It returns the number in the log.
func (r *Ring) apply(e record.Deletion, l Local) (seq uint64, rec *record.Record) {
	r.clock.See(r.wall, e.Stamp)
	seq = r.logEntry(e)
	rec = r.merge(l, record.Removed(e.Digest, e.Namespace, e.Stamp))
	return seq, rec
}

// readLog reads on in a member's log, if there is more.
func (r *Ring) readLog(m *member) {
	if m.read >= m.head {
		m.fresh = max(m.fresh, m.headSent)
		return
	}
	if m.reading {
		return
	}
	m.reading = true
	r.ask(m, ReadLog{m.read}, func(a Answer, local []Local) {
		m.reading = false
		p, ok := a.(*LogPage)
		if !ok {
			return
		}
		if m.read > 0 && p.First > m.read+1 && r.me.removal.Readmitted == 0 {
			return // this one was no member for so long that it cannot know any more what was deleted
		}
		for i, e := range p.Entries {
			r.apply(e, local[i])
		}
		if p.Next > m.read {
			m.read, r.dirty = p.Next, true
			r.readLog(m)
		}
	})
}

// trim forgets entries that are old and that every listed member has read.
func (r *Ring) trim() {
	keep := r.log.head()
	for m := range r.others() {
		keep = min(keep, m.reads)
	}
	old := r.now - int64(r.cfg.LogKeep)
	n := sort.Search(len(r.log.since), func(i int) bool { return r.log.since[i] > old || r.log.first+uint64(i) > keep })
	if n == 0 {
		return
	}
	for _, key := range r.log.keys[:n] {
		delete(r.log.seqs, key)
	}
	r.log.since, r.log.keys = r.log.since[n:], r.log.keys[n:]
	r.log.first += uint64(n)
	r.do(ActTrim{r.log.first})
}
