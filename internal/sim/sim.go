package sim

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
	"github.com/capelin-io/capelin/trackerd/state"
)

// Config describes a run.
type Config struct {
	Seed  uint64
	Hosts []Host
	Blobs []Blob

	Latency     time.Duration // one way; default 250 µs
	ZoneLatency time.Duration // between zones; default Latency
	StoreDelay  time.Duration // latency of storing a piece; default 100 µs
	StoreRate   float64       // bytes per second of verifying and writing; default 2 GB/s
	Limit       time.Duration // the run ends then at the latest; default 1 h

	// ZoneRate is what leaves each zone for the others in all, and what enters it
	// from them in all, in bytes per second; 0: as much as its hosts can.
	ZoneRate float64

	// MessageBytes is how long each message other than a block is on the wire, in
	// its sender's uplink; MessageCost is how long a host is busy with each
	// message that it receives. Default 0.
	MessageBytes int
	MessageCost  time.Duration

	// The tracker is away from TrackerDown on for TrackerFor, and has forgotten all
	// when it comes back; every host has a stream to it again within a second.
	TrackerDown, TrackerFor time.Duration

	// Coarse divides all sizes and rates of the run, and multiplies the bytes in
	// its Result, so that a block stands for as many: an approximation that saves
	// most of the events of pieces of several blocks. Blobs keep their numbers of
	// pieces if it is no more than the blocks of a piece. 0 and 1: none.
	Coarse int

	Trace func(at time.Duration, host string, ev swarm.Event, acts []swarm.Action) // may be nil
}

// Blob is something to distribute. Blobs with a lower index have priority.
type Blob struct {
	Size int64
	// SourceRate: hosts with Seed begin with nothing and receive the blob from
	// upstream at this rate, in bytes per second; 0: they have it.
	SourceRate float64
	// Sources are the indices of the hosts with Seed that take part; nil: all.
	Sources []int
	// Hash: the tracker names the hash of the proven list from the beginning.
	Hash bool
}

// Host is one node.
type Host struct {
	Name     string // default "h<index>"
	Zone     string
	Role     wire.Role // default wire.RoleAgent
	Up, Down float64   // bytes per second; 0: 1e12
	Seed     bool      // has the blobs, or receives them from upstream; wants nothing
	Join     time.Duration
	Leave    time.Duration // after joining; leaves all swarms and closes its connections; 0: never
	Crash    time.Duration // after joining; 0: never
	Freeze   time.Duration // after joining; 0: never
	Thaw     time.Duration // after freezing; 0: never
	Limits   []Limit       // bandwidth limits set on the way

	Aside bool // not waited for, and not counted by Figures
	Lie   Lie
	Peer  swarm.PeerConfig // Node, Zone, Role and Seed are set by the run
}

// Limit is a change of bandwidth limits (swarm.EvLimits).
type Limit struct {
	At       time.Duration // after joining
	Up, Down int64
}

// Lie is a set of ways to misbehave.
type Lie uint8

const (
	LieBytes Lie = 1 << iota // sends wrong bytes for every third block
	LieAll                   // sends wrong bytes for every block
	LieSums                  // sends wrong sums, and says that they are proven
	LieHaves                 // says that it has everything
	LieSizes                 // says that the blob is one byte longer
)

// Result is what came out.
type Result struct {
	Hosts  []HostResult
	Zones  map[string]int64 // bytes of blocks that entered each zone from others
	Events int              // steps of all peers
	Time   time.Duration    // virtual, when the run ended
}

// HostResult is what became of one host.
type HostResult struct {
	Seed      bool // as configured
	Aside     bool // as configured
	Done      bool
	Took      time.Duration // from joining until it had proven everything
	BlobDone  []time.Duration
	Up, Down  int64 // bytes of blocks sent and received
	Redundant int64
	Early     int64    // bytes of blocks that a host with Seed sent again before it had sent every piece once
	Convicted []string // nodes that it convicted, in order
	Stalled   int      // stalls that it reported
	Bad       int      // pieces that did not verify
	Conns     int      // connections at the end
	Dials     int
	Reports   []swarm.Report
}

type kind uint8

const (
	kTick kind = iota
	kEvent
	kFree    // the uplink can begin with the next block; conn's has left the host, if given
	kSent    // conn's block has left the host and the zone
	kControl // the run's own
)

type event struct {
	at   int64
	seq  uint64
	h    *host
	ev   swarm.Event
	conn *conn
	fn   func()
	n    int32
	kind kind
}

type run struct {
	cfg    Config
	rng    *rand.Rand
	queue  queue
	now    int64
	hosts  []*host
	byName map[string]*host
	blobs  []*blobState
	byID   map[piece.ID]*blobState
	conns  []*conn // by ID - 1
	events int
	open   int // hosts that are still downloading
	zones  map[string]*zone

	tracker tracker
}

// zone is what a zone has in common: its links with the others.
type zone struct {
	outFree, inFree int64 // when the next block may go through
	in              int64 // bytes
}

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

	done    map[piece.ID]bool
	sentAll map[piece.ID]*[2]*piece.Bits // pieces and blocks that a host with Seed has sent
	res     *HostResult
}

type txBlock struct {
	c     *conn
	m     *wire.Block
	after []wire.Message
}

// conn is a connection; side 0 dialed it.
type conn struct {
	id     swarm.ConnID
	live   [2]bool // the side has it
	ends   [2]*host
	last   [2]int64 // when the last message of the side arrives
	queued [2]int   // its blocks in the uplink's queue
	dead   bool
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

var base = time.Unix(1_700_000_000, 0)

// Run simulates until every downloader that can finish has, or Limit.
func Run(cfg Config) Result {
	if cfg.Latency == 0 {
		cfg.Latency = 250 * time.Microsecond
	}
	if cfg.ZoneLatency == 0 {
		cfg.ZoneLatency = cfg.Latency
	}
	if cfg.StoreDelay == 0 {
		cfg.StoreDelay = 100 * time.Microsecond
	}
	if cfg.StoreRate == 0 {
		cfg.StoreRate = 2e9
	}
	if cfg.Limit == 0 {
		cfg.Limit = time.Hour
	}
	if k := int64(cfg.Coarse); k > 1 {
		cfg = cfg.divided(k)
	}
	r := &run{
		zones: make(map[string]*zone),
		cfg:   cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		byName: make(map[string]*host), byID: make(map[piece.ID]*blobState),
	}
	for k, b := range cfg.Blobs {
		s := &blobState{Blob: b, index: k}
		s.id = piece.ID{Alg: piece.SHA256, Size: b.Size}
		binary.BigEndian.PutUint64(s.id.Sum[:], cfg.Seed)
		s.id.Sum[31] = byte(k + 1)
		s.sums = piece.NewSums(s.id)
		states, wrong := make([]byte, 32*s.sums.MaxLen()), make([]byte, 32*s.sums.MaxLen())
		for i := range states {
			states[i] = byte(r.rng.Uint32())
			wrong[i] = states[i] ^ 0x55
		}
		if err := s.sums.Append(states); err != nil {
			panic(err)
		}
		s.wrong = wrong
		r.blobs = append(r.blobs, s)
		r.byID[s.id] = s
	}
	r.tracker.r = r
	r.tracker.start()
	if cfg.TrackerFor > 0 {
		r.tracker.restart(cfg.TrackerDown, cfg.TrackerFor)
	}
	res := Result{Hosts: make([]HostResult, len(cfg.Hosts)), Zones: make(map[string]int64)}
	for k, hc := range cfg.Hosts {
		if hc.Name == "" {
			hc.Name = fmt.Sprintf("h%d", k)
		}
		if hc.Role == 0 {
			hc.Role = wire.RoleAgent
		}
		if hc.Up == 0 {
			hc.Up = 1e12
		}
		if hc.Down == 0 {
			hc.Down = 1e12
		}
		h := &host{
			Host: hc, r: r, index: k, tick: math.MaxInt64,
			have: make(map[piece.ID]*piece.Bits), done: make(map[piece.ID]bool), res: &res.Hosts[k],
		}
		if h.zone = r.zones[h.Zone]; h.zone == nil {
			h.zone = &zone{}
			r.zones[h.Zone] = h.zone
		}
		h.res.Seed, h.res.Aside = h.Seed, h.Aside
		h.res.BlobDone = make([]time.Duration, len(r.blobs))
		pc := hc.Peer
		pc.Node, pc.Zone, pc.Role, pc.Seed = hc.Name, hc.Zone, hc.Role, cfg.Seed
		h.peer = swarm.NewPeer(pc)
		r.hosts = append(r.hosts, h)
		r.byName[h.Name] = h
		if h.expected() {
			r.open++
		}
		r.control(int64(hc.Join), h.join)
	}
	for r.open > 0 {
		e, ok := r.queue.pop()
		if !ok || e.at > int64(cfg.Limit) {
			break
		}
		r.now = e.at
		r.perform(e)
	}
	res.Events = r.events
	res.Time = time.Duration(r.now)
	for _, h := range r.hosts {
		h.res.Conns = len(h.conns)
		for _, b := range r.blobs {
			if s, ok := h.peer.Status(b.id); ok {
				h.res.Redundant += s.Redundant
			}
		}
		k := int64(max(cfg.Coarse, 1))
		h.res.Up, h.res.Down, h.res.Redundant, h.res.Early = k*h.res.Up, k*h.res.Down, k*h.res.Redundant, k*h.res.Early
	}
	for name, z := range r.zones {
		res.Zones[name] = int64(max(cfg.Coarse, 1)) * z.in
	}
	return res
}

// divided returns cfg with all that is counted in bytes divided by k.
func (cfg Config) divided(k int64) Config {
	f := float64(k)
	cfg.Blobs, cfg.Hosts = slices.Clone(cfg.Blobs), slices.Clone(cfg.Hosts)
	for i := range cfg.Blobs {
		cfg.Blobs[i].Size /= k
		cfg.Blobs[i].SourceRate /= f
	}
	for i := range cfg.Hosts {
		h := &cfg.Hosts[i]
		h.Up, h.Down, h.Limits = h.Up/f, h.Down/f, slices.Clone(h.Limits)
		for j := range h.Limits {
			h.Limits[j].Up /= k
			h.Limits[j].Down /= k
		}
	}
	cfg.StoreRate /= f
	cfg.ZoneRate /= f
	cfg.MessageBytes /= int(k)
	return cfg
}

// expected reports whether the run goes on until h has everything.
func (h *host) expected() bool {
	return !h.Seed && !h.Aside && h.Crash == 0 && h.Leave == 0 && (h.Freeze == 0 || h.Thaw > 0)
}

func (r *run) perform(e event) {
	h := e.h
	if e.kind == kControl {
		e.fn()
		return
	}
	if h.frozen {
		if h.thaw > 0 {
			e.at = h.thaw
			r.queue.push(e)
		}
		return
	}
	switch e.kind {
	case kFree, kSent:
		if e.kind == kFree {
			h.busy = false
			h.transmit()
		}
		if e.conn != nil && h.conn(e.conn.id) != nil {
			h.step(swarm.EvBlockSent{Conn: e.conn.id, N: int(e.n)})
		}
	case kTick:
		if h.tick != e.at || !h.up {
			return
		}
		h.tick = math.MaxInt64
		h.step(swarm.EvTick{})
	case kEvent:
		if e.conn != nil {
			if _, ok := e.ev.(swarm.EvDisconnected); !ok && e.conn.dead {
				return
			}
			if !e.conn.live[e.conn.side(h)] {
				return
			}
			switch e.ev.(type) {
			case swarm.EvDisconnected:
				h.drop(e.conn)
			case swarm.EvMessage:
				if r.cfg.MessageCost > 0 {
					if r.now < h.cpuFree { // in the order in which they came
						e.at = h.cpuFree
						r.queue.push(e)
						return
					}
					h.cpuFree = r.now + int64(r.cfg.MessageCost)
				}
			}
		}
		h.step(e.ev)
	}
}

func (r *run) at(t int64) time.Time { return base.Add(time.Duration(t)) }

func (r *run) control(at int64, fn func()) {
	r.queue.push(event{at: at, kind: kControl, fn: fn})
}

func (r *run) latency(a, b *host) int64 {
	if a.Zone != b.Zone {
		return int64(r.cfg.ZoneLatency)
	}
	return int64(r.cfg.Latency)
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

// The shared bytes. The first byte of a block's data says what it is.
var bytesOf = [...][]byte{make([]byte, piece.MaxBlock), marked(1), marked(2)}

func marked(b byte) []byte {
	p := make([]byte, piece.MaxBlock)
	p[0] = b
	return p
}

func (h *host) data(n int) []byte {
	h.lied++
	if h.Lie&LieAll != 0 || h.Lie&LieBytes != 0 && h.lied%3 == 0 {
		return bytesOf[1+h.index%2][:n:n]
	}
	return bytesOf[0][:n:n]
}

// lie changes a message that a liar sends.
func (h *host) lie(m wire.Message) wire.Message {
	if h.Lie == 0 {
		return m
	}
	switch m := m.(type) {
	case *wire.Sums:
		if h.Lie&LieSums != 0 && len(m.States) > 0 {
			wrong := *m
			for _, b := range h.r.blobs {
				if b.sums.MaxLen() >= int(m.From)+len(m.States)/32 && string(b.sums.Range(int(m.From), len(m.States)/32)) == string(m.States) {
					wrong.States = b.wrong[int(m.From)*32:][:len(m.States)]
				}
			}
			wrong.Proven = true
			return &wrong
		}
	case *wire.Open:
		wrong := *m
		if h.Lie&LieHaves != 0 {
			wrong.Complete, wrong.Bits = true, nil
		}
		if h.Lie&LieSizes != 0 {
			wrong.ID.Size++
		}
		return &wrong
	}
	return m
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
	}
	h.storeAt = max(h.storeAt, r.now) + int64(float64(size)/r.cfg.StoreRate*1e9)
	r.queue.push(event{at: h.storeAt + int64(r.cfg.StoreDelay), kind: kEvent, h: h, ev: ev})
}

func (h *host) later(d time.Duration, ev swarm.Event) {
	h.r.queue.push(event{at: h.r.now + int64(d), kind: kEvent, h: h, ev: ev})
}

// send delivers a small message after what was sent before it.
func (h *host) send(c *conn, m wire.Message) {
	if c.dead {
		return
	}
	h.small += h.r.cfg.MessageBytes
	s := c.side(h)
	if c.queued[s] > 0 {
		for k := len(h.queue) - 1; k >= 0; k-- {
			if h.queue[k].c == c {
				h.queue[k].after = append(h.queue[k].after, m)
				return
			}
		}
	}
	h.deliver(c, s, h.r.now+h.r.latency(c.ends[0], c.ends[1]), m)
}

func (h *host) deliver(c *conn, s int, at int64, m wire.Message) {
	at = max(at, c.last[s])
	c.last[s] = at
	h.r.queue.push(event{at: at, kind: kEvent, h: c.ends[1-s], conn: c, ev: swarm.EvMessage{Conn: c.id, Message: m}})
}

// transmit begins to send the next block.
func (h *host) transmit() {
	r := h.r
	for !h.busy && len(h.queue) > 0 {
		t := h.queue[0]
		h.queue = h.queue[1:]
		c := t.c
		s := c.side(h)
		c.queued[s]--
		if c.dead {
			continue
		}
		n := len(t.m.Data)
		to := c.ends[1-s]
		up := float64(n+h.small) / h.Up
		h.small = 0
		free := r.now + int64(up*1e9)
		sent := free // when the last byte has left the zone, or the host
		if h.zone != to.zone && r.cfg.ZoneRate > 0 {
			d := int64(float64(n) / r.cfg.ZoneRate * 1e9)
			h.zone.outFree = max(h.zone.outFree, r.now) + d
			to.zone.inFree = max(to.zone.inFree, r.now) + d
			sent = max(sent, h.zone.outFree, to.zone.inFree)
		}
		begin := max(sent-(free-r.now)+r.latency(h, to), to.downFree)
		end := max(sent+r.latency(h, to), begin+int64(float64(n)/to.Down*1e9))
		to.downFree = end
		h.busy = true
		h.res.Up += int64(n)
		to.res.Down += int64(n)
		if h.zone != to.zone {
			to.zone.in += int64(n)
		}
		if sent == free {
			r.queue.push(event{at: free, kind: kFree, h: h, conn: c, n: int32(n)})
		} else {
			r.queue.push(event{at: free, kind: kFree, h: h})
			r.queue.push(event{at: sent, kind: kSent, h: h, conn: c, n: int32(n)})
		}
		h.deliver(c, s, end, t.m)
		for _, m := range t.after {
			h.deliver(c, s, end, m)
		}
	}
}

func (h *host) dial(a swarm.ActDial) {
	r := h.r
	h.res.Dials++
	to := r.byName[a.Node]
	if to == nil {
		h.later(r.cfg.Latency, swarm.EvDialFailed{Node: a.Node, Addr: a.Addr})
		return
	}
	lat := r.latency(h, to)
	r.control(r.now+2*lat, func() {
		if !h.up {
			return
		}
		if !to.up || to.frozen {
			d := time.Duration(lat)
			if to.frozen {
				d = 5 * time.Second
			}
			h.later(d, swarm.EvDialFailed{Node: a.Node, Addr: a.Addr})
			return
		}
		c := &conn{id: swarm.ConnID(len(r.conns) + 1), ends: [2]*host{h, to}, live: [2]bool{true, true}}
		r.conns = append(r.conns, c)
		h.conns, to.conns = append(h.conns, c), append(to.conns, c)
		c.last[1] = r.now + lat // the acceptor's Hello comes first
		r.queue.push(event{at: r.now, kind: kEvent, h: to, conn: c,
			ev: swarm.EvConnected{Conn: c.id, Peer: h.hello(), Inbound: true, RTT: time.Duration(2 * lat)}})
		r.queue.push(event{at: r.now + lat, kind: kEvent, h: h, conn: c,
			ev: swarm.EvConnected{Conn: c.id, Peer: to.hello(), RTT: time.Duration(2 * lat)}})
	})
}

func (h *host) hello() wire.Hello {
	return wire.Hello{Version: 1, Role: h.Role, Cluster: "sim", Node: h.Name, Zone: h.Zone, Addr: h.Name + ":1", Software: "sim"}
}

// hangUp tells the other side that a connection has ended.
func (h *host) hangUp(c *conn) {
	s := c.side(h)
	at := max(c.last[s], h.r.now+h.r.latency(c.ends[0], c.ends[1]))
	to := c.ends[1-s]
	h.r.control(at, func() { c.dead = true })
	h.r.queue.push(event{at: at, kind: kEvent, h: to, conn: c, ev: swarm.EvDisconnected{Conn: c.id}})
}

// join starts a host.
func (h *host) join() {
	r := h.r
	h.up = true
	for _, b := range r.blobs {
		if h.Seed && b.Sources != nil && !slices.Contains(b.Sources, h.index) {
			continue
		}
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
	if len(h.done) == len(r.blobs) {
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

// Events wait in slots of time, unsorted, each of slotLen; those of the present
// slot in a heap, by time and then by order of scheduling; those beyond the
// horizon in another.

const (
	slotLen = 1 << 14 // ns
	slots   = 1 << 15 // half a second in all
)

type queue struct {
	near, far heap
	slots     [slots][]event
	at        int64 // the slot that near is for
	n         int   // events in slots
	seq       uint64
}

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	switch slot := e.at / slotLen; {
	case slot <= q.at:
		q.near.push(e)
	case slot < q.at+slots:
		k := slot % slots
		q.slots[k] = append(q.slots[k], e)
		q.n++
	default:
		q.far.push(e)
	}
}

// pop returns the next event; ok is false if there is none.
func (q *queue) pop() (e event, ok bool) {
	for len(q.near) == 0 {
		switch {
		case q.n > 0:
			q.at++
		case len(q.far) > 0:
			q.at = q.far[0].at / slotLen
		default:
			return event{}, false
		}
		k := q.at % slots
		for _, e := range q.slots[k] {
			q.near.push(e)
		}
		q.n -= len(q.slots[k])
		clear(q.slots[k])
		q.slots[k] = q.slots[k][:0]
		for len(q.far) > 0 && q.far[0].at/slotLen <= q.at {
			q.near.push(q.far.pop())
		}
	}
	return q.near.pop(), true
}

type heap []event

func (e *event) less(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (h *heap) push(e event) {
	*h = append(*h, e)
	q := *h
	k := len(q) - 1
	for k > 0 {
		up := (k - 1) / 4
		if !q[k].less(&q[up]) {
			break
		}
		q[k], q[up] = q[up], q[k]
		k = up
	}
}

func (h *heap) pop() event {
	q := *h
	e := q[0]
	last := len(q) - 1
	q[0] = q[last]
	q[last] = event{}
	q = q[:last]
	*h = q
	k := 0
	for {
		best := k
		for c := 4*k + 1; c <= 4*k+4 && c < last; c++ {
			if q[c].less(&q[best]) {
				best = c
			}
		}
		if best == k {
			return e
		}
		q[k], q[best] = q[best], q[k]
		k = best
	}
}
