package swarm

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func exactly(d time.Duration) time.Duration { return d }

// A node that fails is tried ever later, up to a bound, and reported once an hour.
func TestFailuresBackOff(t *testing.T) {
	s := newFailures()
	now, err := time.Duration(0), errors.New("no")
	for k, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second} {
		f, warn := s.add("a", "a:1", nil, ReasonRefused, err, now, exactly)
		if f.next-now != want || f.fails != k+1 || f.since != 0 || warn != (k == 0) {
			t.Errorf("failure %d: again after %v, want %v; since %v; reported: %v", k+1, f.next-now, want, f.since, warn)
		}
		now += time.Minute
	}
	for range 100 {
		if f, _ := s.add("a", "a:1", nil, ReasonRefused, err, now, exactly); f.next-now > lastRetry {
			t.Fatalf("again after %v", f.next-now)
		}
	}
	if !s.clear("a") || s.of("a") != nil || s.clear("a") {
		t.Error("it is not forgotten")
	}
	if _, warn := s.add("a", "a:1", nil, ReasonRefused, err, warnEvery-1, exactly); warn {
		t.Error("reported twice within the hour")
	}
	if f, warn := s.add("a", "a:1", nil, ReasonRefused, err, warnEvery, exactly); !warn || f.fails != 2 {
		t.Errorf("not reported after an hour, %d failures", f.fails)
	}
}

func TestFailuresAreBounded(t *testing.T) {
	s := newFailures()
	for k := range 3 * maxFailures {
		s.add(fmt.Sprint("n", k), "", nil, ReasonTimeout, errNoAnswer, 0, exactly)
	}
	if n := len(s.all()); n != maxFailures || s.warned.Len() != maxFailures {
		t.Errorf("%d are remembered, of %d that they were reported", n, s.warned.Len())
	}
}

// Who has failed is no hope, but while it is tried again; and one that closed the connection
// may just be full.
func TestFailureHope(t *testing.T) {
	for why, until := range map[Reason]time.Duration{ReasonRefused: 0, ReasonSilent: 0, ReasonClosed: 10 + sourceWithin} {
		s := newFailures()
		f, _ := s.add("a", "", nil, why, errNoAnswer, 10, exactly)
		if got := f.hope(); got != until {
			t.Errorf("%s: hope until %v, want %v", why, got, until)
		}
		if f.tried = 5 * time.Second; f.hope() != 5*time.Second+probeFor {
			t.Errorf("%s, tried again: hope until %v", why, f.hope())
		}
	}
}
