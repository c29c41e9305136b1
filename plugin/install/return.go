package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/capelin-io/capelin/plugin"
)

// Patience is how Return waits; the zero value is not usable.
type Patience struct {
	Look     time.Duration // between looks at the files
	Min, Max time.Duration // between trials, if no file changes
	Answer   time.Duration // for the agent to answer
	Settle   time.Duration // for it to go on doing so
}

// DefaultPatience returns that of the unit.
func DefaultPatience() Patience {
	return Patience{Look: 2 * time.Second, Min: 10 * time.Second, Max: 10 * time.Minute, Answer: 30 * time.Second, Settle: 5 * time.Second}
}

// oneReturn is how long a node has to do without falling back again before another fallback
// may end by itself: an agent that works when it is tried, and not when it is needed, costs
// restarts of containerd.
const oneReturn = 24 * time.Hour

// Return ends a fallback when the agent works again. It tries the agent, beside containerd
// on its own content store; and again when one of the files changes that it needs, or when
// enough time has passed. It returns nil when the node has come back, whoever did that, or
// is to stay as it is. config reads the agent's configuration, as far as that can be read,
// and tells which files the agent needs.
func Return(
	ctx context.Context, h Host, config func() (cfg plugin.Config, files []string), p Patience, say func(format string, args ...any),
) error {
	pause, tried, seen := p.Min, time.Time{}, ""
	for {
		m := Marker(h)
		switch {
		case m == "":
			say("this node has not fallen back")
			return nil
		case strings.HasSuffix(m, stays):
			say("this node fell back and stays so: %s", m)
			return nil
		}
		cfg, files := config()
		now := stamps(h, append(files, installedFiles(h)...))
		if now != seen || time.Since(tried) >= pause {
			if now == seen {
				pause = min(2*pause, p.Max)
			} else {
				pause = p.Min
			}
			seen = now
			err := tryReturn(ctx, h, cfg, p, say)
			if err == nil {
				return nil
			}
			say("%v", err)
			tried = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(p.Look):
		}
	}
}

func tryReturn(ctx context.Context, h Host, cfg plugin.Config, p Patience, say func(format string, args ...any)) error {
	unlock, err := lock(h)
	if err != nil {
		return err
	}
	defer unlock()
	if m := Marker(h); m == "" || strings.HasSuffix(m, restarting) {
		return errors.New("somebody else is at it")
	}
	// Before containerd is touched: what was begun is known, however it ends.
	if err := write(h, returnedPath, []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o644); err != nil {
		return err
	}
	if err := comeBack(ctx, h, cfg.Socket, p.Answer, p.Settle, say); err != nil {
		return errors.Join(err, forget(h, returnedPath))
	}
	return nil
}

// returnedLately tells when the node came back by itself, if that is not long ago.
func returnedLately(h Host) (at time.Time, ok bool) {
	data, err := read(h, returnedPath)
	if err != nil {
		return at, false
	}
	at, err = time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	return at, err == nil && time.Since(at) < oneReturn
}

// installedFiles are the files of the installation that decide whether the agent runs.
func installedFiles(h Host) []string {
	files := []string{UnitDir + "/" + agentUnit, UnitDir + "/" + socketUnit}
	if r, err := installed(h); err == nil {
		files = append(files, r.Config)
	}
	return files
}

// stamps tells whether one of the files has changed.
func stamps(h Host, files []string) string {
	var b strings.Builder
	for _, path := range files {
		fi, err := os.Stat(h.Path(path))
		if err != nil {
			fmt.Fprintf(&b, "%s: none\n", path)
			continue
		}
		fmt.Fprintf(&b, "%s: %d %d\n", path, fi.Size(), fi.ModTime().UnixNano())
	}
	return b.String()
}
