package state

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/capelin-io/capelin/control/ring/ringtest"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// world drives a Tracker in virtual time and writes down what it does.
type world struct {
	t     *testing.T
	m     *Tracker
	start time.Time
	now   time.Time
	out   strings.Builder
	nodes map[Stream]string
}

func newWorld(t *testing.T, cfg Config) *world {
	start := time.Unix(1_000_000, 0)
	return &world{t: t, m: New(cfg, 1, start), start: start, now: start, nodes: map[Stream]string{}}
}

func (w *world) step(ev Event) []Action {
	acts := slices.Clone(w.m.Step(w.now, ev))
	check(w.t, w.m)
	for _, a := range acts {
		w.print(a)
	}
	return acts
}

// advance passes time, ticking at every deadline.
func (w *world) advance(d time.Duration) (acts []Action) {
	end := w.now.Add(d)
	for i := 0; ; i++ {
		dl := w.m.Deadline()
		if dl.IsZero() || dl.After(end) {
			break
		}
		if i > 1000 {
			w.t.Fatalf("deadlines do not move: %v", dl.Sub(w.start))
		}
		w.now = latest(w.now, dl)
		acts = append(acts, w.step(EvTick{})...)
	}
	w.now = end
	return acts
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (w *world) print(a Action) {
	p := func(format string, args ...any) {
		fmt.Fprintf(&w.out, "%6dms ", w.now.Sub(w.start).Milliseconds())
		fmt.Fprintf(&w.out, format+"\n", args...)
	}
	switch a := a.(type) {
	case ActClose:
		p("close %s", w.nodes[a.Stream])
	case ActReport:
		p("# %v: %s %s %s", a.Report.Kind, a.Report.Node, nameOf(a.Report.ID), a.Report.Text)
	case ActSend:
		to := w.nodes[a.Stream]
		m := a.Message
		if m.Welcome != nil {
			s := ""
			if m.Welcome.Namesake != "" {
				s = " namesake=" + m.Welcome.Namesake
			}
			p("%s < welcome age=%dms%s", to, m.Welcome.AgeMs, s)
		}
		for _, s := range m.Sums {
			p("%s < sums %s %x", to, blobName(s.Blob), s.Hash[:min(1, len(s.Hash))])
		}
		for _, ps := range m.Peers {
			var l []string
			for _, n := range ps.Gone {
				l = append(l, "-"+n)
			}
			for _, q := range ps.Peers {
				s := q.Node
				if q.Complete {
					s += "*"
				}
				if q.Source {
					s += "!"
				}
				if q.Addr != q.Node+":1" || len(q.Addrs) > 0 { // not as hello has it
					s += fmt.Sprintf("@%s", strings.Join(append([]string{q.Addr}, q.Addrs...), ","))
				}
				l = append(l, s)
			}
			if ps.Share != nil {
				l = append(l, fmt.Sprintf("share=%04x", *ps.Share))
			}
			if u := ps.Upstream; u != nil {
				l = append(l, fmt.Sprintf("upstream=%v", u.Registries))
				if u.Mismatch {
					l = append(l, "mismatch")
				}
			}
			p("%s < peers %s: %s", to, blobName(ps.Blob), strings.Join(l, " "))
		}
		for _, v := range m.Verdicts {
			s := strings.TrimPrefix(v.Kind.String(), "KIND_")
			if v.RetryMs > 0 {
				s += fmt.Sprintf(" %dms", v.RetryMs)
			}
			p("%s < verdict %s: %s", to, blobName(v.Blob), s)
		}
		for _, e := range m.Enough {
			for i := range e.Blobs.Len() {
				p("%s < enough %s", to, nameOf(e.Blobs.ID(i)))
			}
		}
		for _, a := range m.Accepts {
			p("%s < accept %08b", to, a.Blobs)
		}
		for _, c := range m.Commands {
			p("%s < command %d", to, c.Id)
		}
		for _, b := range m.Lookups {
			p("%s < lookup %s", to, blobName(b))
		}
	}
}

func testID(name string) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
	copy(id.Sum[:32], name)
	return id
}

func nameOf(id piece.ID) string         { return strings.TrimRight(string(id.Sum[:32]), "\x00") }
func blobName(b *trackerpb.Blob) string { id, _ := b.ID(); return nameOf(id) }

func hello(node, zone string, role trackerpb.Role) *trackerpb.Hello {
	return &trackerpb.Hello{Version: 1, Cluster: "c", Node: node, Zone: zone, Addr: node + ":1", Role: role}
}

// check looks at every invariant of the tracker's own bookkeeping.
func check(t *testing.T, m *Tracker) {
	t.Helper()
	entries, wants, leases := 0, 0, 0
	unstarted := map[*agent]int{}
	keyed := 0
	for _, k := range m.keys {
		keyed += k.swarms
	}
	if n := len(m.swarms) - len(m.freeSwarm); len(m.index) != n || keyed != n {
		t.Fatalf("%d swarms are in the index and %d have keys, of %d", len(m.index), keyed, n)
	}
	for id, s := range m.index {
		slot := s.slot
		k := m.keys[trackerpb.BlobKey(id)]
		if s.id != id || m.swarms[slot] != s || k.s != nil && k.s != s {
			t.Fatalf("index of %s is broken", nameOf(id))
		}
		complete, have := 0, 0
		for i, mb := range s.members {
			a := m.agents[mb.agent]
			if a == nil || a.gone || a.entries[slot] != uint32(i) || mb.flags == 0 {
				t.Fatalf("%s: member %d is broken: %+v", nameOf(id), i, mb)
			}
			if mb.flags&fComplete != 0 {
				complete++
				if i >= s.complete {
					t.Fatalf("%s: member %d is complete, beyond %d", nameOf(id), i, s.complete)
				}
			}
			if mb.flags&(fComplete|fPartial) != 0 {
				have++
			}
			if w := mb.flags&fWant != 0; w != (s.a != nil && s.a.byAgent[a] != nil) {
				t.Fatalf("%s: %s wants: %v", nameOf(id), a.hello.Node, w)
			}
			if l := mb.flags&fLease != 0; l != (s.a != nil && s.a.leaseOf(a) >= 0) {
				t.Fatalf("%s: %s has a lease: %v", nameOf(id), a.hello.Node, l)
			}
		}
		if complete != s.complete || have != s.have {
			t.Fatalf("%s: %d complete, %d have; counted as %d, %d", nameOf(id), complete, have, s.complete, s.have)
		}
		entries += len(s.members)
		if s.a == nil {
			if len(s.members) == 0 {
				t.Fatalf("%s: empty and kept", nameOf(id))
			}
			continue
		}
		wants += len(s.a.wants)
		leases += len(s.a.leases)
		for i, w := range s.a.wants {
			if w.pos != i || s.a.byAgent[w.agent] != w || w.kind == 0 {
				t.Fatalf("%s: want of %s is broken", nameOf(id), w.agent.hello.Node)
			}
		}
		for _, w := range s.a.wants {
			held := uint16(0)
			if h := s.a.shares[w.agent.hello.Zone]; h != nil {
				for i, o := range h {
					if o == w {
						held |= 1 << i
					}
				}
			}
			if held != w.share || w.share != w.shareTold || held != 0 && !w.grant {
				t.Fatalf("%s: %s holds shares %04x, has %04x and was told %04x", nameOf(id), w.agent.hello.Node, held, w.share, w.shareTold)
			}
		}
		for zone, h := range s.a.shares {
			for i, o := range h {
				if o != nil && (s.a.byAgent[o.agent] != o || o.agent.hello.Zone != zone) {
					t.Fatalf("%s: share %d of zone %s is with %s", nameOf(id), i, zone, o.agent.hello.Node)
				}
			}
		}
		for _, l := range s.a.leases {
			if !l.started {
				unstarted[l.agent]++
			}
		}
		for _, o := range s.a.look.asked {
			if o.gone || !o.isOrigin() || s.a.look.until <= m.now || len(s.a.look.asked) > 10*maxAsked {
				t.Fatalf("%s: look-up is broken: %+v, asked %s", nameOf(id), s.a.look, o.hello.Node)
			}
		}
		for _, w := range s.a.wants {
			if (len(w.lost) > 0) != slices.Contains(s.a.pleas, w) {
				t.Fatalf("%s: %s pleads, and %d are lost to it", nameOf(id), w.agent.hello.Node, len(w.lost))
			}
		}
		if len(s.a.pleas) > len(s.a.wants) {
			t.Fatalf("%s: %d plead of %d", nameOf(id), len(s.a.pleas), len(s.a.wants))
		}
		if s.a.look.again > m.now && s.a.heap < 0 {
			t.Fatalf("%s: what origins said is remembered, but nothing is due", nameOf(id))
		}
		if s.a.heap >= 0 && m.due[s.a.heap] != s {
			t.Fatalf("%s: not in the heap at %d", nameOf(id), s.a.heap)
		}
	}
	total, origins := 0, 0
	for _, a := range m.byStream {
		if a.isOrigin() {
			origins++
		}
		total += len(a.entries)
		if a.unstarted != unstarted[a] {
			t.Fatalf("%s: %d leases not started, counted as %d", a.hello.Node, unstarted[a], a.unstarted)
		}
	}
	if origins != len(m.origins) {
		t.Fatalf("%d origins, counted as %d", origins, len(m.origins))
	}
	st := m.Stats()
	if entries != st.Entries || total != entries || wants != st.Wants || leases != st.Leases {
		t.Fatalf("counted %d entries (%d by agents), %d wants, %d leases; stats %+v", entries, total, wants, leases, st)
	}
}

// TestTranscripts runs the stories in testdata. Peers are printed with * if
// complete and ! if a source, - for those gone. Regenerate with -rewrite, then
// read the diff.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var w *world
		next := Stream(0)
		streams := map[string]Stream{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if w != nil {
				w.t = t
				w.out.Reset()
			}
			switch d.Cmd {
			case "new":
				cfg := Config{Warmup: -1}
				for _, arg := range d.CmdArgs {
					dur, _ := time.ParseDuration(arg.Vals[0])
					n, _ := strconv.Atoi(arg.Vals[0])
					switch arg.Key {
					case "warmup":
						cfg.Warmup = dur
					case "lookup":
						cfg.Lookup = dur
					case "enough":
						cfg.Enough = n
					case "sample":
						cfg.Sample = n
					case "max-holders":
						cfg.MaxHolders = n
					case "max-blobs":
						cfg.MaxBlobs = n
					case "max-wants":
						cfg.MaxWants = n
					case "max-entries":
						cfg.MaxEntries = n
					case "max-swarms":
						cfg.MaxSwarms = n
					default:
						t.Fatalf("unknown option %s", arg.Key)
					}
				}
				w = newWorld(t, cfg)
				streams = map[string]Stream{}
			case "open": // open a zone=z role=origin undialable machine=m near=(a,b) more=(c) instance=1 from=ip
				next++
				role, zone := trackerpb.Role_ROLE_AGENT, ""
				for _, arg := range d.CmdArgs[1:] {
					switch arg.Key {
					case "zone":
						zone = arg.Vals[0]
					case "role":
						role = trackerpb.Role_ROLE_ORIGIN
					}
				}
				node := d.CmdArgs[0].Key
				streams[node] = next
				w.nodes[next] = node
				h := hello(node, zone, role)
				if slices.ContainsFunc(d.CmdArgs, func(a datadriven.CmdArg) bool { return a.Key == "undialable" }) {
					h.Addr = ""
				}
				open := EvOpen{Stream: next, Hello: h}
				for _, arg := range d.CmdArgs[1:] {
					switch arg.Key {
					case "machine":
						open.Machine = arg.Vals[0]
					case "near":
						open.Near = arg.Vals
					case "more":
						h.Addrs = arg.Vals
					case "instance":
						h.Instance, _ = strconv.ParseUint(arg.Vals[0], 10, 64)
					case "from":
						open.From = arg.Vals[0]
					}
				}
				w.step(open)
			case "close":
				w.step(EvClosed{streams[d.CmdArgs[0].Key]})
			case "advance":
				dur, err := time.ParseDuration(d.CmdArgs[0].Key)
				if err != nil {
					t.Fatal(err)
				}
				w.advance(dur)
			case "command":
				w.step(EvCommand{Node: d.CmdArgs[0].Key, Command: &trackerpb.Command{Id: 5}})
			case "send": // one batch per line: "<node>[,<node>] <what> <blob> …; …"
				for line := range strings.Lines(d.Input) {
					who, what, _ := strings.Cut(strings.TrimSpace(line), " ")
					for node := range strings.SplitSeq(who, ",") {
						b := &trackerpb.FromAgent{}
						for part := range strings.SplitSeq(what, ";") {
							parse(t, b, strings.Fields(part))
						}
						w.step(EvBatch{Stream: streams[node], Batch: b})
					}
				}
			case "stats":
				st := w.m.Stats()
				return fmt.Sprintf("streams=%d swarms=%d entries=%d wants=%d leases=%d\n", st.Streams, st.Swarms, st.Entries, st.Wants, st.Leases)
			default:
				t.Fatalf("unknown command %s", d.Cmd)
			}
			return w.out.String()
		})
	})
}

func parse(t *testing.T, b *trackerpb.FromAgent, f []string) {
	blob := trackerpb.FromID(testID(f[1]))
	hash := func(s string) []byte {
		h := make([]byte, 32)
		n, _ := strconv.ParseUint(s, 16, 8)
		h[0] = byte(n)
		return h
	}
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	switch f[0] {
	case "complete":
		a := &trackerpb.Announce{Blob: blob, State: trackerpb.State_STATE_COMPLETE}
		if arg(2) != "" {
			a.SumsHash = hash(arg(2))
		}
		b.Announces = append(b.Announces, a)
	case "partial":
		b.Announces = append(b.Announces, &trackerpb.Announce{Blob: blob, State: trackerpb.State_STATE_PARTIAL})
	case "gone":
		b.Announces = append(b.Announces, &trackerpb.Announce{Blob: blob})
	case "want": // may have the lease
		b.Wants = append(b.Wants, &trackerpb.Want{Blob: blob, Waiting: true, Grant: true})
	case "want-lost": // and these have failed it
		b.Wants = append(b.Wants, &trackerpb.Want{Blob: blob, Waiting: true, Grant: true, Lost: f[2:]})
	case "want-slow": // and what comes is slow
		b.Wants = append(b.Wants, &trackerpb.Want{Blob: blob, Waiting: true, Grant: true, Slow: true})
	case "want-second-slow":
		b.Wants = append(b.Wants, &trackerpb.Want{Blob: blob, Waiting: true, Slow: true})
	case "want-second": // waits, but this is the second tracker
		b.Wants = append(b.Wants, &trackerpb.Want{Blob: blob, Waiting: true})
	case "want-early": // does not wait yet
		b.Wants = append(b.Wants, &trackerpb.Want{Blob: blob, Grant: true})
	case "nothere":
		b.NotHere = append(b.NotHere, blob)
	case "unwant":
		b.Unwants = append(b.Unwants, blob)
	case "progress":
		n, _ := strconv.ParseInt(arg(2), 10, 64)
		b.Progress = append(b.Progress, &trackerpb.LeaseProgress{Blob: blob, Bytes: n, Registry: arg(3)})
	case "done", "failed", "mismatch", "cancelled":
		o := map[string]trackerpb.Outcome{"done": 1, "failed": 2, "mismatch": 2, "cancelled": 3}[f[0]]
		b.Done = append(b.Done, &trackerpb.LeaseDone{Blob: blob, Outcome: o, Error: strings.Join(f[2:], " "), Mismatch: f[0] == "mismatch"})
	case "disproved":
		b.Disproved = append(b.Disproved, &trackerpb.Disproved{Blob: blob, SumsHash: hash(arg(2))})
	default:
		t.Fatalf("unknown message %v", f)
	}
}

// TestLookupAsksOwners: a tracker asks those who own a blob for everybody else. It always asks
// three, in the order of the owners.
func TestLookupAsksOwners(t *testing.T) {
	for _, v := range ringtest.Vectors(t, "../../control/testdata/place.txt") {
		w := newWorld(t, Config{Warmup: -1})
		for i, m := range v.Members {
			w.step(EvOpen{Stream: Stream(i + 1), Hello: hello(m.Name, m.Zone, trackerpb.Role_ROLE_ORIGIN)})
		}
		w.step(EvOpen{Stream: 100, Hello: hello("node", "a", trackerpb.Role_ROLE_AGENT)}) // agents own nothing
		id, err := piece.ParseID(v.Digest, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		w.step(EvBatch{Stream: 100, Batch: &trackerpb.FromAgent{
			Wants: []*trackerpb.Want{{Blob: trackerpb.FromID(id), Waiting: true, Grant: true}},
		}})
		var asked []string
		for _, a := range w.m.find(id).a.look.asked {
			asked = append(asked, a.hello.Node)
		}
		if n := min(maxAsked, len(v.Members)); len(asked) != n || !slices.Equal(asked[:min(n, v.N)], v.Owners) {
			t.Errorf("%d of %v for %s: asked %s, want %s", v.N, v.Members, v.Digest, asked, v.Owners)
		}
	}
}

// TestOffer: what is accepted of an offer, and that a swarm is found by its whole name.
func TestOffer(t *testing.T) {
	w := newWorld(t, Config{Warmup: -1, Enough: 2})
	open := func(s Stream, role trackerpb.Role) {
		w.nodes[s] = fmt.Sprint("n", s)
		w.step(EvOpen{Stream: s, Hello: hello(w.nodes[s], "", role)})
	}
	hash, other := [32]byte{1}, [32]byte{2}
	full, pinned, one, unknown, twin := testID("full"), testID("pinned"), testID("one"), testID("unknown"), testID("twin")
	second := twin // of the same key
	second.Sum[20]++
	announce := func(s Stream, ids ...piece.ID) {
		v := &trackerpb.Inventory{}
		for _, id := range ids {
			h := &hash
			if id != pinned {
				h = nil
			}
			v.Add(id, h)
		}
		w.step(EvBatch{Stream: s, Batch: &trackerpb.FromAgent{Inventory: []*trackerpb.Inventory{v}}})
	}
	open(1, trackerpb.Role_ROLE_AGENT)
	open(2, trackerpb.Role_ROLE_AGENT)
	open(3, trackerpb.Role_ROLE_AGENT)
	open(4, trackerpb.Role_ROLE_ORIGIN)
	announce(1, full, pinned, one, twin, second)
	announce(2, full, pinned, twin, second)
	for _, tt := range []struct {
		name string
		from Stream
		id   piece.ID
		sums *[32]byte
		want bool
	}{
		{"unknown", 3, unknown, nil, true},
		{"not enough", 3, one, nil, true},
		{"enough", 3, full, nil, false},
		{"enough, but of sums nothing is known", 3, full, &hash, true},
		{"enough, the sums are the same", 3, pinned, &hash, false},
		{"enough, no sums", 3, pinned, nil, false},
		{"enough, other sums", 3, pinned, &other, true},
		{"of a member", 1, full, nil, true},
		{"of an origin", 4, full, nil, true},
		{"two of the same key", 3, twin, nil, true},
	} {
		o := &trackerpb.Offer{}
		o.Add(full, nil) // not to be mistaken for the second
		o.Add(tt.id, tt.sums)
		before := w.m.Stats()
		acts := w.step(EvBatch{Stream: tt.from, Batch: &trackerpb.FromAgent{Offers: []*trackerpb.Offer{o}}})
		if len(acts) != 1 || len(acts[0].(ActSend).Message.Accepts) != 1 {
			t.Fatalf("%s: %d actions, not one Accept", tt.name, len(acts))
		}
		a := acts[0].(ActSend).Message.Accepts[0]
		if a.Has(1) != tt.want || a.AgainMs < 1 {
			t.Errorf("%s: accepted %v, want %v; the others again after %d ms", tt.name, a.Has(1), tt.want, a.AgainMs)
		}
		st := w.m.Stats()
		if refused := uint64(2 - a.Count()); st.Announces-before.Announces != refused || st.EnoughSent-before.EnoughSent != refused {
			t.Errorf("%s: %d of 2 accepted, counted as %d announcements, %d of them not kept",
				tt.name, a.Count(), st.Announces-before.Announces, st.EnoughSent-before.EnoughSent)
		}
	}
	if w.m.find(twin) == w.m.find(second) || w.m.find(second).id != second {
		t.Error("two blobs of the same key are one swarm")
	}
	w.step(EvClosed{1})
	w.step(EvClosed{2})
	if st := w.m.Stats(); st.Swarms != 0 || len(w.m.keys) != 0 {
		t.Errorf("%d swarms and %d keys are left", st.Swarms, len(w.m.keys))
	}
}
