package ringstate

import (
	"testing"
	"time"
)

// Whose clock is wrong is known by what it says of the time, and not by the stamps that all go by then. That answers take long says
// nothing of clocks, nor does who is not heard of.
func TestSkew(t *testing.T) {
	w := newWorld(t, 1, "a b c", Config{Ask: 30 * time.Second, Down: time.Minute})
	w.node("c").skew = -time.Hour
	w.node("b").skew = 4 * time.Second
	w.begin()
	w.whole()
	skews := func(name string) (all [3]time.Duration) {
		for i, p := range w.node(name).ring.Peers() {
			all[i] = p.Skew.Round(10 * time.Second)
		}
		return all
	}
	for name, want := range map[string][3]time.Duration{
		"a": {0, 0, -time.Hour}, "b": {0, 0, -time.Hour}, "c": {time.Hour, time.Hour, 0},
	} {
		if got := skews(name); got != want {
			t.Errorf("at %s: %v, want %v", name, got, want)
		}
	}
	w.node("b").skew, w.node("c").skew = 0, 0
	w.slow = 15 * time.Second
	w.run(30 * time.Second)
	for range 300 {
		w.run(time.Second)
		if got := skews("a"); got != [3]time.Duration{} {
			t.Fatalf("it takes slow answers for clocks: %v", got)
		}
	}
	w.slow = 20 * time.Millisecond
	w.node("c").skew = 2 * time.Hour
	w.run(time.Minute)
	if got := skews("a"); got[2] != 2*time.Hour {
		t.Errorf("its clock was set: %v", got)
	}
	w.node("c").stop()
	w.run(2 * time.Minute)
	if got := skews("a"); got[2] != 0 {
		t.Errorf("it is not heard of: %v", got)
	}
}
