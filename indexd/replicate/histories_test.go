package replicate

import (
	"fmt"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

func digestOf(content, g int) digest.Digest { return digest.Digest(fmt.Sprintf("%d.%d", content, g)) }

// Everything at once: writes, deletions and signatures at both sides, indexes that die and are stopped, lost answers, the
// other side away, refusals.
func TestMischief(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newSim(t, seed, 2)
			s.every(1000 * time.Hour)
			a, b := s.towns[0], s.towns[1]
			b.foreign = seed%3 == 2
			a.forward, b.forward = seed%3 == 1, seed%3 == 1
			s.lossy = 0.05
			content := 0
			for step := range 150 {
				s.run(time.Duration(s.rnd.Int64N(int64(4 * time.Second))))
				from := s.towns[s.rnd.IntN(2)]
				if b.foreign {
					from = a
				}
				tag := fmt.Sprint("t", s.rnd.IntN(8))
				h := from.hosts[s.rnd.IntN(2)]
				switch s.rnd.IntN(14) {
				case 0, 1, 2, 3, 4, 5:
					content++
					s.push(from, tag, content)
				case 6:
					s.push(from, tag, 0)
				case 7, 8:
					if content > 0 {
						s.signs(from, from.tags[tag].content, s.rnd.IntN(1000))
					}
				case 9:
					h.kill()
					s.after(time.Duration(s.rnd.Int64N(int64(40*time.Second))), func() {
						if !h.alive {
							h.boot()
						}
					})
				case 10:
					h.frozen = s.now.Add(time.Duration(s.rnd.Int64N(int64(55 * time.Second))))
				case 11:
					b.down = !b.down
				case 12:
					b.refuses[tag] = !b.refuses[tag]
				case 13:
					if step > 30 { // walks mend what is lost, and hide it
						continue
					}
					a.rule += "+"
					for _, h := range a.hosts {
						if h.alive {
							h.step(a.ruleIs())
						}
					}
				}
			}
			s.settle(75 * time.Minute) // what is parked is tried each hour
			s.check()
		})
	}
}

// 17: the intent is written, its writer stalls, the worker delivers the old state, then the tag is written.
func TestWriterStallsAfterItsIntent(t *testing.T) {
	s := newSim(t, 1, 2)
	s.every(1000 * time.Hour)
	a, b := s.towns[0], s.towns[1]
	s.run(time.Minute)
	s.push(a, "t", 1)
	s.run(5 * time.Second)
	if b.tags["t"].content != 1 {
		t.Fatal("it was not delivered")
	}
	// Whoever writes next is stopped between the intent and the tag.
	before := a.tags["t"]
	a.intent(Key{Tag: "t"}, before.revision+1)
	puts, delivers := b.puts, a.delivers
	s.run(20 * time.Minute)
	if n := a.delivers - delivers; n > 20 {
		t.Errorf("it was looked at %d times in 20 minutes", n)
	}
	if b.puts > puts+1 {
		t.Errorf("what had not changed was delivered %d times", b.puts-puts)
	}
	a.manifests[2] = true
	a.tags["t"] = simTag{before.revision + 1, stamp{s.now.UnixMilli(), "a"}, 2}
	s.acked["a"]["t"] = a.tags["t"].stamp
	s.run(maxWait + 10*time.Second)
	if b.tags["t"].content != 2 {
		t.Errorf("the remote has content %d", b.tags["t"].content)
	}
	s.check()
}

// 18: both sides write one tag at once, with clocks 10 s apart: the same is left at both, with at most two puts.
func TestBothWriteATag(t *testing.T) {
	s := newSim(t, 2, 2)
	a, b := s.towns[0], s.towns[1]
	s.run(time.Minute)
	for i := range 100 {
		puts := a.puts + b.puts
		s.push(a, "t", 2*i+1)
		s.push(b, "t", 2*i+2)
		s.run(10 * time.Second)
		if a.tags["t"].stamp != b.tags["t"].stamp {
			t.Fatalf("%v at one side, %v at the other", a.tags["t"], b.tags["t"])
		}
		if n := a.puts + b.puts - puts; n > 4 { // two per write
			t.Errorf("%d puts", n)
		}
	}
	s.check()
}

// 19: a worker that was stopped while it delivered goes on after its lease was taken.
func TestWorkerGoesOnWithoutItsLease(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		for seed := range uint64(20) {
			s := newSim(t, seed, 2)
			a, b := s.towns[0], s.towns[1]
			b.foreign = foreign
			s.run(time.Minute)
			s.push(a, "t", 1)
			s.run(700 * time.Millisecond)
			for _, h := range a.hosts {
				if h.w.lease.mine {
					h.frozen = s.now.Add(50 * time.Second)
				}
			}
			other := a.hosts[0]
			if other.frozen.After(s.now) {
				other = a.hosts[1]
			}
			s.run(25 * time.Second)
			a.manifests[2] = true
			other.write("t", 2, nil, func(st stamp) { s.acked["a"]["t"] = st })
			s.run(3 * time.Minute)
			if b.tags["t"].content != 2 {
				t.Errorf("seed %d: the remote has content %d", seed, b.tags["t"].content)
			}
			s.faults = nil // it went back for a moment: that is how foreign registries are
			s.check()
		}
	}
}

// 20: a signature is pushed while its subject's tag is being delivered.
func TestSignedMeanwhile(t *testing.T) {
	for seed := range uint64(50) {
		s := newSim(t, seed, 1)
		a := s.towns[0]
		s.run(time.Minute)
		s.push(a, "t", 1)
		s.run(time.Duration(seed) * 50 * time.Millisecond)
		s.signs(a, 1, 7)
		s.run(30 * time.Second)
		s.check()
	}
}

// 21: a tag is deleted and written again while the other side echoes.
func TestDeletedAndWrittenWhileEchoed(t *testing.T) {
	for seed := range uint64(30) {
		s := newSim(t, seed, 2)
		a, b := s.towns[0], s.towns[1]
		a.forward, b.forward = true, true
		s.run(time.Minute)
		for i := range 10 {
			s.push(a, "t", i+1)
			s.run(s.delay() * 5)
			s.push(a, "t", 0)
			s.run(s.delay() * 5)
		}
		s.run(3 * time.Second) // those that are under way
		s.push(a, "t", 100)
		s.run(time.Minute)
		if a.tags["t"].content != 100 || b.tags["t"].content != 100 {
			t.Errorf("seed %d: contents %d and %d", seed, a.tags["t"].content, b.tags["t"].content)
		}
		puts := a.puts + b.puts
		s.run(5 * time.Minute)
		if a.puts+b.puts != puts {
			t.Errorf("seed %d: an echo goes on for ever", seed)
		}
		s.check()
	}
}

// The lease's holder dies: another one takes over within half a minute and what it polls.
func TestTakeover(t *testing.T) {
	for seed := range uint64(20) {
		s := newSim(t, seed, 2)
		a, b := s.towns[0], s.towns[1]
		s.run(time.Minute)
		holder := a.hosts[0]
		if !holder.w.lease.mine {
			holder = a.hosts[1]
		}
		holder.kill()
		other := a.hosts[1-holder.n]
		other.write("t", 1, nil, func(st stamp) { s.acked["a"]["t"] = st })
		s.run(LeaseFor + leaseLook + 5*time.Second)
		if b.tags["t"].content != 1 {
			t.Errorf("seed %d: not taken over", seed)
		}
		s.check()
	}
}

// A worker that stops gives its lease back: nobody waits for it.
func TestStopGivesTheLeaseBack(t *testing.T) {
	s := newSim(t, 3, 2)
	a := s.towns[0]
	s.run(time.Minute)
	for _, h := range a.hosts {
		if h.w.lease.mine {
			h.step(Stop{})
			s.run(2 * leaseLook)
			if o := a.hosts[1-h.n]; !o.w.lease.mine || h.w.lease.mine {
				t.Error("the other one has not taken the lease")
			}
			return
		}
	}
	t.Error("nobody had the lease")
}

// While the remote is away each tag is written twice; then each is delivered once, soon after it is back.
func TestOutage(t *testing.T) {
	s := newSim(t, 4, 2)
	a, b := s.towns[0], s.towns[1]
	s.run(time.Minute)
	b.down = true
	for round := range 2 {
		for i := range 50 {
			s.push(a, fmt.Sprint("t", i), round*100+i+1)
		}
		s.run(10 * time.Minute)
	}
	b.down = false
	s.run(100 * time.Second) // the first that is tried brings all others with it
	if b.puts != 50 {
		t.Errorf("%d puts of 50 tags", b.puts)
	}
	s.check()
}

// One tag is refused: it is parked, others go on, and it is tried each hour.
func TestParked(t *testing.T) {
	s := newSim(t, 5, 2)
	a, b := s.towns[0], s.towns[1]
	s.run(time.Minute)
	b.refuses["t1"] = true
	s.push(a, "t1", 1)
	s.push(a, "t2", 2)
	s.run(5 * time.Second)
	if b.tags["t2"].content != 2 || !a.parked[Key{Tag: "t1"}] || len(a.outbox) != 0 {
		t.Errorf("%v, parked %v, pending %v", b.tags, a.parked, a.outbox)
	}
	s.run(3 * unparkEach / 2)
	b.refuses["t1"] = false
	s.run(unparkEach)
	if b.tags["t1"].content != 1 {
		t.Error("what was parked was not tried again")
	}
	s.check()
}

// A new rule, or a changed one, brings all that is there already; and what an index wrote that did not know the rule yet.
func TestRuleChanges(t *testing.T) {
	s := newSim(t, 6, 2)
	a, b := s.towns[0], s.towns[1]
	for i := range 20 { // without intents, as if there were no rule
		a.manifests[i+1] = true
		a.tags[fmt.Sprint("t", i)] = simTag{1, stamp{int64(i), "a"}, i + 1}
	}
	s.run(time.Minute)
	if len(b.tags) != 20 {
		t.Errorf("%d of 20 tags", len(b.tags))
	}
	a.rule = "2"
	for _, h := range a.hosts {
		h.step(a.ruleIs())
	}
	s.run(30 * time.Second)
	a.manifests[99] = true
	a.tags["late"] = simTag{1, stamp{99, "a"}, 99}
	s.run(rulesAge + 10*time.Second)
	if b.tags["late"].content != 99 {
		t.Error("a tag was overlooked")
	}
	// The remote loses all: the next walk brings it back.
	clear(b.tags)
	s.run(25 * time.Minute)
	if len(b.tags) != 21 {
		t.Errorf("%d of 21 tags", len(b.tags))
	}
}

// What is answered to a term that is over changes nothing; a lease that somebody else has is not used any more.
func TestLateAnswers(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := NewWorker("me", RuleIs{Version: "1", Parallel: 1, Rate: 1, Every: time.Hour}, 10)
	step := func(d time.Duration, e Event) string {
		now = now.Add(d)
		return fmt.Sprintf("%T", w.Step(now, e)) + fmt.Sprint(w.Step(now, Tick{}))
	}
	k := Key{Tag: "t"}
	step(0, Tick{})
	step(0, LeaseRead{})
	step(0, LeaseWritten{Version: "1"})
	step(0, Listed{Intents: []Intent{{Key: k, Revision: 1}}})
	if s := w.Status(now); !s.Mine || s.Running != 1 {
		t.Fatalf("%+v", s)
	}
	step(leaseUse, Tick{}) // nothing was answered in time
	if s := w.Status(now); s.Mine || s.Tasks != 0 {
		t.Fatalf("%+v", s)
	}
	step(0, LeaseWritten{Failed: true})
	step(0, LeaseRead{Lease: Lease{Holder: "me", Term: 1, Renewal: 1}, Version: "1"})
	step(leaseLook, LeaseRead{Lease: Lease{Holder: "", Term: 1, Renewal: 9}, Version: "2"})
	step(0, LeaseWritten{Version: "3"})
	step(0, Listed{Intents: []Intent{{Key: k, Revision: 1}}})
	if s := w.Status(now); !s.Mine || s.Running != 1 || w.lease.term != 2 {
		t.Fatalf("%+v of term %d", s, w.lease.term)
	}
	step(0, Delivered{Key: k, Term: 1, Revision: 1})
	if s := w.Status(now); s.Running != 1 {
		t.Errorf("an answer to the first term counts in the second: %+v", s)
	}
	step(leaseRenew, Tick{})
	step(0, LeaseWritten{Failed: true})
	step(0, LeaseRead{Lease: Lease{Holder: "other", Term: 3, Renewal: 12}, Version: "5"})
	if s := w.Status(now); s.Mine {
		t.Error("the lease is another one's")
	}
}

// The rule changes while a page of a walk is compared: the new walk begins with the first tag.
func TestRuleChangesInAWalk(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := NewWorker("me", RuleIs{Version: "1", Parallel: 1, Rate: 1, Every: time.Hour}, 10)
	walk := func(e Event) (from string) {
		now = now.Add(time.Second)
		for _, a := range w.Step(now, e) {
			if a, ok := a.(Walk); ok {
				return fmt.Sprintf("%q for %s, pass %d", a.From, a.Rule, a.Pass)
			}
		}
		return ""
	}
	for _, tt := range []struct {
		event Event
		want  string
	}{
		{Tick{}, ""}, {LeaseRead{}, ""}, {LeaseWritten{Version: "1"}, ""},
		{WalkIs{Cursor: "t5", Rule: "1"}, `"t5" for 1, pass 1`},
		{RuleIs{Version: "2", Parallel: 1, Rate: 1, Every: time.Hour}, ""},
		{Walked{Pass: 1, Next: "t6"}, `"" for 2, pass 2`},
		{Walked{Pass: 2, Next: "t1"}, `"t1" for 2, pass 2`},
		{Walked{Pass: 2}, ""},
	} {
		if got := walk(tt.event); got != tt.want {
			t.Errorf("%T: walks %s, want %s", tt.event, got, tt.want)
		}
	}
}
