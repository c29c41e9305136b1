package tracker

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// world drives a Machine in virtual time and writes down what it does. Streams and the
// Handler take at once what they are given, unless they are held.
type world struct {
	t     *testing.T
	m     *Machine
	start time.Time
	now   time.Time
	out   strings.Builder
	held  map[string]bool // trackers, and "handler"
	owed  map[string]bool // those held that are to be ready when they no longer are
	names map[piece.ID]string
	seqs  map[string]uint32 // of the last Want, by tracker and blob
}

func newWorld(t *testing.T) *world {
	start := time.Unix(1_000_000, 0)
	w := &world{
		t: t, m: NewMachine("n"), start: start, now: start,
		held: map[string]bool{}, owed: map[string]bool{}, names: map[piece.ID]string{}, seqs: map[string]uint32{},
	}
	w.step(EvHandlerReady{})
	return w
}

// id returns the blob of a name. Of the trackers t1 to t4 the first two that there are
// are its two, in this order.
func (w *world) id(name string) piece.ID {
	all := []string{"t1", "t2", "t3", "t4"}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	id := piece.ID{Alg: piece.SHA256, Size: 1000}
	copy(id.Sum[:], h.Sum(nil))
	for !slices.Equal(ring.Top(all, id.Digest(), 4), all) {
		id.Sum[31]++
		if id.Sum[31] == 0 {
			id.Sum[30]++
		}
	}
	w.names[id] = name
	return id
}

func (w *world) name(b *trackerpb.Blob) string { id, _ := b.ID(); return w.names[id] }

func (w *world) print(format string, args ...any) {
	fmt.Fprintf(&w.out, "%6dms ", w.now.Sub(w.start).Milliseconds())
	fmt.Fprintf(&w.out, format+"\n", args...)
}

// step gives the machine an event, and performs what it returns and what follows from
// that.
func (w *world) step(ev Event) {
	for _, act := range slices.Clone(w.m.Step(w.now, ev)) {
		who, ready := "handler", Event(EvHandlerReady{})
		if s, ok := act.(ActSend); ok {
			who, ready = s.Tracker, EvReady{Tracker: s.Tracker}
			if err := trackerpb.CheckBatch(s.Message); err != nil {
				w.t.Fatal(err)
			}
			for _, want := range s.Message.Wants {
				w.seqs[s.Tracker+" "+w.name(want.Blob)] = want.Seq
			}
			w.print("to %s: %s", s.Tracker, strings.Join(w.message(s.Message), "; "))
		} else {
			w.print("%s", w.call(act))
		}
		if w.held[who] {
			w.owed[who] = true
		} else {
			w.step(ready)
		}
	}
}

// advance passes time, ticking at every deadline.
func (w *world) advance(d time.Duration) {
	end := w.now.Add(d)
	for i := 0; ; i++ {
		due := w.m.Deadline()
		if due.IsZero() || due.After(end) {
			break
		}
		if i > 1000 {
			w.t.Fatalf("deadlines do not move: %v", due.Sub(w.start))
		}
		if due.After(w.now) {
			w.now = due
		}
		w.step(EvTick{})
	}
	w.now = end
}

func (w *world) message(m *trackerpb.FromAgent) (parts []string) {
	p := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	for _, d := range m.Done {
		s := strings.TrimSuffix(strings.ToLower(d.Outcome.String()[len("OUTCOME_"):])+" "+d.Error, " ")
		if d.Mismatch {
			s += " (mismatch)"
		}
		p("done %s %s", w.name(d.Blob), s)
	}
	for _, r := range m.Progress {
		p("%s", strings.TrimSuffix(fmt.Sprintf("progress %s %d %s", w.name(r.Blob), r.Bytes, r.Registry), " "))
	}
	for _, a := range m.Announces {
		p("%s %s", strings.ToLower(a.State.String()[len("STATE_"):]), w.name(a.Blob))
	}
	for _, v := range m.Inventory {
		for i := range v.Blobs.Len() {
			s := "complete " + w.names[v.Blobs.ID(i)]
			if h := v.SumsHash(i); h != nil {
				s += fmt.Sprintf(" sums=%02x", h[0])
			}
			p("%s", s)
		}
	}
	for _, o := range m.Offers {
		s := "offer"
		for _, key := range o.Blobs {
			for id, name := range w.names {
				if trackerpb.BlobKey(id) == key {
					s += " " + name
				}
			}
		}
		p("%s", s)
	}
	for _, b := range m.NotHere {
		p("nothere %s", w.name(b))
	}
	for _, d := range m.Disproved {
		p("disproved %s %02x", w.name(d.Blob), d.SumsHash[0])
	}
	for _, b := range m.Unwants {
		p("unwant %s", w.name(b))
	}
	for _, want := range m.Wants {
		s := "want " + w.name(want.Blob)
		if want.Waiting {
			s += " waiting"
		}
		if want.Grant {
			s += " grant"
		}
		if len(want.Lost) > 0 {
			s += fmt.Sprintf(" lost=%s", strings.Join(want.Lost, ","))
		}
		if want.Slow {
			s += " slow"
		}
		p("%s seq=%d", s, want.Seq)
	}
	for _, r := range m.Results {
		p("result %d running=%v %q", r.Id, r.Running, r.Error)
	}
	return parts
}

func (w *world) call(act Action) string {
	switch act := act.(type) {
	case ActPeers:
		s := "peers " + w.names[act.ID] + ":"
		for _, p := range act.Peers {
			s += " " + p.Node
			if p.Complete {
				s += "*"
			}
			if p.Source {
				s += "!"
			}
		}
		return s
	case ActPeersGone:
		return "gone " + w.names[act.ID] + ": " + strings.Join(act.Nodes, " ")
	case ActShare:
		return fmt.Sprintf("share %s: %04x", w.names[act.ID], act.Share)
	case ActUpstream:
		return fmt.Sprintf("upstream %s: %q, mismatch %t", w.names[act.ID], act.Upstream.Registries, act.Upstream.Mismatch)
	case ActSumsHash:
		return fmt.Sprintf("sums %s: %02x", w.names[act.ID], act.SumsHash[0])
	case ActVerdict:
		s := fmt.Sprintf("verdict %s: %v", w.names[act.ID], act.Verdict.Kind)
		if act.Verdict.Retry > 0 {
			s += fmt.Sprintf(" retry=%v", act.Verdict.Retry)
		}
		if act.Verdict.Tag > 0 {
			s += fmt.Sprintf(" tag=%d", act.Verdict.Tag)
		}
		return s
	case ActCommand:
		return fmt.Sprintf("command %d", act.Command.Id)
	case ActLookup:
		return "lookup " + w.names[act.ID]
	case ActStatus:
		if act.Status.Connected && act.Status.Err != nil {
			return fmt.Sprintf("status %s: %v", act.Status.Addr, act.Status.Err)
		}
		if act.Status.Connected {
			return fmt.Sprintf("status %s: connected", act.Status.Addr)
		}
		if act.Status.Namesake != "" {
			return fmt.Sprintf("status %s: %v; %v", act.Status.Addr, act.Status.Err, act.Status.Namesake)
		}
		return fmt.Sprintf("status %s: %v", act.Status.Addr, act.Status.Err)
	}
	return fmt.Sprintf("%T", act)
}

// do carries out one line of a transcript.
func (w *world) do(line string) {
	f := strings.Fields(line)
	flag := func(s string) bool { return slices.Contains(f, s) }
	value := func(key string) string {
		for _, s := range f {
			if v, ok := strings.CutPrefix(s, key+"="); ok {
				return v
			}
		}
		return ""
	}
	hash := func(s string) (h [32]byte) {
		n, err := strconv.ParseUint(s, 16, 8)
		if err != nil {
			w.t.Fatalf("%s: %v", line, err)
		}
		h[0] = byte(n)
		return h
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			w.t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	switch f[0] {
	case "trackers":
		ev := EvTrackers{Unresolved: map[string]error{}}
		for _, name := range f[1:] { // NAME, or dns+NAME=WHY
			if dns, why, ok := strings.Cut(name, "="); ok {
				ev.Unresolved[dns] = errors.New(why)
			} else {
				ev.Names = append(ev.Names, name)
			}
		}
		w.step(ev)
	case "up": // up t1 [offers] [namesake=10.0.0.7]
		wel := &trackerpb.Welcome{Version: 1, Software: "test", Namesake: value("namesake")}
		if flag("offers") {
			wel.Features = trackerpb.FeatureOffers
		}
		w.step(EvConnected{Tracker: f[1], Welcome: wel})
		if w.held[f[1]] {
			w.owed[f[1]] = true
		} else {
			w.step(EvReady{Tracker: f[1]})
		}
	case "down": // down t1 why
		w.step(EvDisconnected{Tracker: f[1], Err: errors.New(strings.Join(f[2:], " "))})
	case "hold": // a tracker's stream, or the handler
		w.held[f[1]] = true
	case "release":
		delete(w.held, f[1])
		if w.owed[f[1]] {
			delete(w.owed, f[1])
			if f[1] == "handler" {
				w.step(EvHandlerReady{})
			} else {
				w.step(EvReady{Tracker: f[1]})
			}
		}
	case "announce": // announce X complete 1f
		ev := EvAnnounce{ID: w.id(f[1]), State: map[string]State{"gone": StateGone, "partial": StatePartial, "complete": StateComplete}[f[2]]}
		if len(f) > 3 {
			h := hash(f[3])
			ev.SumsHash = &h
		}
		w.step(ev)
	case "want": // want X [waiting] [tag=1] [lost=a] [slow]
		how := Want{Waiting: flag("waiting"), Slow: flag("slow")}
		if s := value("tag"); s != "" {
			how.Tag = uint64(number(s))
		}
		if s := value("lost"); s != "" {
			how.Lost = []string{s}
		}
		w.step(EvWant{ID: w.id(f[1]), Want: how})
	case "unwant":
		w.step(EvUnwant{ID: w.id(f[1])})
	case "progress":
		w.step(EvLeaseProgress{ID: w.id(f[1]), Bytes: number(f[2]), Registry: value("from")})
	case "done": // done X [cancelled | mismatch | why upstream failed]
		var err error
		if flag("cancelled") {
			err = fmt.Errorf("pull: %w", context.Canceled)
		} else if flag("mismatch") {
			err = fmt.Errorf("pull: %w", ErrMismatch)
		} else if len(f) > 2 {
			err = errors.New(strings.Join(f[2:], " "))
		}
		w.step(EvLeaseDone{ID: w.id(f[1]), Err: err})
	case "disproved":
		w.step(EvDisproved{ID: w.id(f[1]), SumsHash: hash(f[2])})
	case "nothere":
		w.step(EvNotHere{ID: w.id(f[1])})
	case "result": // result 7 [running]
		w.step(EvResult{Result: &trackerpb.CommandResult{Id: uint64(number(f[1])), Supported: true, Running: flag("running")}})
	case "from": // from t1 verdict X lease; peers X a! b* -c
		msg := &trackerpb.ToAgent{}
		for part := range strings.SplitSeq(strings.Join(f[2:], " "), ";") {
			w.parse(msg, f[1], strings.Fields(part))
		}
		w.step(EvMessage{Tracker: f[1], Message: msg})
	case "commands": // commands t1 1 256: that many at once
		msg := &trackerpb.ToAgent{}
		for n := number(f[2]); n <= number(f[3]); n++ {
			msg.Commands = append(msg.Commands, &trackerpb.Command{Id: uint64(n)})
		}
		w.step(EvMessage{Tracker: f[1], Message: msg})
	case "advance":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.advance(d)
	case "sleep": // the process does not run
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
		w.step(EvTick{})
	case "remembered":
		w.print("%d blobs, %d active, %d due", w.m.Remembered(), len(w.m.active), len(w.m.due.heap))
	case "announceable":
		w.print("%d blobs", w.m.Announceable(f[1]))
	case "status":
		for _, s := range w.m.Status() {
			shared := ""
			if s.Namesake != "" {
				shared = fmt.Sprintf("; %v", s.Namesake)
			}
			w.print("%s connected=%v for %v, %q, %v%s", s.Addr, s.Connected, w.now.Sub(s.Since), s.Software, s.Err, shared)
		}
	default:
		w.t.Fatalf("unknown command %q", line)
	}
}

// parse puts one part of what a tracker says into a message.
func (w *world) parse(msg *trackerpb.ToAgent, tracker string, f []string) {
	var blob *trackerpb.Blob
	if f[0] != "accept" && f[0] != "command" && f[0] != "busy" {
		blob = trackerpb.FromID(w.id(f[1]))
	}
	millis := func(s string) uint32 {
		d, err := time.ParseDuration(s)
		if err != nil {
			w.t.Fatalf("%v: %v", f, err)
		}
		return uint32(d.Milliseconds())
	}
	switch f[0] {
	case "verdict": // verdict X lease [seq=1]; verdict X wait 100ms
		v := &trackerpb.Verdict{Blob: blob, Seq: w.seqs[tracker+" "+f[1]]}
		v.Kind = trackerpb.Verdict_Kind(trackerpb.Verdict_Kind_value["KIND_"+strings.ToUpper(f[2])])
		if f[2] == "unheard-of" {
			v.Kind = 99
		}
		if f[2] == "wait" {
			v.RetryMs = millis(f[3])
		}
		if s, ok := strings.CutPrefix(f[len(f)-1], "seq="); ok {
			n, _ := strconv.Atoi(s)
			v.Seq = uint32(n)
		}
		msg.Verdicts = append(msg.Verdicts, v)
	case "busy": // busy 100ms
		msg.BusyMs = millis(f[1])
	case "upstream": // upstream X r.example s.example mismatch
		u := &trackerpb.Upstream{}
		for _, s := range f[2:] {
			if s == "mismatch" {
				u.Mismatch = true
			} else {
				u.Registries = append(u.Registries, s)
			}
		}
		msg.Peers = append(msg.Peers, &trackerpb.Peers{Blob: blob, Upstream: u})
	case "peers": // peers X a b* c! -d share=00ff
		p := &trackerpb.Peers{Blob: blob}
		for _, s := range f[2:] {
			if node, ok := strings.CutPrefix(s, "-"); ok {
				p.Gone = append(p.Gone, node)
				continue
			}
			if v, ok := strings.CutPrefix(s, "share="); ok {
				n, _ := strconv.ParseUint(v, 16, 16)
				share := uint32(n)
				p.Share = &share
				continue
			}
			p.Peers = append(p.Peers, &trackerpb.Peer{
				Node: strings.TrimRight(s, "*!"), Complete: strings.Contains(s, "*"), Source: strings.Contains(s, "!"),
			})
		}
		msg.Peers = append(msg.Peers, p)
	case "sums": // sums X [1f]
		s := &trackerpb.SumsHash{Blob: blob}
		if len(f) > 2 {
			n, _ := strconv.ParseUint(f[2], 16, 8)
			s.Hash = make([]byte, 32)
			s.Hash[0] = byte(n)
		}
		msg.Sums = append(msg.Sums, s)
	case "enough": // enough X 30m
		e := &trackerpb.Enough{Blobs: &trackerpb.Blobs{}, AgainMs: millis(f[2])}
		e.Blobs.Add(w.id(f[1]))
		msg.Enough = append(msg.Enough, e)
	case "accept": // accept 101 30m: the first and the third of what was offered
		a := &trackerpb.Accept{AgainMs: millis(f[2])}
		for i, c := range f[1] {
			if c == '1' {
				a.Set(i)
			}
		}
		msg.Accepts = append(msg.Accepts, a)
	case "lookup":
		msg.Lookups = append(msg.Lookups, blob)
	case "command":
		n, _ := strconv.Atoi(f[1])
		msg.Commands = append(msg.Commands, &trackerpb.Command{Id: uint64(n)})
	default:
		w.t.Fatalf("unknown message %v", f)
	}
}

// TestTranscripts runs the stories in testdata: each line of a "do" is an event, what
// follows is what the machine sends ("to t1: …") and tells the Handler. Peers are
// printed with * if complete and ! if a source. Regenerate with -rewrite, then read the
// diff.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := newWorld(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.t = t
			w.out.Reset()
			switch d.Cmd {
			case "new":
				w = newWorld(t)
				fallthrough
			case "do":
				for line := range strings.Lines(d.Input) {
					w.do(strings.TrimSpace(line))
				}
			default:
				t.Fatalf("unknown directive %s", d.Cmd)
			}
			return w.out.String()
		})
	})
}
