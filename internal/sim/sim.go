package sim

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

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

var base = time.Unix(1_700_000_000, 0)

// Run simulates until every downloader that can finish has, or Limit.
func Run(cfg Config) Result {
	cfg = cfg.withDefaults()
	if k := int64(cfg.Coarse); k > 1 {
		cfg = cfg.divided(k)
	}
	r := &run{
		zones: make(map[string]*zone),
		cfg:   cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		byName: make(map[string]*host), byID: make(map[piece.ID]*blobState),
	}
	for k, b := range cfg.Blobs {
		r.addBlob(k, b)
	}
	r.tracker.r = r
	r.tracker.start()
	if cfg.TrackerFor > 0 {
		r.tracker.restart(cfg.TrackerDown, cfg.TrackerFor)
	}
	res := Result{Hosts: make([]HostResult, len(cfg.Hosts)), Zones: make(map[string]int64)}
	for k, hc := range cfg.Hosts {
		r.addHost(k, hc, &res.Hosts[k])
	}
	for r.open > 0 {
		e, ok := r.queue.pop()
		if !ok || e.at > int64(cfg.Limit) {
			break
		}
		r.now = e.at
		r.perform(e)
	}
	r.result(&res)
	return res
}

// addBlob makes the k-th blob's states, the true ones and those of liars.
func (r *run) addBlob(k int, b Blob) {
	s := &blobState{Blob: b, index: k}
	s.id = piece.ID{Alg: piece.SHA256, Size: b.Size}
	binary.BigEndian.PutUint64(s.id.Sum[:], r.cfg.Seed)
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

// addHost has the k-th host join at its time; res is where its result goes.
func (r *run) addHost(k int, hc Host, res *HostResult) {
	h := &host{
		Host: hc.withDefaults(k), r: r, index: k, tick: math.MaxInt64,
		have: make(map[piece.ID]*piece.Bits), done: make(map[piece.ID]bool), res: res,
	}
	if h.zone = r.zones[h.Zone]; h.zone == nil {
		h.zone = &zone{}
		r.zones[h.Zone] = h.zone
	}
	h.res.Seed, h.res.Aside = h.Seed, h.Aside
	h.res.BlobDone, h.res.Still = make([]time.Duration, len(r.blobs)), make([]time.Duration, len(r.blobs))
	h.moved = make([]int64, len(r.blobs))
	pc := h.Peer
	pc.Node, pc.Zone, pc.Role, pc.Seed = h.Name, h.Zone, h.Role, r.cfg.Seed
	h.peer = swarm.NewPeer(pc)
	r.hosts = append(r.hosts, h)
	r.byName[h.Name] = h
	if h.expected() {
		r.open++
	}
	r.control(int64(h.Join), h.join)
}

// result adds up what hosts and zones have moved.
func (r *run) result(res *Result) {
	res.Events = r.events
	res.Time = time.Duration(r.now)
	k := int64(max(r.cfg.Coarse, 1))
	for _, h := range r.hosts {
		h.res.Conns = len(h.conns)
		for _, b := range r.blobs {
			if s, ok := h.peer.Status(b.id); ok {
				h.res.Redundant += s.Redundant
			}
		}
		h.res.Up, h.res.Down, h.res.Redundant, h.res.Early = k*h.res.Up, k*h.res.Down, k*h.res.Redundant, k*h.res.Early
	}
	for _, b := range r.blobs {
		all := piece.NewBits(b.id.Pieces())
		for _, h := range r.hosts {
			have := h.have[b.id]
			if have == nil {
				have = piece.NewBits(all.Len())
			}
			h.res.Parts = append(h.res.Parts, Part{have.Count(), have.Prefix()})
			for i := have.NextSet(0); i >= 0 && h.up && !h.Seed; i = have.NextSet(i + 1) {
				all.Set(i)
			}
		}
		res.Blobs = append(res.Blobs, Part{all.Count(), all.Prefix()})
	}
	for name, z := range r.zones {
		res.Zones[name] = k * z.in
	}
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
