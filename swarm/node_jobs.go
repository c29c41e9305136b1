package swarm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/capelin-io/capelin/swarm/piece"
)

// job is work for a blob's disk.
type job struct {
	blob  *nodeBlob
	kind  jobKind
	claim *piece.Claim // of jobStore
	piece int          // of jobRecheck
	sums  *piece.Sums  // of jobAdopt
	bytes int64        // of claim
	hash  [32]byte     // of a claim's data that did not verify
	err   error
	ends  bool // a worker is done with a unit when it is done with this
}

type jobKind uint8

const (
	jobStore    jobKind = iota // workers run these, several of one blob at once
	jobRecheck                 // the same
	jobAdopt                   // runs alone on its blob, after what came before it
	jobComplete                // the same
	jobSums                    // the same
)

// data is what the job stores, if it stores anything.
func (j *job) data() [][]byte {
	if j.claim == nil {
		return nil
	}
	return j.claim.Data()
}

// pairs reports whether the job is better done together with another.
func (j *job) pairs() bool { return j.kind == jobStore && j.claim.Pairs() }

func (k jobKind) alone() bool { return k >= jobAdopt }

// submit queues a job behind those of its blob that it must not overtake.
func (n *Node) submit(id piece.ID, j *job) {
	b := n.blobs[id]
	if b == nil {
		recycle(j.data())
		return
	}
	j.blob = b
	for _, d := range j.data() {
		j.bytes += int64(len(d))
	}
	n.storing += j.bytes
	b.refs++
	b.queue = append(b.queue, j)
	n.advance(b)
}

// advance starts the blob's jobs that may run now.
func (n *Node) advance(b *nodeBlob) {
	for len(b.queue) > 0 && !b.alone {
		j := b.queue[0]
		if j.kind.alone() && b.running > 0 {
			break // but what precedes it must reach the workers
		}
		b.queue[0] = nil
		b.queue = b.queue[1:]
		b.running++
		if j.kind.alone() {
			b.alone = true
			n.wg.Go(func() { n.run(j) }) // it may take long, and keeps no worker from other blobs
			continue
		}
		n.ready = append(n.ready, j)
	}
	n.feed()
}

// unit is what a worker does at once: a job, or two pieces, which are verified together
// in little more than the time of one.
type unit struct{ first, second *job }

// feed gives the workers as much as they take. A piece that is alone waits while a worker
// has something to do, since it may get company until then; what would win nothing by
// company does not wait, such as a small blob.
func (n *Node) feed() {
	for len(n.ready) > 0 && !n.stopping && n.fed < cap(n.work) {
		u, jobs := unit{first: n.ready[0]}, 1
		if u.first.pairs() {
			switch {
			case len(n.ready) > 1 && n.ready[1].pairs():
				u.second, jobs = n.ready[1], 2
			case len(n.ready) == 1 && n.fed > 0:
				return
			}
		}
		clear(n.ready[:jobs])
		n.ready = n.ready[jobs:]
		n.fed++
		n.work <- u
	}
}

func (n *Node) worker() {
	for u := range n.work {
		if u.second == nil {
			u.first.ends = true
			n.run(u.first)
			continue
		}
		piece.VerifyBoth(u.first.claim, u.second.claim)
		u.second.ends = true
		n.run(u.first)
		n.run(u.second)
	}
}

// run does a job, on a goroutine that is not the loop's.
func (n *Node) run(j *job) {
	b := j.blob.blob
	switch j.kind {
	case jobStore:
		j.err = b.WritePiece(j.claim)
		if errors.Is(j.err, piece.ErrMismatch) {
			h := sha256.New()
			for _, d := range j.data() {
				h.Write(d)
			}
			h.Sum(j.hash[:0])
		}
		recycle(j.data())
	case jobRecheck:
		j.err = b.Recheck(j.piece)
	case jobAdopt:
		_, j.err = b.Adopt(j.sums)
	case jobComplete:
		j.err = b.Complete(n.ctx)
	case jobSums:
		select {
		case n.summing <- struct{}{}:
			j.err = b.ComputeSums(n.ctx)
			<-n.summing
		case <-n.ctx.Done():
			j.err = n.ctx.Err()
		}
	}
	n.mail.put(note{job: j})
}

// drop forgets a job that was not begun.
func (n *Node) drop(j *job) {
	n.storing -= j.bytes
	recycle(j.data())
	n.release(j.blob)
}

// finished says that a job is done.
func (n *Node) finished(j *job) {
	b := j.blob
	n.storing -= j.bytes
	b.running--
	if j.ends {
		n.fed--
	}
	if j.kind.alone() {
		b.alone = false
	}
	if !b.left {
		n.outcome(j)
	}
	if !n.stopping {
		n.advance(b)
	}
	n.release(b)
}

func (n *Node) outcome(j *job) {
	b := j.blob
	switch j.kind {
	case jobStore:
		if j.err == nil {
			n.total.Stored += j.bytes
		} else if errors.Is(j.err, piece.ErrMismatch) {
			n.total.Mismatched++
		}
		n.step(EvStored{ID: b.id, Piece: j.claim.Piece(), Err: j.err, Hash: j.hash})
	case jobRecheck:
		if j.err == nil {
			n.step(EvIntact{b.id, j.piece})
		} else {
			n.step(EvLost{b.id, j.piece})
		}
	case jobAdopt:
		if j.err != nil {
			n.leave(b, fmt.Errorf("adopting sums of %s: %w", b.id.Digest(), j.err))
		}
	case jobComplete:
		switch {
		case j.err == nil:
			n.prove(b)
		case n.stopping && errors.Is(j.err, context.Canceled):
		default:
			n.leave(b, fmt.Errorf("completing %s: %w", b.id.Digest(), j.err))
		}
	case jobSums:
		switch {
		case j.err == nil:
			sums, _ := b.blob.Sums()
			n.step(EvLocal{b.id, 0, b.id.Pieces(), sums.Bytes()})
			n.prove(b)
		case n.stopping && errors.Is(j.err, context.Canceled):
		default:
			n.leave(b, fmt.Errorf("computing sums of %s: %w", b.id.Digest(), j.err))
		}
	}
}

// Buffers for the data of blocks, by capacity. They travel from a connection's
// reader through the Peer to a job, which returns them; what the Peer drops is
// left to the garbage collector.
const (
	smallBuffer  = 4 << 10
	mediumBuffer = piece.MinLength // the blocks of blobs up to 125 MiB
	largeBuffer  = piece.MaxBlock
)

var (
	smallBuffers  = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	mediumBuffers = sync.Pool{New: func() any { return new([mediumBuffer]byte) }}
	largeBuffers  = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// buffer returns memory of length n, at most largeBuffer, from a pool.
func buffer(n int) []byte {
	switch {
	case n <= smallBuffer:
		return smallBuffers.Get().(*[smallBuffer]byte)[:n]
	case n <= mediumBuffer:
		return mediumBuffers.Get().(*[mediumBuffer]byte)[:n]
	}
	return largeBuffers.Get().(*[largeBuffer]byte)[:n]
}

// recycle gives buffers back that nobody uses any more.
func recycle(data [][]byte) {
	for i, d := range data {
		switch cap(d) {
		case smallBuffer:
			smallBuffers.Put((*[smallBuffer]byte)(d[:smallBuffer]))
		case mediumBuffer:
			mediumBuffers.Put((*[mediumBuffer]byte)(d[:mediumBuffer]))
		case largeBuffer:
			largeBuffers.Put((*[largeBuffer]byte)(d[:largeBuffer]))
		}
		data[i] = nil
	}
}
