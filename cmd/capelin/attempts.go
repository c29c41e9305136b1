package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/capelin-io/capelin/plugin/install"
)

// attempts count a role's starts, one after the other, of which none came up, in a file that
// does not outlive the machine. A role that is of no use gives itself up, and whoever
// watches over it does not start it again: systemd's own limit counts starts, those of an
// agent that is often killed, or restarted by somebody, too.
type attempts struct {
	path string // "": nothing is counted
	n    int    // this one included
	from time.Time
	mute bool // the one before this did not end by itself, or could not say why
}

const (
	attemptsLeast  = 6                // starts of which none comes up …
	attemptsWithin = 10 * time.Second // … and that take so long, are enough
	attemptsApart  = 2 * time.Minute  // those that are further apart have nothing to do with each other
)

// gaveUp is the status of a role that is not to be started again; EX_CONFIG of sysexits.h,
// and RestartPreventExitStatus of the agent's unit.
const gaveUp = install.GaveUp

// hopeless is why a role ends that is not to be started again.
type hopeless struct{ error }

func (h hopeless) Unwrap() error { return h.error }

type attemptsFile struct {
	N    int       `json:"n"`
	From time.Time `json:"from"`
	Last time.Time `json:"last"`
	Said bool      `json:"said"` // the last one ended, and said why
}

// beginAttempt counts one more, in the directory that systemd gives for such things.
func beginAttempt(dir string, now time.Time) *attempts {
	a := &attempts{n: 1, from: now}
	if dir == "" {
		return a
	}
	a.path = filepath.Join(dir, "starts.json")
	var had attemptsFile
	if data, err := os.ReadFile(a.path); err == nil && json.Unmarshal(data, &had) == nil && now.Sub(had.Last) < attemptsApart {
		a.n, a.from, a.mute = had.N+1, had.From, !had.Said
	}
	a.save(now, false)
	return a
}

// save writes what is counted. What cannot be counted is not given up.
func (a *attempts) save(now time.Time, said bool) {
	data, err := json.Marshal(attemptsFile{a.n, a.from, now, said})
	if err != nil || os.WriteFile(a.path, data, 0o600) != nil {
		a.path = ""
	}
}

// up forgets them: the role has come up.
func (a *attempts) up() {
	if a.path != "" {
		_ = os.Remove(a.path)
	}
	a.n = 0
}

// enough reports whether n starts, the first of them at from, were enough.
func (a *attempts) enough(n int, now time.Time) bool {
	return a.path != "" && n >= attemptsLeast && now.Sub(a.from) >= attemptsWithin
}

// before returns why there is no use in this start: those before it were enough, and the last
// one could not say so.
func (a *attempts) before(now time.Time) error {
	if a.mute && a.enough(a.n-1, now) {
		return hopeless{fmt.Errorf("%d starts were of no use, and the last one was killed, or hung, before it came up", a.n-1)}
	}
	return nil
}

// after returns err, of a start that has failed, as the last one if there is no use in another.
func (a *attempts) after(err error, now time.Time) error {
	if err == nil || a.n == 0 || a.path == "" {
		return err
	}
	a.save(now, true)
	if a.enough(a.n, now) {
		return hopeless{fmt.Errorf("%w (given up after %d starts in %v)", err, a.n, now.Sub(a.from).Round(time.Second))}
	}
	return err
}
