package swarm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// lab drives a few Peers without latency, and writes down what they do. Blocks
// have no bytes but a mark: the first byte says whether they are right.
type lab struct {
	t      testing.TB
	start  time.Time
	now    time.Time
	names  []string
	ends   map[string]*end
	conns  map[ConnID][2]string
	next   ConnID
	log    strings.Builder
	blobs  []piece.ID
	sums   map[piece.ID]*piece.Sums
	wrong  map[piece.ID]*piece.Sums
	sparse int // the books are checked after so many events; 0: after each
	events int
}

// end is a node in the lab: a Peer, or a stranger for whom the test speaks.
type end struct {
	l                   *lab
	name                string
	peer                *Peer // nil for a stranger
	role                wire.Role
	zone                string
	corrupt             byte // the mark of the blocks it sends; 0: right
	lieSums             bool
	frozen              bool // sends nothing and hears nothing
	blackhole, trickles bool // dials are never answered; its blocks come, but slowly
	slow                bool // its blocks wait until released
	silent              bool // takes part in nothing but connections: blocks are not sent
	recheck             bool // its disk is fine when it rechecks
	stubborn            bool // stores nothing: EvStored is held back
	inbox               []Event
	held                []Event
	have                map[piece.ID]*piece.Bits
	heard               []wire.Message // by a stranger
	failed              []error
	reports             []Report
	complete            int
	sentB               int // blocks
	acts                []Action
}

func newLab(t testing.TB) *lab {
	start := time.Unix(1_800_000_000, 0)
	return &lab{
		t: t, start: start, now: start, ends: make(map[string]*end), conns: make(map[ConnID][2]string),
		sums: make(map[piece.ID]*piece.Sums), wrong: make(map[piece.ID]*piece.Sums),
	}
}

// blob makes a blob of n bytes.
func (l *lab) blob(n int64) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: n}
	binary.BigEndian.PutUint64(id.Sum[:], uint64(len(l.blobs)+1)<<56)
	l.blobs = append(l.blobs, id)
	rng := rand.New(rand.NewPCG(uint64(n), uint64(len(l.blobs))))
	fill := func() *piece.Sums {
		s := piece.NewSums(id)
		b := make([]byte, 32*s.MaxLen())
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if err := s.Append(b); err != nil {
			l.t.Fatal(err)
		}
		return s
	}
	l.sums[id], l.wrong[id] = fill(), fill()
	return id
}

func (l *lab) add(name string, cfg PeerConfig) *end {
	if cfg.Role == 0 {
		cfg.Role = wire.RoleAgent
	}
	cfg.Node, cfg.Seed = name, 1
	e := l.stranger(name)
	e.role, e.zone, e.peer = cfg.Role, cfg.Zone, NewPeer(cfg)
	return e
}

// stranger adds a node without a Peer.
func (l *lab) stranger(name string) *end {
	e := &end{l: l, name: name, role: wire.RoleAgent, have: make(map[piece.ID]*piece.Bits), recheck: true}
	l.ends[name] = e
	l.names = append(l.names, name)
	return e
}

func (l *lab) note(format string, args ...any) {
	fmt.Fprintf(&l.log, "%6.3f ", l.now.Sub(l.start).Seconds())
	fmt.Fprintf(&l.log, format+"\n", args...)
}

// seed joins with everything; want with the given pieces.
func (e *end) seed(id piece.ID) { e.join(id, false, e.l.all(id), e.l.sums[id].Clone(), true) }

func (e *end) want(id piece.ID, have ...int) {
	b := piece.NewBits(id.Pieces())
	sums := piece.NewSums(id)
	for _, i := range have {
		b.Set(i)
		sums = e.l.sums[id].Clone()
	}
	e.join(id, true, b, sums, false)
}

func (l *lab) all(id piece.ID) *piece.Bits {
	b := piece.NewBits(id.Pieces())
	b.SetAll()
	return b
}

func (e *end) join(id piece.ID, want bool, have *piece.Bits, sums *piece.Sums, proven bool) {
	e.have[id] = have.Clone()
	e.step(EvJoin{ID: id, Want: want, Have: have, Sums: sums, Proven: proven})
}

func (e *end) named(id piece.ID, names ...string) {
	ev := EvPeers{ID: id}
	for _, n := range names {
		n, source := strings.CutSuffix(n, "*")
		o := e.l.ends[n]
		info := PeerInfo{Node: n, Addr: n + ":1", Role: wire.RoleAgent, Source: source}
		if o != nil {
			info.Role, info.Zone = o.role, o.zone
		}
		ev.Peers = append(ev.Peers, info)
	}
	e.step(ev)
}

func (e *end) hello() wire.Hello {
	return wire.Hello{Version: 1, Cluster: "lab", Node: e.name, Zone: e.zone, Role: e.role, Addr: e.name + ":1"}
}

// connect makes a connection that a dialed.
func (l *lab) connect(a, b string) ConnID {
	l.next++
	id := l.next
	l.conns[id] = [2]string{a, b}
	x, y := l.ends[a], l.ends[b]
	y.inbox = append(y.inbox, EvConnected{Conn: id, Peer: x.hello(), Inbound: true})
	x.inbox = append(x.inbox, EvConnected{Conn: id, Peer: y.hello()})
	return id
}

func (l *lab) other(id ConnID, name string) *end {
	c, ok := l.conns[id]
	switch {
	case !ok:
		return nil
	case c[0] == name:
		return l.ends[c[1]]
	}
	return l.ends[c[0]]
}

// say sends a message for a stranger, or against a Peer's will.
func (e *end) say(id ConnID, m wire.Message) {
	if o := e.l.other(id, e.name); o != nil {
		o.inbox = append(o.inbox, EvMessage{Conn: id, Message: m})
	}
}

// step gives the end's Peer an event now.
func (e *end) step(ev Event) {
	if e.peer == nil {
		if m, ok := ev.(EvMessage); ok {
			e.heard = append(e.heard, m.Message)
			if _, ok := m.Message.(*wire.Block); !ok {
				e.l.note("%s hears %s", e.name, show(m.Message))
			}
		}
		return
	}
	acts := slices.Clone(e.peer.Step(e.l.now, ev))
	e.l.events++
	if err := e.l.audit(e.peer); err != nil {
		e.l.t.Fatalf("%s after %T%+v: %v\n%s", e.name, ev, ev, err, e.l.log.String())
	}
	e.acts = append(e.acts, acts...)
	for _, a := range acts {
		e.perform(a)
	}
}

// audit checks a Peer's books.
func (l *lab) audit(p *Peer) error {
	if l.sparse > 0 && l.events%l.sparse != 0 {
		return nil
	}
	return p.check()
}

func (e *end) perform(a Action) {
	l := e.l
	switch a := a.(type) {
	case ActSend:
		o := l.other(a.Conn, e.name)
		if o == nil {
			return
		}
		m := a.Message
		if s, ok := m.(*wire.Sums); ok && e.lieSums {
			w := *s
			for _, id := range l.blobs {
				if r := l.wrong[id].Range(int(s.From), len(s.States)/32); len(r) == len(s.States) {
					w.States = r
				}
			}
			m = &w
		}
		l.note("%s > %s: %s", e.name, o.name, show(m))
		o.inbox = append(o.inbox, EvMessage{Conn: a.Conn, Message: m})
	case ActSendBlock:
		e.sentB++
		o := l.other(a.Conn, e.name)
		if o == nil {
			return
		}
		data := make([]byte, a.Length)
		data[0] = e.corrupt
		m := &wire.Block{Blob: a.Handle, Piece: uint32(a.Piece), Offset: uint32(a.Offset), Queue: a.Queue, Data: data}
		l.note("%s > %s: %s", e.name, o.name, show(m))
		if e.silent {
			return
		}
		sent := EvBlockSent{Conn: a.Conn, N: a.Length}
		if e.slow {
			e.held = append(e.held, sent)
			o.held = append(o.held, EvMessage{Conn: a.Conn, Message: m})
			return
		}
		o.inbox = append(o.inbox, EvMessage{Conn: a.Conn, Message: m})
		e.inbox = append(e.inbox, sent)
	case ActStore:
		ev := EvStored{ID: a.ID, Piece: a.Piece}
		size := 0
		for _, d := range a.Data {
			size += len(d)
			if d[0] != 0 {
				ev.Hash[1] = d[0]
			}
		}
		if size != a.ID.PieceSize(a.Piece) {
			l.t.Fatalf("%s stores %d bytes of piece %d", e.name, size, a.Piece)
		}
		// What is marked is what a false list is of.
		if marked := ev.Hash[1] != 0; marked == a.Sums.Agrees(l.sums[a.ID], a.Piece) {
			ev.Hash[0], ev.Err = 1, piece.ErrMismatch
			l.note("%s: piece %d does not match", e.name, a.Piece)
		} else {
			l.note("%s: piece %d stored", e.name, a.Piece)
			e.have[a.ID].Set(a.Piece)
		}
		if e.stubborn {
			e.held = append(e.held, ev)
		} else {
			e.inbox = append(e.inbox, ev)
		}
	case ActRecheck:
		l.note("%s: rechecks piece %d, intact: %v", e.name, a.Piece, e.recheck)
		if e.recheck {
			e.inbox = append(e.inbox, EvIntact{a.ID, a.Piece})
		} else {
			e.have[a.ID].Clear(a.Piece)
			e.inbox = append(e.inbox, EvLost{a.ID, a.Piece})
		}
	case ActAdopt:
		l.note("%s: adopts %d states", e.name, a.Sums.Len())
	case ActComputeSums:
		l.note("%s: computes sums", e.name)
		e.inbox = append(e.inbox, EvLocal{ID: a.ID, To: a.ID.Pieces(), States: l.sums[a.ID].Bytes()}, EvProven{a.ID})
	case ActComplete:
		l.note("%s: complete", e.name)
		e.complete++
		if !e.have[a.ID].Full() {
			l.t.Fatalf("%s: complete without every piece", e.name)
		}
		e.inbox = append(e.inbox, EvProven{a.ID})
	case ActDial:
		l.note("%s: dials %s", e.name, a.Node)
		if o := l.ends[a.Node]; o == nil || o.frozen {
			e.inbox = append(e.inbox, EvDialFailed{a.Node, a.Addr, ReasonRefused, errors.New("connection refused")})
		} else if o.blackhole {
			l.note("%s: no answer", a.Node)
		} else {
			l.connect(e.name, a.Node)
		}
	case ActClose:
		o := l.other(a.Conn, e.name)
		if o == nil {
			return
		}
		l.note("%s closes the connection with %s: %v, %s", e.name, o.name, a.Code, a.Text)
		if o.peer == nil {
			o.heard = append(o.heard, &wire.Error{Code: a.Code, Text: a.Text})
		} else {
			o.inbox = append(o.inbox, EvMessage{Conn: a.Conn, Message: &wire.Error{Code: a.Code, Text: a.Text}})
		}
		delete(l.conns, a.Conn)
		o.inbox = append(o.inbox, EvDisconnected{a.Conn})
		e.inbox = append(e.inbox, EvDisconnected{a.Conn})
	case ActListen:
		ago := time.Duration(math.MaxInt64)
		if o := l.other(a.Conn, e.name); o != nil && o.trickles {
			ago = 0
		}
		e.inbox = append(e.inbox, EvHeard{a.Conn, ago})
	case ActDoubt:
		l.note("%s: what is stored is in doubt: %v", e.name, a.On)
	case ActNoSource:
		l.note("%s: no source is left", e.name)
	case ActInvite:
		l.note("%s: invited", e.name)
	case ActFail:
		l.note("%s: fails: %v", e.name, a.Err)
		e.failed = append(e.failed, a.Err)
	case ActReport:
		l.note("%s: reports %s", e.name, showReport(a.Report))
		e.reports = append(e.reports, a.Report)
	}
}

func showReport(r Report) string {
	kind := map[ReportKind]string{
		ReportConvicted: "convicted", ReportBadPiece: "bad piece", ReportStalled: "stalled", ReportSumsReplaced: "sums replaced",
		ReportUnreachable: "unreachable",
	}[r.Kind]
	s := fmt.Sprintf("%s %s", kind, r.Node)
	switch {
	case r.Kind == ReportUnreachable:
		s += fmt.Sprintf(", %v", r.Err)
		if r.Repeated {
			s += " (again)"
		}
	case r.Kind != ReportStalled:
		s += fmt.Sprintf(", piece %d", r.Piece)
	}
	return s
}

// show renders a message for transcripts.
func show(m wire.Message) string {
	any := func(i uint32) string {
		if i == wire.AnyPiece {
			return "any"
		}
		return fmt.Sprint(i)
	}
	switch m := m.(type) {
	case *wire.Open:
		s := fmt.Sprintf("Open %d %x", m.Blob, m.ID.Sum[0])
		if m.Want {
			s += " want"
		}
		if m.Complete {
			s += " complete"
		} else if len(m.Bits) > 0 {
			s += fmt.Sprintf(" %08b", m.Bits)
		}
		return s
	case *wire.Close:
		return fmt.Sprintf("Close %d", m.Blob)
	case *wire.Have:
		return fmt.Sprintf("Have %d %d", m.Blob, m.Pieces)
	case *wire.SumsRequest:
		return fmt.Sprintf("SumsRequest %d %d+%d", m.Blob, m.From, m.Count)
	case *wire.Sums:
		s := fmt.Sprintf("Sums %d %d+%d", m.Blob, m.From, len(m.States)/32)
		if m.Proven {
			s += " proven"
		}
		return s
	case *wire.Request:
		return fmt.Sprintf("Request %d %s %d+%d", m.Blob, any(m.Piece), m.Offset, m.Length)
	case *wire.Block:
		return fmt.Sprintf("Block %d %d %d+%d queue %d", m.Blob, m.Piece, m.Offset, len(m.Data), m.Queue)
	case *wire.Busy:
		return fmt.Sprintf("Busy %d %s %d queue %d retry %d", m.Blob, any(m.Piece), m.Offset, m.Queue, m.Retry)
	case *wire.Lost:
		return fmt.Sprintf("Lost %d %s", m.Blob, any(m.Piece))
	case *wire.Cancel:
		return fmt.Sprintf("Cancel %d %s", m.Blob, any(m.Piece))
	case *wire.Bad:
		return fmt.Sprintf("Bad %d %d", m.Blob, m.Piece)
	case *wire.Ping:
		return "Ping"
	case *wire.Error:
		return fmt.Sprintf("Error %v %s", m.Code, m.Text)
	}
	return fmt.Sprintf("%T", m)
}

// run delivers what is under way until nothing is left, without time passing.
func (l *lab) run() {
	for range 100_000 {
		some := false
		for _, n := range l.names {
			e := l.ends[n]
			if e.frozen || len(e.inbox) == 0 {
				continue
			}
			ev := e.inbox[0]
			e.inbox = e.inbox[1:]
			some = true
			if m, ok := ev.(EvMessage); ok && l.other(m.Conn, e.name) == nil {
				if _, last := m.Message.(*wire.Error); !last {
					continue
				}
			}
			e.step(ev)
		}
		if !some {
			return
		}
	}
	l.t.Fatalf("the lab does not come to rest\n%s", l.log.String()[max(0, l.log.Len()-5000):])
}

// pass lets d pass, with ticks.
func (l *lab) pass(d time.Duration) {
	l.run()
	for until := l.now.Add(d); ; {
		var first time.Time
		for _, n := range l.names {
			e := l.ends[n]
			if e.peer == nil || e.frozen {
				continue
			}
			if t := e.peer.Deadline(); !t.IsZero() && (first.IsZero() || t.Before(first)) {
				first = t
			}
		}
		if first.IsZero() || first.After(until) {
			l.now = until
			return
		}
		if first.After(l.now) {
			l.now = first
		}
		for _, n := range l.names {
			e := l.ends[n]
			if e.peer == nil || e.frozen {
				continue
			}
			if t := e.peer.Deadline(); !t.IsZero() && !t.After(l.now) {
				e.step(EvTick{})
				if t := e.peer.Deadline(); !t.IsZero() && t.Before(l.now) {
					l.t.Fatalf("%s: a deadline of %v is past after a tick at %v", e.name, t, l.now)
				}
			}
		}
		l.run()
	}
}

// release hands over what was held back.
func (e *end) release() {
	e.inbox = append(e.inbox, e.held...)
	e.held = nil
}
