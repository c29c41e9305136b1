package fetch

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// TestTranscripts plays the stories in testdata/*: each command says what happens next, and
// its expected output is what the Machine says then. Regenerate with -rewrite, then read the
// diff.
//
//	rules [authorize-blob] [find=d] [registry=n]   a Machine, with a swarm and trackers (200 ms, 5 s); pieces that a
//	                                  registry gives a second (one in ten hours: the swarm is never slow)
//	connect [no-trackers]
//	disk [verified=n] [prefix=n] [full] [whole] [slow]   pieces that there are from now on, of 10
//	disk fails=full|lost [full]       it cannot open, or complete, the blob
//	swarm [useful=n] [known=n] [missing=n] [reach=n] [lost=name] [turn] [slow]   what it says when it is asked; turn: who has
//	                                  something of it gives something of other blobs, then
//	no-source                         it says that its last source has failed
//	doubt [off]                       it says that what it has stored may be false
//	done [err=full|left|disproved] [join=n]              what it says when it has ended its work, of the last join or another one
//	open s=n [authorized] [registry=name] [asking]   a session; what is said of it: wait, writes, close
//	named s=n [registry=name]         where it would download from
//	wait s=n
//	writes s=n                        from 0 on, without having asked
//	wrote s=n pieces=n offset=n
//	end s=n [err=mismatch|given-up|not-written]
//	close s=n
//	full                              a session says that the disk is
//	verdict is=… [ask=n] [paced]      to the last Want, or another one; by a tracker that heeds who has slow sources
//	limit is=n                        pieces a second from the swarm
//	peers names=…
//	share is=n
//	upstream [is=registry,…] [mismatch]   where holders of leases have it from
//	prefetch [priority=n]
//	prolong
//	abandon
//	drain
//	stop
//	pass time=d                       time passes
//	status
//
// Each may be of=name: about another blob.
//
// The disk opens and completes, and the swarm says what it can do, at once, unless they are
// slow; then it is said when they next say anything.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			p := &play{now: start}
			datadriven.RunTest(t, f, func(t *testing.T, d *datadriven.TestData) string {
				p.T = t
				p.log = &strings.Builder{}
				p.command(d)
				return p.log.String()
			})
		})
	}
}

var start = time.Unix(1_000_000, 0)

var mishaps = map[string]error{
	"full":        fmt.Errorf("the disk is full: %w", errdefs.ErrResourceExhausted),
	"lost":        errors.New("the disk is lost"),
	"left":        swarm.ErrLeft,
	"disproved":   errors.New("sums disproved"),
	"mismatch":    fmt.Errorf("the last piece: %w", piece.ErrMismatch),
	"given-up":    ErrGivenUp,
	"not-written": ErrNotWritten,
}

// play is a story under way.
type play struct {
	*testing.T
	m   *Machine
	now time.Time
	log *strings.Builder // of this command

	disk     Progress
	diskErr  error
	diskSlow bool
	status   swarm.BlobStatus
	turn     bool                 // of the blob is going to come: the swarm gives of others
	slow     bool                 // the swarm
	due      []Event              // what slow ones will say
	opening  map[piece.ID]Opening // the last ones
	ask      map[piece.ID]uint64
	join     map[piece.ID]uint64
	names    map[piece.ID]string
}

// named returns the blob of a name, which has 10 pieces.
func (p *play) named(name string) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 10 << 16}
	copy(id.Sum[:], name)
	p.names[id] = name
	return id
}

func (p *play) note(format string, args ...any) {
	fmt.Fprintf(p.log, "%6.3f ", p.now.Sub(start).Seconds())
	fmt.Fprintf(p.log, format+"\n", args...)
}

func (p *play) command(d *datadriven.TestData) {
	str := func(key string) (s string) {
		if d.HasArg(key) {
			d.ScanArgs(p.T, key, &s)
		}
		return s
	}
	num := func(key string) (n int) {
		if d.HasArg(key) {
			d.ScanArgs(p.T, key, &n)
		}
		return n
	}
	dur := func(key string, otherwise time.Duration) time.Duration {
		if s := str(key); s != "" {
			v, err := time.ParseDuration(s)
			if err != nil {
				d.Fatalf(p.T, "%v", err)
			}
			return v
		}
		return otherwise
	}
	mishap := func(key string) error {
		err, ok := mishaps[str(key)]
		if d.HasArg(key) && !ok {
			d.Fatalf(p.T, "no mishap is called %q", str(key))
		}
		return err
	}
	if d.Cmd == "rules" {
		*p = play{
			T: p.T, now: p.now, log: p.log, names: map[piece.ID]string{},
			opening: map[piece.ID]Opening{}, ask: map[piece.ID]uint64{}, join: map[piece.ID]uint64{},
		}
		p.m = NewMachine(Rules{
			AuthorizeBlob: d.HasArg("authorize-blob"), Find: dur("find", 200*time.Millisecond), Stall: 5 * time.Second,
			Prefetch: time.Minute, MaxPrefetch: 2, Registry: cmp.Or(float64(num("registry"))*(1<<16), 1),
		})
		p.step(EvConnected{Swarm: true, Trackers: true})
		return
	}
	id, s := p.named(cmp.Or(str("of"), "x")), SessionID(num("s"))
	switch d.Cmd {
	case "connect":
		p.step(EvConnected{Swarm: true, Trackers: !d.HasArg("no-trackers")})
	case "disk":
		p.diskSlow, p.diskErr = d.HasArg("slow"), mishap("fails")
		if p.diskErr != nil && !d.HasArg("full") {
			break
		}
		p.disk = Progress{
			Verified: int64(num("verified")) << 16, Prefix: int64(num("prefix")) << 16, Full: d.HasArg("full"), Whole: d.HasArg("whole"),
		}
		if p.disk.Full {
			p.disk.Verified, p.disk.Prefix = id.Size, id.Size
		}
		if p.opening[id] > 0 && (!p.diskSlow || p.disk.Full) && len(p.due) == 0 {
			p.step(EvProgress{ID: id, Opening: p.opening[id], Progress: p.disk})
		}
	case "swarm":
		waits := p.status.Waits
		p.status = swarm.BlobStatus{Waits: waits, Useful: num("useful"), Known: num("known"),
			Missing: num("missing"), Reach: int64(num("reach")) << 16}
		p.turn = d.HasArg("turn")
		if s := str("lost"); s != "" {
			p.status.DeadEnd, p.status.Lost = true, []string{s}
		}
		p.slow = d.HasArg("slow")
	case "doubt":
		p.step(EvDoubt{ID: id, On: !d.HasArg("off")})
	case "no-source":
		p.step(EvNoSource{id})
	case "done":
		join := p.join[id]
		if d.HasArg("join") {
			join = uint64(num("join"))
		}
		p.step(EvSwarmDone{ID: id, Join: join, Err: mishap("err")})
	case "open":
		p.step(EvSessionOpened{ID: id, Session: s, Authorized: d.HasArg("authorized"), Registry: str("registry"), Asking: d.HasArg("asking")})
	case "named":
		p.step(EvRegistry{ID: id, Session: s, Registry: str("registry")})
	case "wait":
		p.step(EvSessionWaits{ID: id, Session: s})
	case "writes":
		p.step(EvSessionWrites{ID: id, Session: s})
	case "wrote":
		p.step(EvSessionWrote{ID: id, Session: s, Bytes: int64(num("pieces")) << 16, Offset: int64(num("offset")) << 16})
	case "end":
		p.step(EvSessionEnded{ID: id, Session: s, Err: mishap("err")})
	case "close":
		p.step(EvSessionClosed{ID: id, Session: s})
	case "full":
		p.step(EvDiskFailed{ID: id, Err: mishaps["full"]})
	case "verdict":
		ask := p.ask[id]
		if d.HasArg("ask") {
			ask = uint64(num("ask"))
		}
		v := tracker.Sources
		for v.String() != str("is") {
			if v++; v > tracker.Unreachable {
				d.Fatalf(p.T, "no verdict is called %q", str("is"))
			}
		}
		p.step(EvVerdict{ID: id, Ask: ask, Verdict: v, Paced: d.HasArg("paced"), Heard: d.HasArg("paced")})
	case "limit":
		p.step(EvLimit{int64(num("is")) << 16})
	case "peers":
		p.step(EvPeersFound{ID: id, Peers: []swarm.PeerInfo{{Node: str("names")}}})
	case "share":
		p.step(EvShareTold{ID: id, Share: uint16(num("is"))})
	case "upstream":
		u := tracker.Upstream{Mismatch: d.HasArg("mismatch")}
		if d.HasArg("is") {
			u.Registries = strings.Split(str("is"), ",")
		}
		p.step(EvUpstream{ID: id, Upstream: u})
	case "prefetch":
		p.step(EvPrefetch{ID: id, Priority: num("priority")})
	case "prolong":
		p.step(EvProlong{id})
	case "abandon":
		p.step(EvAbandon{id})
	case "drain":
		p.step(EvDraining{})
	case "stop":
		p.step(EvStopping{})
	case "pass":
		p.pass(dur("time", 0))
	case "status":
		st, ok := p.m.Status(id)
		p.note("%t: %d bytes, %d sessions, %d wait, %d write, lease %t, verdict %s, failed %v",
			ok, st.Verified, st.Sessions, st.Waiting, st.Writing, st.Lease, st.Verdict, st.Failed)
	default:
		d.Fatalf(p.T, "no such command")
	}
	if !p.diskSlow && !p.slow {
		due := p.due
		p.due = nil
		for _, ev := range due {
			p.step(ev)
		}
	}
}

func (p *play) pass(d time.Duration) {
	for end := p.now.Add(d); ; {
		next := p.m.Deadline()
		if next.IsZero() || next.After(end) {
			p.now = end
			return
		}
		if next.After(p.now) {
			p.now = next
		}
		p.step(EvTick{})
		if again := p.m.Deadline(); !again.IsZero() && !again.After(p.now) {
			p.Fatalf("at %v the machine ticks and does nothing", p.now.Sub(start))
		}
	}
}

// step has the Machine take an event in, notes what it says and does it.
func (p *play) step(ev Event) {
	var follow []Event
	for _, a := range append([]Action(nil), p.m.Step(p.now, ev)...) {
		follow = append(follow, p.perform(a)...)
	}
	for _, ev := range follow {
		p.step(ev)
	}
}

func (p *play) perform(a Action) []Event {
	why := func(err error) string {
		for name, e := range mishaps {
			if err == e {
				return name
			}
		}
		if err != nil {
			return err.Error()
		}
		return "whole"
	}
	later := func(slow bool, ev Event) []Event {
		if slow {
			p.due = append(p.due, ev)
			return nil
		}
		return []Event{ev}
	}
	switch a := a.(type) {
	case ActOpen:
		p.note("opens %s (%d)", p.names[a.ID], a.Opening)
		p.opening[a.ID] = a.Opening
		if p.diskErr != nil {
			return later(p.diskSlow, EvOpenFailed{a.ID, a.Opening, p.diskErr})
		}
		return later(p.diskSlow, EvProgress{a.ID, a.Opening, p.disk})
	case ActComplete:
		p.note("completes it")
		if p.diskErr == nil {
			p.disk.Whole = true
			return append(later(p.diskSlow, EvProgress{a.ID, p.opening[a.ID], p.disk}),
				later(p.diskSlow, EvCompleted{a.ID, p.opening[a.ID], nil})...)
		}
		return later(p.diskSlow, EvCompleted{a.ID, p.opening[a.ID], p.diskErr})
	case ActEmpty:
		p.note("forgets what there is")
		p.disk = Progress{}
		return append(later(p.diskSlow, EvProgress{a.ID, p.opening[a.ID], p.disk}),
			later(p.diskSlow, EvEmptied{a.ID, p.opening[a.ID], nil})...)
	case ActClose:
		text := "closes " + p.names[a.ID]
		if a.Drop {
			text += ", and drops what there is"
		}
		p.note("%s", text)
	case ActJoin:
		p.join[a.ID] = a.Join
		p.note("joins (%d), want %t, priority %d", a.Join, a.As.Want, a.As.Priority)
	case ActLeave:
		p.note("leaves")
	case ActKeep:
		p.note("leaves it to who seeds")
	case ActAddPeers:
		p.note("tells the swarm of %d peers", len(a.Peers))
	case ActShare:
		p.note("tells the swarm its share: %d", a.Share)
	case ActProven:
		p.note("tells the swarm that it is whole")
	case ActSwarmStatus:
		if p.slow {
			p.note("asks the swarm")
		}
		if p.turn {
			p.status.Waits = p.now
		}
		return later(p.slow, EvSwarmStatus{a.ID, p.opening[a.ID], p.status})
	case ActWant:
		p.ask[a.ID] = a.Ask
		if p.note("wants it (%d), waiting %t", a.Ask, a.Waiting); len(a.Lost) > 0 {
			p.note("which %v fail to deliver", a.Lost)
		}
		if a.Slow {
			p.note("which comes too slowly")
		}
	case ActUnwant:
		p.note("wants it no more")
	case ActAnnounce:
		p.note("announces %s", map[tracker.State]string{tracker.StateGone: "nothing", tracker.StatePartial: "a part"}[a.State])
	case ActLeaseProgress:
		text := fmt.Sprintf("tells the trackers: %d bytes from the registry", a.Bytes)
		if a.Registry != "" {
			text += " " + a.Registry
		}
		p.note("%s", text)
	case ActLeaseDone:
		p.note("tells the trackers that it is done: %s", why(a.Err))
		if errors.Is(a.Err, tracker.ErrMismatch) {
			p.note("which is its registry's fault")
		}
	case ActAnswer:
		text := fmt.Sprintf("answers %d: ", a.Session)
		switch {
		case a.Err != nil:
			text += why(a.Err)
		case a.Answer.Offset == a.size():
			text += "all of it"
		default:
			text += fmt.Sprintf("from %d on", a.Answer.Offset)
		}
		if a.Answer.Lease {
			text += ", with the lease"
		}
		p.note("%s (%s after %v)", text, a.Why, a.Waited)
	}
	return nil
}

func (a ActAnswer) size() int64 { return a.ID.Size }
