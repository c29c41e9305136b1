package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	// windowTime is how much of the bandwidth may be under way at once when
	// pieces are small; it covers the round trip and what the driver takes.
	windowTime = 30 * time.Millisecond

	// maxRTT bounds what round trips add to the windows.
	maxRTT = 500 * time.Millisecond

	endgameAfter = 200 * time.Millisecond // an attempt is slow if it brought nothing for so long

	// Blobs come one after the other, so that the first is there early. One of which nothing
	// comes has a turn nevertheless: a piece now and then, so that all turns together take a
	// fifth of what comes at most.
	turnEvery = 250 * time.Millisecond
	turnShare = 5

	guessedLoad = 1 << 20 // bytes per second at least, at which what waits at peers is taken to leave
)

// downlink is the part of the Peer that all downloads share: what is under way over all
// connections, and how fast it comes. Attempts count themselves in and out; the rest is
// measured. Its methods decide how much may be under way.
type downlink struct {
	meter    meter
	limit    bucket
	inflight int           // blocks requested and not arrived
	active   int           // attempts and AnyPiece requests, but for those at slow peers
	seen     time.Duration // when it was last seen that something comes; see Peer.standIn
	took     time.Duration // how long a piece takes in the middle; 0: none has come
	rtt      time.Duration // round trip to those that pieces come from, smoothed
	memory   int64         // bytes of unfinished pieces and of those being stored
	turnAt   time.Duration // when a blob may have a turn before others
	patience patience
}

// owe counts a block of n bytes that was requested; settle, k that were answered or withdrawn.
func (d *downlink) owe(n int, now time.Duration) {
	if d.inflight == 0 {
		d.meter.start(now)
	}
	d.inflight++
	d.limit.take(n)
}

func (d *downlink) settle(k int, now time.Duration) {
	d.inflight -= k
	if d.inflight == 0 {
		d.meter.stop(now)
	}
}

// measured notes how long a piece has taken, over a connection of that round trip.
func (d *downlink) measured(took, rtt time.Duration) {
	d.rtt += (rtt - d.rtt) / 8
	switch {
	case d.took == 0:
		d.took = took
	case took > d.took: // towards the median: a few slow ones do not count by how slow they are
		d.took += d.took/16 + 1
	default:
		d.took -= d.took / 16
	}
}

// travelling returns how many bytes are on their way while a request and its answer
// travel: they are asked for beyond what waits at the peers.
func (d *downlink) travelling() int { return int(d.meter.rate * d.rtt.Seconds()) }

// draining returns how long factor times what is under way takes if it shares one link.
func (d *downlink) draining(factor float64) time.Duration {
	if d.meter.rate <= 0 {
		return 0
	}
	return time.Duration(factor * float64(d.inflight*piece.MaxBlock) / d.meter.rate * 1e9)
}

// window returns how many blocks may be outstanding, over all connections.
func (d *downlink) window(cfg *PeerConfig) int {
	w := 2*cfg.Window + d.travelling()/piece.MinLength
	if r := d.meter.rate; r > 0 {
		w = max(w, int(r*windowTime.Seconds())/piece.MaxBlock)
		w = min(w, max(2, int(r)/piece.MaxBlock)) // a second's worth on a slow link
	}
	return min(w, int(cfg.Memory/piece.MaxBlock))
}

// mayStart reports whether another piece of that length may be begun within a window of
// blocks, by a blob of which so many are held in memory.
func (d *downlink) mayStart(cfg *PeerConfig, window int, length int64, held int) bool {
	if d.inflight >= window {
		return false
	}
	per := int((length + piece.MaxBlock - 1) / piece.MaxBlock)
	pieces := cfg.Window + min(d.travelling()/int(length), 2*cfg.Window)
	if w := window / per; w > 2*pieces {
		pieces = w
	}
	if d.active >= pieces {
		return false
	}
	return held < 2 || int64(held+1)*length <= cfg.BlobMemory && d.memory+length <= cfg.Memory
}

// tookTurn notes that a piece of size bytes was begun out of turn.
func (d *downlink) tookTurn(size int64, now time.Duration) {
	every := turnEvery
	if d.meter.rate > 0 {
		every = max(every, time.Duration(turnShare*float64(size)/d.meter.rate*1e9))
	}
	d.turnAt = now + every
}

// stallLimit is how long a peer that owes us blocks may be silent.
func (d *downlink) stallLimit(cfg *PeerConfig) time.Duration {
	limit := d.patience.stretch(cfg.StallAfter)
	return max(limit, min(d.draining(2), 10*time.Second)) // all that is under way may share one slow link
}

// quietLimit is how long a peer that owes us anything may bring nothing before it has failed
// as a source.
func (d *downlink) quietLimit(cfg *PeerConfig) time.Duration {
	return max(d.patience.stretch(sourceWithin), min(d.draining(2), 10*time.Second))
}

// lateAfter is how long an attempt may bring nothing before it is slow.
func (d *downlink) lateAfter() time.Duration { return max(endgameAfter, d.draining(4)) }

// blockRate is at how many blocks per second what waits at a peer is taken to leave.
func (d *downlink) blockRate() float64 { return max(d.meter.rate, guessedLoad) / piece.MaxBlock }
