package ringstate

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

var kinds = []Kind{KindStatus, KindLog, KindDeleted, KindReplica, KindConsult, KindHave, KindCompare}

// codec decodes an ask or an answer, and encodes it again.
func codec(what string, k Kind, b []byte) (v any, again []byte, err, encode error) {
	if what == "ask" {
		q, err := DecodeAsk(k, b)
		if err != nil {
			return nil, nil, err, nil
		}
		again, encode = EncodeAsk(q)
		return q, again, nil, encode
	}
	a, err := DecodeAnswer(k, b)
	if err != nil {
		return nil, nil, err, nil
	}
	again, encode = EncodeAnswer(a)
	return a, again, nil, encode
}

type vector struct {
	what    string
	kind    Kind
	outcome string
	text    string
}

func wireVectors(t testing.TB) (all []vector) {
	t.Helper()
	b, err := os.ReadFile("testdata/wire.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, " | ", 4)
		if len(f) != 4 {
			t.Fatalf("%q is no vector", line)
		}
		all = append(all, vector{f[0], Kind(f[1]), f[2], f[3]})
	}
	return all
}

// What members of one release say, those of the next one have to understand.
func TestWireVectors(t *testing.T) {
	good := map[string]int{}
	for _, v := range wireVectors(t) {
		got, again, err, encode := codec(v.what, v.kind, []byte(v.text))
		switch v.outcome {
		case "good":
			good[v.what+string(v.kind)]++
			if err != nil || encode != nil || string(again) != v.text {
				t.Errorf("%s %s %s: %v, %v\nagain %s", v.what, v.kind, v.text, err, encode, again)
			}
		case "taken": // by a member that says it otherwise, or knows less
			if err != nil || encode != nil {
				t.Errorf("%s %s %s: %v, %v", v.what, v.kind, v.text, err, encode)
			}
		default:
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), v.outcome) {
				t.Errorf("%s %s %s: %+v, %v; want %q", v.what, v.kind, v.text, got, err, v.outcome)
			}
		}
	}
	for _, k := range kinds {
		for _, what := range []string{"ask", "answer"} {
			if good[what+string(k)] == 0 {
				t.Errorf("no vector of a good %s %s", what, k)
			}
		}
	}
}

// Each field comes over: all that can be said is said with values that are not zero.
func TestWireKeepsAll(t *testing.T) {
	d := digest.FromString("x")
	place := record.Place{Backend: "main", Key: "blobs/x"}
	rec := record.Merge(record.Pushed(d, 7, place, "team/<a>&b", "a", 5), record.Removed(d, "team/c", 6))
	view := View{1, 2, 255}
	for _, q := range []Ask{
		Probe{}, ReadLog{7}, Deleted{record.Deletion{Digest: d, Namespace: "a/b", Stamp: 9}, place},
		&Replica{d, rec, view, []string{"a", "b"}, true, true}, &Consult{d, rec}, &Consult{Digest: d}, Have{d},
		Compare{View: view}, Compare{View: view, Buckets: []uint8{0, 255}}, Compare{View: view, Subs: []uint16{0, 65535}},
	} {
		b, err := EncodeAsk(q)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeAsk(KindOf(q), b); err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
	}
	for k, answers := range map[Kind][]Answer{
		KindStatus: {&Status{
			Name: "a", Addr: "h:1", Zone: "z", Clock: 1, Order: 2, Replicas: 3, MinReplicas: 2, Mode: Draining, ModeAt: 4, Starting: true,
			Time: 17, View: view, LogHead: 5, Members: []MemberView{{"b", "h:2", "y", 1 << 63, Drained, 6, true, true, 7, 8}},
			Removals: []Removal{{"c", 9, 10, 11}}, Lost: []Lost{{"d", 12, 13, true}}, Whole: Whole{14, 2}, Under: 15, Exchanged: 16, Full: true,
			Storages: []Storage{{"main", "ID"}},
		}},
		KindLog:     {&LogPage{4, 4, []record.Deletion{{Digest: d, Namespace: "a/b", Stamp: 9}}}},
		KindDeleted: {&Took{7, rec, []string{"b"}}, &Took{Seq: 7, Heard: []string{}}},
		KindReplica: {&Replied{CodePinned, true, rec}, &Replied{Code: CodeFull}},
		KindConsult: {&Consulted{rec, []record.Place{place}, true}},
		KindHave:    {Has{true, true}, Has{}},
		KindCompare: {&Compared{}, &Compared{OK: true, Sums: []Sum{{Item{1}, 2}, {Item{3}, 4}}},
			&Compared{OK: true, Items: [][]Item{{{1}, {2}}, nil}}},
	} {
		for _, a := range answers {
			b, err := EncodeAnswer(a)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecodeAnswer(k, b); err != nil || !reflect.DeepEqual(got, a) {
				t.Errorf("%s: %+v, %v", b, got, err)
			}
		}
	}
	js, err := rec.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := EncodeAsk(&Consult{d, rec}); err != nil || !bytes.Contains(b, js) {
		t.Errorf("%s, %v: not the record as it is: %s", b, err, js)
	}
}

// What is too much is refused by who sends it, as by who receives it.
func TestWireRefusesToSend(t *testing.T) {
	d := digest.FromString("x")
	rec := record.Pushed(d, 7, record.Place{Backend: "kept"}, "a/b", "a", 5)
	var names []string
	for i := range 65 {
		names = append(names, fmt.Sprint("n", i))
	}
	for _, q := range []Ask{
		nil, &Replica{}, Have{"x"}, &Replica{Digest: d, Sources: names}, &Replica{Digest: digest.FromString("y"), Record: rec},
		Compare{Buckets: make([]uint8, 17)}, Compare{Subs: make([]uint16, 257)}, Compare{Subs: []uint16{}}, Deleted{},
		&Consult{d, record.Pushed(d, 0, record.Place{Backend: "kept"}, "a/b", "a", 5)},
	} {
		if b, err := EncodeAsk(q); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%#v: %s, %v", q, b, err)
		}
	}
	for _, a := range []Answer{
		nil, &Has{}, &Status{Name: "a", Replicas: 1, MinReplicas: 1, Order: maxOrder + 1}, &Took{Heard: names}, &Replied{Code: 77},
		&Replied{Code: CodePinned}, &LogPage{First: 3, Next: 3, Entries: make([]record.Deletion, 2)},
		&Compared{OK: true, Items: [][]Item{make([]Item, MaxAnswer/16)}}, &Consulted{Pending: []record.Place{{Key: "x"}}},
	} {
		if b, err := EncodeAnswer(a); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%#v: %.80s, %v", a, b, err)
		}
	}
}

// A million blobs are compared by little.
func TestWireIsSmall(t *testing.T) {
	var top, subs Compared
	for i := range 256 {
		var x Item
		for k := range x {
			x[k] = byte(i + k)
		}
		top.Sums = append(top.Sums, Sum{x, 1 << 31})
		items := make([]Item, 1_000_000>>16+1)
		for k := range items {
			items[k] = x
		}
		subs.Items = append(subs.Items, items)
	}
	for _, tt := range []struct {
		a    *Compared
		most int
	}{{&top, 16 << 10}, {&Compared{Sums: make([]Sum, 256*bucketsAtOnce)}, 128 << 10}, {&subs, 128 << 10}} {
		if b, err := EncodeAnswer(tt.a); err != nil || len(b) > tt.most {
			t.Errorf("%d bytes, %v; want at most %d", len(b), err, tt.most)
		}
	}
}

// FuzzWire: what is decoded is encoded to the same again.
func FuzzWire(f *testing.F) {
	for _, v := range wireVectors(f) {
		for i, k := range kinds {
			if k == v.kind {
				f.Add(v.what == "ask", uint8(i), []byte(v.text))
			}
		}
	}
	f.Fuzz(func(t *testing.T, ask bool, kind uint8, b []byte) {
		what, k := "answer", kinds[int(kind)%len(kinds)]
		if ask {
			what = "ask"
		}
		v, again, err, encode := codec(what, k, b)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) || v != nil {
				t.Fatalf("%v, with %+v", err, v)
			}
			return
		}
		if encode != nil {
			t.Fatalf("decoded %+v, and cannot say it: %v", v, encode)
		}
		w, third, err, encode := codec(what, k, again)
		if err != nil || encode != nil || !bytes.Equal(third, again) {
			t.Fatalf("%s becomes %s: %v, %v", again, third, err, encode)
		}
		_ = w
	})
}

// vectorBlob is the blob that wire.txt is about.
func vectorBlob() digest.Digest { return digest.FromString("capelin") }

// stranger answers asks, and asks, with what another one has made up.
type stranger struct {
	t  testing.TB
	r  *Ring
	at Instant
	// what is here, by digest
	disk map[digest.Digest]Local
	asks []ActAsk
}

func newStranger(t testing.TB) *stranger {
	s := &stranger{t: t, at: Instant{Wall: time.UnixMilli(1_800_000_000_000)}, disk: map[digest.Digest]Local{}}
	s.r = New(Config{Name: "a", Incarnation: 1, Members: []string{"a", "b", "c"}}, nil, Log{}, s.at)
	for i := range 40 {
		d := digest.FromString(fmt.Sprint(i))
		if i == 0 {
			d = vectorBlob()
		}
		place := record.Place{Backend: "kept"}
		if i%2 == 0 {
			place = record.Place{Backend: "main", Key: fmt.Sprint("blobs/", i)}
		}
		s.disk[d] = Local{Record: record.Pushed(d, 1, place, "team/a", "a", 5), Have: true}
		s.step(EvHeld{s.disk[d], true})
	}
	for _, m := range s.r.members { // they have met
		if m != s.r.me {
			m.inc, m.mode, m.modeAt, m.heard, m.live = 2, Up, 1, s.r.now, s.r.now
			m.status, m.statusAt, m.fresh = &Status{Name: m.name}, s.r.now, s.r.now
		}
	}
	s.r.dirty = true
	for range 600 {
		s.tick()
		for _, q := range s.take() {
			if st := s.r.find(q.To); KindOf(q.Ask) == KindStatus {
				s.step(&EvAnswered{ID: q.ID, Incarnation: 2, Answer: &Status{Name: st.name, Mode: Up, ModeAt: 1, View: s.r.view}})
			}
		}
	}
	if !s.r.me.owner() || s.r.blobs.placing() {
		t.Fatal("it has not begun")
	}
	return s
}

func (s *stranger) take() []ActAsk {
	q := s.asks
	s.asks = nil
	return q
}

func (s *stranger) tick() {
	s.at.Mono += 100 * time.Millisecond
	s.at.Wall = s.at.Wall.Add(100 * time.Millisecond)
	s.step(EvTick{})
}

func (s *stranger) locals(ds []digest.Digest) (all []Local) {
	for _, d := range ds {
		all = append(all, s.disk[d])
	}
	return all
}

func (s *stranger) step(ev Event) {
	for _, a := range s.r.Step(s.at, ev) {
		switch a := a.(type) {
		case ActAsk:
			s.asks = append(s.asks, a)
		case ActSave:
			if err := a.Record.Check(); err != nil {
				s.t.Fatalf("it is to save what no disk takes: %v", err)
			}
			if _, err := a.Record.JSON(); err != nil {
				s.t.Fatalf("it is to save what no disk takes: %v", err)
			}
			s.disk[a.Record.Digest] = Local{Record: a.Record, Have: s.disk[a.Record.Digest].Have, Wrote: a.Wrote}
		case ActReply:
			if _, err := EncodeAnswer(a.Answer); a.Answer != nil && err != nil {
				s.t.Fatalf("it cannot say %+v: %v", a.Answer, err)
			}
		}
	}
}

// FuzzStranger: whatever a member says, once it is decoded a Ring goes on, saves what disks take, and can say what it says.
func FuzzStranger(f *testing.F) {
	for _, v := range wireVectors(f) {
		for i, k := range kinds {
			if k == v.kind {
				f.Add(v.what == "ask", uint8(i), []byte(v.text), uint64(2))
			}
		}
	}
	f.Fuzz(func(t *testing.T, ask bool, kind uint8, b []byte, inc uint64) {
		k := kinds[int(kind)%len(kinds)]
		if ask {
			q, err := DecodeAsk(k, b)
			if err != nil {
				return
			}
			s := newStranger(t)
			switch o := q.(type) {
			case Compare:
				o.View = s.r.view
				q = o
			case *Replica:
				o.View = s.r.view
			}
			s.step(&EvAsked{From: "b", Incarnation: inc, ID: 1, Ask: q, Local: s.locals(q.Digests())})
			s.on()
			return
		}
		a, err := DecodeAnswer(k, b)
		if err != nil {
			return
		}
		s := newStranger(t)
		s.provoke()
		for range 80 {
			for _, q := range s.take() {
				if KindOf(q.Ask) == k {
					s.step(&EvAnswered{ID: q.ID, Incarnation: inc, Answer: a, Local: s.locals(a.Digests())})
				}
			}
			s.tick()
		}
		s.on()
	})
}

// provoke has it ask all that it can ask.
func (s *stranger) provoke() {
	d := vectorBlob()
	place := record.Place{Backend: "main", Key: "blobs/2"}
	s.step(&EvPut{ID: 1, Digest: d, Size: 1, Place: place, Namespace: "team/b", Local: s.disk[d]})
	s.step(&EvDelete{ID: 2, Digest: d, Namespace: "team/a", Place: record.Place{Backend: "kept"}, Local: s.disk[d]})
	s.step(&EvLookup{ID: 3, Digest: digest.FromString("none")})
	for m := range s.r.others() {
		m.head = m.read + 1
		s.r.readLog(m)
	}
}

// What two records are together may be more than a disk takes: who says the second is not heard.
func TestStrangerSaysTooMuch(t *testing.T) {
	d := vectorBlob()
	homes, some, names := &record.Record{Digest: d, Size: 1}, &record.Record{Digest: d, Size: 1}, &record.Record{Digest: d, Size: 1}
	for i := range record.MaxHomes {
		h := record.Home{Place: record.Place{Backend: fmt.Sprintf("b%02d", i)}, By: "b", Since: 9, Namespaces: record.Stamps{"a/b": 9}}
		homes.Homes = append(homes.Homes, h)
		h.Namespaces = record.Stamps{}
		for k := range 1000 {
			h.Namespaces[fmt.Sprintf("a/%03d/%s/%[2]s", k, strings.Repeat("x", 120))] = 9
		}
		switch {
		case i < 10:
			names.Homes = append(names.Homes, h)
		case i < 20:
			some.Homes = append(some.Homes, h)
		}
	}
	for what, rec := range map[string]*record.Record{"homes": homes, "names": names} {
		for _, q := range []Ask{
			&Replica{Digest: d, Record: rec, Put: true}, &Consult{d, rec}, &Replica{Digest: d, Record: rec, Urgent: true},
		} {
			s := newStranger(t)
			if _, ok := q.(*Replica); ok { // it is here, and not pinned
				s.r.leave(d, s.r.blobs.get(d))
			}
			if what == "names" {
				l := s.disk[d]
				l.Record = record.Merge(l.Record, some)
				s.step(&EvAsked{From: "c", Incarnation: 2, ID: 9, Ask: &Consult{d, l.Record}, Local: s.locals(q.Digests())})
			}
			before := s.disk[d]
			for id := range uint64(3) {
				s.step(&EvAsked{From: "b", Incarnation: 2, ID: id, Ask: q, Local: s.locals(q.Digests())})
			}
			s.on()
			if s.disk[d].Record.Home(rec.Homes[0].Place) != nil {
				t.Errorf("too many %s were taken by %T", what, q)
			}
			if s.disk[d].Record.Home(before.Record.Homes[0].Place) == nil {
				t.Errorf("too many %s took what was there, by %T", what, q)
			}
		}
	}
}

// An answer about another blob than the one that was asked about is none.
func TestStrangerAnswersAboutAnother(t *testing.T) {
	s := newStranger(t)
	s.provoke()
	d, other := vectorBlob(), digest.FromString("3")
	rec := record.Pushed(other, 1, record.Place{Backend: "kept"}, "team/a", "b", s.r.clock.Last()+1000)
	answered := map[Kind]bool{}
	for _, q := range s.take() {
		var a Answer
		switch q.Ask.(type) {
		case Deleted:
			a = &Took{Seq: 1, Record: rec}
		case *Replica:
			a = &Replied{Code: CodePinned, Owner: true, Record: rec}
		case *Consult:
			a = &Consulted{Record: rec}
		default:
			continue
		}
		answered[KindOf(q.Ask)] = true
		s.step(&EvAnswered{ID: q.ID, Incarnation: 2, Answer: a, Local: s.locals(a.Digests())})
	}
	s.on()
	if !answered[KindDeleted] || !answered[KindReplica] {
		t.Fatalf("it only asked %v", answered)
	}
	before := record.Pushed(other, 1, record.Place{Backend: "kept"}, "team/a", "a", 5)
	if rec := s.disk[other].Record; !record.Equal(rec, before) {
		t.Errorf("%+v was taken in", rec)
	}
	if rec := s.disk[d].Record; len(rec.Removed) == 0 {
		t.Errorf("%+v was not removed", rec)
	}
}

// on lets a minute pass.
func (s *stranger) on() {
	for range 600 {
		s.tick()
	}
	if st := s.r.Status(); len(st.Lost) > maxLost {
		s.t.Fatalf("%d lost disks", len(st.Lost))
	}
	if _, err := EncodeAnswer(s.r.Status()); err != nil {
		s.t.Fatal(err)
	}
}
