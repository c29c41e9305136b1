package sim

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
	"github.com/capelin-io/capelin/trackerd/state"
)

type blobState struct {
	Blob
	id    piece.ID
	sums  *piece.Sums
	wrong []byte // states that a liar sends
	index int
}

type host struct {
	Host
	r      *run
	index  int
	peer   *swarm.Peer
	up     bool
	frozen bool
	thaw   int64
	tick   int64 // when the next tick is scheduled
	conns  []*conn
	have   map[piece.ID]*piece.Bits // what its disk has
	lied   int

	queue    []txBlock // given to the driver, not begun
	busy     bool
	small    int // bytes of messages to go before the next block
	downFree int64
	cpuFree  int64
	zone     *zone
	storeAt  int64
	stream   state.Stream // to the tracker; 0: none

	moved   []int64 // by blob: when a piece came last
	done    map[piece.ID]bool
	sentAll map[piece.ID]*[2]*piece.Bits // pieces and blocks that a host with Seed has sent
	res     *HostResult
}

// conn returns h's connection of that number, or nil if it has it no more.
func (h *host) conn(id swarm.ConnID) *conn {
	if c := h.r.conns[id-1]; c.live[c.side(h)] {
		return c
	}
	return nil
}

// drop takes c away from h.
func (h *host) drop(c *conn) {
	c.live[c.side(h)] = false
	h.conns = slices.DeleteFunc(h.conns, func(o *conn) bool { return o == c })
}

func (c *conn) side(h *host) int {
	if c.ends[0] == h {
		return 0
	}
	return 1
}

// expected reports whether the run goes on until h has everything.
func (h *host) expected() bool {
	return !h.Seed && !h.Aside && h.Crash == 0 && h.Leave == 0 && (h.Freeze == 0 || h.Thaw > 0)
}

// step gives the host's Peer an event and performs what follows.
func (h *host) step(ev swarm.Event) {
	if !h.up {
		return
	}
	h.r.events++
	now := h.r.at(h.r.now)
	acts := h.peer.Step(now, ev)
	if h.r.cfg.Trace != nil {
		h.r.cfg.Trace(time.Duration(h.r.now), h.Name, ev, acts)
	}
	for _, a := range acts {
		h.act(a)
	}
	if d := h.peer.Deadline(); !d.IsZero() {
		if t := max(int64(d.Sub(base)), h.r.now); t < h.tick {
			h.tick = t
			h.r.queue.push(event{at: t, kind: kTick, h: h})
		}
	}
}

func (h *host) act(a swarm.Action) {
	r := h.r
	switch a := a.(type) {
	case swarm.ActSend:
		if c := h.conn(a.Conn); c != nil {
			h.send(c, h.lie(a.Message))
		}
	case swarm.ActSendBlock:
		c := h.conn(a.Conn)
		if c == nil {
			return
		}
		if !h.have[a.ID].Has(a.Piece) {
			h.later(0, swarm.EvLost{ID: a.ID, Piece: a.Piece})
			h.later(0, swarm.EvBlockSent{Conn: a.Conn, N: a.Length})
			return
		}
		m := &wire.Block{Blob: a.Handle, Piece: uint32(a.Piece), Offset: uint32(a.Offset), Queue: a.Queue, Data: h.data(a.Length)}
		if h.Seed {
			h.count(a)
		}
		c.queued[c.side(h)]++
		h.queue = append(h.queue, txBlock{c: c, m: m})
		h.transmit()
	case swarm.ActStore:
		h.store(a)
	case swarm.ActRecheck:
		h.later(r.cfg.StoreDelay, swarm.EvIntact{ID: a.ID, Piece: a.Piece}) // liars' disks are fine as well
	case swarm.ActAdopt:
	case swarm.ActComplete:
		h.later(r.cfg.StoreDelay, swarm.EvProven{ID: a.ID})
		r.control(r.now+int64(r.cfg.StoreDelay), func() { h.proven(a.ID) })
	case swarm.ActDial:
		h.dial(a)
	case swarm.ActClose:
		c := h.conn(a.Conn)
		if c == nil {
			return
		}
		h.drop(c)
		h.send(c, &wire.Error{Code: a.Code, Text: a.Text})
		h.hangUp(c)
		h.later(0, swarm.EvDisconnected{Conn: a.Conn})
	case swarm.ActReport:
		h.res.Reports = append(h.res.Reports, a.Report)
		switch a.Report.Kind {
		case swarm.ReportConvicted:
			h.res.Convicted = append(h.res.Convicted, a.Report.Node)
		case swarm.ReportStalled:
			h.res.Stalled++
		case swarm.ReportBadPiece:
			h.res.Bad++
		}
	case swarm.ActFail:
		h.res.Reports = append(h.res.Reports, swarm.Report{ID: a.ID, Err: a.Err})
	case swarm.ActComputeSums:
		b := r.byID[a.ID]
		h.later(time.Duration(float64(a.ID.Size)/r.cfg.StoreRate*1e9), swarm.EvLocal{ID: a.ID, To: a.ID.Pieces(), States: b.sums.Bytes()})
	}
}

// count notes that a host with Seed sends a block.
func (h *host) count(a swarm.ActSendBlock) {
	if h.sentAll == nil {
		h.sentAll = make(map[piece.ID]*[2]*piece.Bits)
	}
	n := h.sentAll[a.ID]
	if n == nil {
		per := int((a.ID.Length() + piece.MaxBlock - 1) / piece.MaxBlock)
		n = &[2]*piece.Bits{piece.NewBits(a.ID.Pieces()), piece.NewBits(a.ID.Pieces() * per)}
		h.sentAll[a.ID] = n
	}
	n[0].Set(a.Piece)
	per := n[1].Len() / n[0].Len()
	if !n[1].Set(a.Piece*per+a.Offset/piece.MaxBlock) && !n[0].Full() {
		h.res.Early += int64(a.Length)
	}
}

// store verifies and writes a piece.
func (h *host) store(a swarm.ActStore) {
	r := h.r
	b := r.byID[a.ID]
	ev := swarm.EvStored{ID: a.ID, Piece: a.Piece}
	size := 0
	for _, d := range a.Data {
		size += len(d)
		if d[0] != 0 {
			ev.Hash[0] = d[0]
		}
	}
	if size != a.ID.PieceSize(a.Piece) {
		panic("sim: a piece of the wrong size")
	}
	if !a.Sums.Agrees(b.sums, a.Piece) || ev.Hash[0] != 0 {
		ev.Err = piece.ErrMismatch
		ev.Hash[1] = 1
	} else {
		h.have[a.ID].Set(a.Piece)
		h.res.Still[b.index] = max(h.res.Still[b.index], time.Duration(r.now-h.moved[b.index]))
		h.moved[b.index] = r.now
	}
	h.storeAt = max(h.storeAt, r.now) + int64(float64(size)/r.cfg.StoreRate*1e9)
	r.queue.push(event{at: h.storeAt + int64(r.cfg.StoreDelay), kind: kEvent, h: h, ev: ev})
}

func (h *host) later(d time.Duration, ev swarm.Event) {
	h.r.queue.push(event{at: h.r.now + int64(d), kind: kEvent, h: h, ev: ev})
}

func (h *host) hello() wire.Hello {
	return wire.Hello{Version: 1, Role: h.Role, Cluster: "sim", Node: h.Name, Zone: h.Zone, Addr: h.Name + ":1", Software: "sim"}
}

// join starts a host.
func (h *host) join() {
	r := h.r
	h.up = true
	for _, b := range r.blobs {
		if h.Seed && b.Sources != nil && !slices.Contains(b.Sources, h.index) || h.Blobs != nil && !slices.Contains(h.Blobs, b.index) {
			continue
		}
		h.moved[b.index] = r.now
		ev := swarm.EvJoin{ID: b.id, Want: !h.Seed, Priority: b.index, Have: piece.NewBits(b.id.Pieces()), Sums: piece.NewSums(b.id)}
		disk := piece.NewBits(b.id.Pieces())
		if h.Seed && b.SourceRate == 0 {
			ev.Have.SetAll()
			disk.SetAll()
			ev.Sums, ev.Proven = b.sums.Clone(), true
		}
		h.have[b.id] = disk
		h.step(ev)
		if h.Seed && b.SourceRate > 0 {
			h.upstream(b, 0)
		}
	}
	h.toTracker(nil)
	at := func(d time.Duration, fn func()) {
		if d > 0 {
			r.control(r.now+int64(d), fn)
		}
	}
	at(h.Host.Crash, func() { h.crash() })
	at(h.Host.Leave, func() { h.leave() })
	at(h.Host.Freeze, func() {
		h.frozen = true
		if h.Thaw > 0 {
			h.thaw = r.now + int64(h.Thaw)
			r.control(h.thaw, func() { h.frozen = false })
		}
	})
	for _, l := range h.Limits {
		at(max(l.At, 1), func() { h.step(swarm.EvLimits{Up: l.Up, Down: l.Down}) })
	}
}

// upstream lets a source receive the next pieces.
func (h *host) upstream(b *blobState, from int) {
	n := b.id.Pieces()
	if from >= n {
		h.step(swarm.EvProven{ID: b.id})
		h.toTracker(b)
		return
	}
	at := h.r.now + int64(float64(b.id.PieceSize(from))/b.SourceRate*1e9)
	h.r.control(at, func() {
		if !h.up {
			return
		}
		h.have[b.id].Set(from)
		h.step(swarm.EvLocal{ID: b.id, From: from, To: from + 1, States: b.sums.Range(from, 1)})
		h.upstream(b, from+1)
	})
}

// proven ends a download.
func (h *host) proven(id piece.ID) {
	r := h.r
	b := r.byID[id]
	if h.done[id] || !h.up {
		return
	}
	if !h.have[id].Full() {
		panic("sim: completed without every piece")
	}
	h.done[id] = true
	h.toTracker(b)
	h.res.BlobDone[b.index] = time.Duration(r.now) - h.Join
	if len(h.done) == len(h.have) {
		h.res.Done, h.res.Took = true, time.Duration(r.now)-h.Join
		if h.expected() {
			r.open--
		}
	}
}

// crash ends a host without a word; the kernel resets its connections.
func (h *host) crash() {
	h.gone(func(c *conn) { h.hangUp(c) })
}

// leave ends a host in order.
func (h *host) leave() {
	for _, b := range h.r.blobs {
		h.step(swarm.EvLeave{ID: b.id})
	}
	h.gone(func(c *conn) {
		h.send(c, &wire.Error{Code: wire.CodeShutdown, Text: "bye"})
		h.hangUp(c)
	})
}

func (h *host) gone(end func(*conn)) {
	r := h.r
	for _, c := range slices.Clone(h.conns) {
		end(c)
		c.live[c.side(h)] = false
	}
	h.conns = nil
	h.up = false
	r.control(r.now+int64(r.cfg.Latency), func() { r.tracker.left(h) })
}
