package main

import (
	"errors"
	"testing"
	"time"
)

// A role gives itself up when it has failed often and for long, not when it is killed or
// restarted after it came up.
func TestAttempts(t *testing.T) {
	const at = 200 * time.Millisecond
	no := errors.New("no")
	for _, tt := range []struct {
		name   string
		every  time.Duration
		up     bool // it comes up, and ends later
		killed bool // it does not end in order
		give   int  // which start gives up; 0: none of 100
	}{
		{name: "fails at once", every: at, give: 51}, // after ten seconds
		{name: "fails slowly", every: 5 * time.Second, give: 6},
		{name: "hangs until it is killed", every: 30 * time.Second, killed: true, give: 7},
		{name: "is killed at once", every: at, killed: true, give: 51},
		{name: "is killed when it has come up", every: at, up: true, killed: true},
		{name: "fails when it has come up", every: at, up: true},
		{name: "fails once in a while", every: attemptsApart},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, now := t.TempDir(), time.Now()
			gave := 0
			for i := 1; i <= 100 && gave == 0; i++ {
				a := beginAttempt(dir, now)
				err := a.before(now)
				if err == nil && tt.up {
					a.up()
				}
				if err == nil && !tt.killed {
					if err = a.after(no, now); !errors.Is(err, no) {
						t.Fatalf("the error is lost: %v", err)
					}
				}
				if _, code := exit(err, nil); code == gaveUp {
					gave = i
					if said := errors.Is(err, no); said == tt.killed {
						t.Errorf("given up because of %v", err)
					}
				}
				now = now.Add(tt.every)
			}
			if gave != tt.give {
				t.Errorf("given up at start %d, want %d", gave, tt.give)
			}
		})
	}
	for range 100 { // where nothing can be counted
		a := beginAttempt("", time.Unix(0, 0))
		if a.before(time.Now()) != nil || a.after(no, time.Now()) != no {
			t.Fatal("given up without counting")
		}
	}
}
