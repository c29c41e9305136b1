package mirror

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/ring"
)

// TestUpload runs the stories in testdata: what one member is told, and what it does then.
func TestUpload(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &story{start: time.Unix(1e9, 0)}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.out.Reset()
			s.command(t, d)
			return s.out.String()
		})
	})
}

// story drives one upload and writes down what it does.
type story struct {
	u          *Upload
	start, now time.Time
	out        strings.Builder
}

var codes = []string{"", "done", "later", "wrong-digest", "unknown", "conflict", "out-of-range", "unavailable"}

// command is one of
//
//	new self=a/x members=(a/x,b/y) [min=2] [replicas=3] [key=…] [size=…]
//	members a/x b/y -c/x              (- is down)
//	start|append|put|delete id=1 [from=b term=2] [at=…] [digest=…]
//	wrote N | appended N [broken] | verified D CODE | committed D CODE | moved F
//	answer F CODE [at=…] [term=…] [text=…] | stands b [at=…] [leads] [feeds] [committed=…]
//	stands? b | advance 2s | makeroom
func (s *story) command(t *testing.T, d *datadriven.TestData) {
	if d.Cmd == "new" {
		s.begin(t, d)
		return
	}
	if d.Cmd == "makeroom" {
		since, ok := s.u.Idle()
		fmt.Fprintf(&s.out, "idle since %v: %v\n", since.Sub(s.start), ok)
		s.step(EvMakeRoom{})
		return
	}
	if len(d.CmdArgs) == 0 {
		t.Fatalf("%s: %s needs arguments", d.Pos, d.Cmd)
	}
	first := d.CmdArgs[0].Key
	req := Request{
		ID: uint64(num(d, "id", 0)), From: arg(d, "from"), Term: Term(num(d, "term", 0)),
		Off: num(d, "at", -1), Digest: digest.Digest(arg(d, "digest")),
	}
	n, _ := strconv.ParseInt(first, 10, 64)
	switch d.Cmd {
	case "members":
		var names []string
		for _, a := range d.CmdArgs {
			names = append(names, a.Key)
		}
		s.step(EvMembers{members(names)})
	case "start", "append", "put", "delete":
		req.Kind = Kind(1 + slices.Index([]string{"start", "append", "put", "delete"}, d.Cmd))
		s.step(EvRequest{req})
	case "wrote":
		s.step(EvWrote{n})
	case "appended":
		s.step(EvAppended{n, d.HasArg("broken")})
	case "verified":
		s.step(EvVerified{Result{digest.Digest(first), code(d), text(d)}})
	case "committed":
		s.step(EvCommitted{Result{digest.Digest(first), code(d), text(d)}})
	case "moved":
		s.step(EvMoved{uint64(n)})
	case "answer":
		s.step(EvAnswer{uint64(n), Answer{Code: code(d), Offset: num(d, "at", 0), Term: req.Term, Err: text(d)}})
	case "stands":
		st := Stands{d.HasArg("known"), num(d, "at", 0), req.Term, d.HasArg("leads"), d.HasArg("feeds"), digest.Digest(arg(d, "committed"))}
		s.step(EvStands{first, st})
	case "stands?":
		fmt.Fprintf(&s.out, "%+v\n", s.u.Stands(first))
	case "advance":
		by, err := time.ParseDuration(first)
		if err != nil {
			t.Fatal(err)
		}
		s.advance(t, by)
	default:
		t.Fatalf("%s: no such command", d.Pos)
	}
}

func (s *story) begin(t *testing.T, d *datadriven.TestData) {
	s.now = s.start
	cfg := Config{Self: member(arg(d, "self")).Member, Replicas: 3, MinReplicas: 2, Expire: 24 * time.Hour, Key: arg(d, "key")}
	d.MaybeScanArgs(t, "min", &cfg.MinReplicas)
	d.MaybeScanArgs(t, "replicas", &cfg.Replicas)
	s.u = New(cfg, num(d, "size", 0), s.now)
	all, _ := d.Arg("members")
	s.step(EvMembers{members(all.Vals)})
}

func arg(d *datadriven.TestData, name string) string {
	if a, ok := d.Arg(name); ok && len(a.Vals) > 0 {
		return a.Vals[0]
	}
	return ""
}

func num(d *datadriven.TestData, name string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(arg(d, name), 10, 64); err == nil {
		return n
	}
	return otherwise
}

func text(d *datadriven.TestData) error {
	if t := arg(d, "text"); t != "" {
		return errors.New(t)
	}
	return nil
}

// code is the second argument.
func code(d *datadriven.TestData) Code { return Code(slices.Index(codes, d.CmdArgs[1].Key)) }

// advance passes time, with a tick at every deadline.
func (s *story) advance(t *testing.T, by time.Duration) {
	end := s.now.Add(by)
	for range 1000 {
		at := s.u.Deadline()
		if at.IsZero() || at.After(end) {
			s.now = end
			return
		}
		if at.After(s.now) {
			s.now = at
		}
		s.step(EvTick{})
	}
	t.Fatal("deadlines do not move")
}

func member(text string) Member {
	name, zone, _ := strings.Cut(strings.TrimPrefix(text, "-"), "/")
	return Member{ring.Member{Name: name, Zone: zone}, !strings.HasPrefix(text, "-")}
}

func members(texts []string) (all []Member) {
	for _, t := range texts {
		all = append(all, member(t))
	}
	return all
}

func (s *story) step(ev Event) {
	for _, a := range s.u.Step(s.now, ev) {
		fmt.Fprintf(&s.out, "%v: %s\n", s.now.Sub(s.start), actionText(a))
	}
}

func actionText(a Action) string {
	to := func(c Call) string { return fmt.Sprintf("to %s (feeder %d, term %d)", c.Member, c.Feeder, c.Term) }
	switch a := a.(type) {
	case ActReply:
		text := fmt.Sprintf("answer request %d: %s, at %d, term %d", a.ID, codes[a.Code], a.Offset, a.Term)
		if a.Err != nil {
			text += ": " + a.Err.Error()
		}
		if len(a.Mirrors) > 0 {
			text += ", mirrored at " + strings.Join(a.Mirrors, ",")
		}
		return text
	case ActAccept:
		return fmt.Sprintf("write the body of request %d", a.ID)
	case ActStop:
		return fmt.Sprintf("end the body of request %d", a.ID)
	case ActVerify:
		return "verify " + string(a.Digest)
	case ActCommit:
		return "commit " + string(a.Digest)
	case ActStart:
		return "start " + to(a.Call)
	case ActFeed:
		return fmt.Sprintf("bytes %d to %d %s", a.Off, a.To, to(a.Call))
	case ActConfirm:
		return fmt.Sprintf("put %s of %d bytes %s", a.Digest, a.Size, to(a.Call))
	case ActDrop:
		return fmt.Sprintf("drop feeder %d", a.Feeder)
	case ActErase:
		return fmt.Sprintf("delete at %s, term %d", a.Member, a.Term)
	case ActAsk:
		return "ask " + a.Member
	case ActForget:
		return fmt.Sprintf("forget: %v", a.Why)
	}
	return fmt.Sprintf("%T", a)
}
