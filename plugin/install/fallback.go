package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/plugin"
)

// disabledSuffix is what a drop-in is moved aside to.
const disabledSuffix = ".disabled"

// Marker returns what the marker of a fallback says, or "" if there is none:
// containerd then is as configured.
func Marker(h Host) string {
	data, err := read(h, MarkerPath)
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if text := strings.TrimSpace(string(data)); err == nil && text != "" {
		return text
	}
	return "containerd is on its own content store"
}

// Last lines of a marker.
const (
	restarting = "containerd is not yet restarted"                                   // until it has been
	stays      = "it stays so until somebody runs \"capelin agent fallback --undo\"" // no return by itself
)

// Fallback moves the drop-in aside and restarts containerd on its own content
// store, if systemd has given the agent up, or in any case if now is set. say is
// told what happens, in words for the journal. On a node that fell back already it
// completes what a killed call has begun, or else does nothing, so that it may be
// called at each failure of the agent; [Return] is the way back.
func Fallback(ctx context.Context, h Host, now bool, say func(format string, args ...any)) error {
	unlock, err := lock(h)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := installed(h)
	if err != nil {
		return err
	}
	m := Marker(h)
	if m != "" && !strings.HasSuffix(m, restarting) {
		say("this node already fell back: %s", m)
		return nil
	}
	reason, last := "it was asked for", stays+"\n"
	if m == "" && !now {
		st, err := unitState(ctx, h, agentUnit)
		switch {
		case err != nil:
			return err
		case st["ActiveState"] != "failed" || st["SubState"] != "failed":
			say("systemd still starts the agent (%s, %s): nothing to do", st["ActiveState"], st["SubState"])
			return nil
		case st["Result"] == "start-limit-hit":
			// It did not fail: it was started too often by somebody.
			say("the agent was restarted more often than its unit allows, and is started again")
			if _, err := h.Run(ctx, "systemctl", "reset-failed", agentUnit, socketUnit); err != nil {
				return err
			}
			_, err := h.Run(ctx, "systemctl", "start", socketUnit, agentUnit)
			return err
		}
		reason, last = fmt.Sprintf("the agent failed %s times (%s)%s", st["NRestarts"], st["Result"], lastWords(ctx, h)), ""
		if when, ok := returnedLately(h); ok {
			last = fmt.Sprintf("it had come back by itself at %s: %s\n", when.Format(time.RFC3339), stays)
		}
	}
	if !exists(h, r.DropIn) && !exists(h, r.DropIn+disabledSuffix) {
		return fmt.Errorf("no drop-in at %s: is Capelin installed?", r.DropIn)
	}
	if exists(h, r.DropIn) {
		if err := durable.Rename(h.Path(r.DropIn), h.Path(r.DropIn+disabledSuffix)); err != nil {
			return err
		}
	}
	// The marker keeps the agent from being started by what follows. It comes after
	// the drop-in has gone: a drop-in without an agent would stop containerd.
	text := fmt.Sprintf("since %s, because %s\n%s", time.Now().UTC().Format(time.RFC3339), reason, last)
	if m != "" { // of an earlier call, which did not come to its end
		text = strings.TrimSuffix(m, restarting)
		if last = ""; strings.Contains(m, stays) {
			last = stays
		}
	}
	if err := write(h, MarkerPath, []byte(text+restarting+"\n"), 0o644); err != nil {
		return err
	}
	say("FALLBACK: %s: %s goes back to its own content store, all images stay. The drop-in is now %s. "+
		"\"journalctl -u %s\" and \"capelin agent doctor\" say more. %s",
		reason, r.Unit, r.DropIn+disabledSuffix, agentUnit, wayBack(last))
	if _, err := h.Run(ctx, "systemctl", "restart", r.Unit); err != nil {
		return fmt.Errorf("containerd is not back on its own content store yet: %w", err)
	}
	if err := write(h, MarkerPath, []byte(text), 0o644); err != nil {
		return err
	}
	if err := stopAgent(ctx, h); err != nil || last != "" {
		return err
	}
	// Which an installation of an earlier version has not.
	if _, err := h.Run(ctx, "systemctl", "start", returnUnit); err != nil {
		say("nobody looks whether the agent works again, \"capelin agent install --start\" changes that: %v", err)
	}
	return nil
}

// stopAgent stops the agent and its sockets. That the sockets failed as well says nothing that
// the agent's own state, which stays, does not.
func stopAgent(ctx context.Context, h Host) error {
	if _, err := h.Run(ctx, "systemctl", "stop", socketUnit, agentUnit); err != nil {
		return err
	}
	_, _ = h.Run(ctx, "systemctl", "reset-failed", socketUnit) // it is an error if they did not
	return nil
}

func wayBack(last string) string {
	if last != "" {
		return "\"capelin agent fallback --undo\" is the way back."
	}
	return "When the agent works again the node comes back by itself."
}

// lastWords returns what the agent said last, to follow why it failed.
func lastWords(ctx context.Context, h Host) string {
	// Of the processes only, not what systemd says of the unit.
	out, err := h.Run(ctx, "journalctl", "_SYSTEMD_UNIT="+agentUnit, "--lines=200", "--output=cat", "--no-pager", "--quiet")
	said := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case strings.HasPrefix(line, "capelin:"), strings.HasPrefix(line, "panic:"), strings.HasPrefix(line, "fatal error:"),
			!strings.HasPrefix(said, "panic:") && !strings.HasPrefix(said, "fatal error:"): // which goroutines follow
			said = line
		}
	}
	if err != nil || said == "" {
		if said = keptError(h); said == "" {
			return ""
		}
	}
	const longest = 500
	if len(said) > longest {
		said = strings.ToValidUTF8(said[:longest], "") + " …"
	}
	return ": " + strings.TrimPrefix(said, "capelin: ")
}

// keptError is what the agent itself remembers of its last start.
func keptError(h Host) string {
	data, err := read(h, keptState.Files()[1])
	var s daemon.Starts
	if err != nil || json.Unmarshal(data, &s) != nil {
		return ""
	}
	first, _, _ := strings.Cut(s.Error, "\n")
	return first
}

// Undo ends a fallback: if the agent starts and answers within wait, the drop-in
// is put back, and agent and containerd are restarted in the order that both need.
// If it does not, everything stays as it is.
func Undo(ctx context.Context, h Host, cfg plugin.Config, wait time.Duration, say func(format string, args ...any)) (err error) {
	unlock, err := lock(h)
	if err != nil {
		return err
	}
	defer unlock()
	if Marker(h) == "" {
		return errors.New("this node did not fall back: nothing to undo")
	}
	if err := comeBack(ctx, h, cfg.Socket, wait, 0, say); err != nil {
		return err
	}
	return forget(h, returnedPath)
}

// comeBack tries the agent, beside containerd, which goes on with its own content store; and
// if the agent answers within wait, and still does when settle has passed, gives
// containerd the drop-in back.
func comeBack(ctx context.Context, h Host, socket string, wait, settle time.Duration, say func(format string, args ...any)) (err error) {
	r, err := installed(h)
	if err != nil {
		return err
	}
	end, err := beginTrial(h)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil || exists(h, r.DropIn) {
			return
		}
		// Back to what was, also when ctx is over.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, end(false), stopAgent(ctx, h))
	}()
	say("starting the agent, to see whether it can")
	// Units that did not fail cannot be reset, and need not be.
	_, _ = h.Run(ctx, "systemctl", "reset-failed", agentUnit, socketUnit)
	if _, err := h.Run(ctx, "systemctl", "start", socketUnit, agentUnit); err != nil {
		return fmt.Errorf("the agent still does not start, containerd stays on its own content store%s: %w", lastWords(ctx, h), err)
	}
	err = answers(ctx, h, socket, wait)
	if err == nil && settle > 0 {
		err = settled(ctx, h, socket, settle)
	}
	if err != nil {
		return fmt.Errorf("the agent does not answer, containerd stays on its own content store%s: %w", lastWords(ctx, h), err)
	}
	if !exists(h, r.DropIn) && !exists(h, r.DropIn+disabledSuffix) {
		return fmt.Errorf("the drop-in %s is gone: \"capelin agent install\" writes it again", r.DropIn)
	}
	// The marker first: what follows starts the agent, and a drop-in beside the marker would
	// have containerd wait for an agent that nobody starts.
	if err := end(true); err != nil {
		return err
	}
	if exists(h, r.DropIn+disabledSuffix) {
		if err := durable.Rename(h.Path(r.DropIn+disabledSuffix), h.Path(r.DropIn)); err != nil {
			return err
		}
	}
	say("the agent answers, restarting it and %s", r.Unit)
	if _, err := h.Run(ctx, "systemctl", "restart", agentUnit, r.Unit); err != nil {
		return err
	}
	say("containerd uses the agent again")
	return nil
}

// beginTrial has the units start although there is a marker. end has to be called: it takes
// the marker away, if the node comes back, and otherwise sees to it that it is there.
func beginTrial(h Host) (end func(back bool) error, err error) {
	if err := forget(h, attemptsPath); err != nil {
		return nil, err
	}
	unit, err := read(h, filepath.Join(UnitDir, agentUnit))
	if err == nil && strings.Contains(string(unit), trialPath) {
		// It is in memory: a machine that loses its power here has a marker when it is back.
		if err := os.MkdirAll(h.Path(filepath.Dir(trialPath)), 0o711); err != nil {
			return nil, err
		}
		if err := os.WriteFile(h.Path(trialPath), nil, 0o600); err != nil {
			return nil, err
		}
		return func(back bool) error {
			if back {
				if err := remove(h, MarkerPath); err != nil {
					return err
				}
			}
			return forget(h, trialPath)
		}, nil
	}
	// Units of an earlier version know the marker only.
	marker := Marker(h)
	if err := remove(h, MarkerPath); err != nil {
		return nil, err
	}
	return func(back bool) error {
		if back {
			return nil
		}
		return write(h, MarkerPath, []byte(marker+"\n"), 0o644)
	}, nil
}

// forget removes what may not be there.
func forget(h Host, path string) error {
	if err := os.Remove(h.Path(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// lock keeps two from changing which content store containerd has at once.
func lock(h Host) (unlock func(), err error) {
	if err := os.MkdirAll(h.Path(filepath.Dir(lockPath)), 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(h.Path(lockPath), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: somebody else is falling back, or coming back: %w", lockPath, err)
	}
	return func() { f.Close() }, nil
}

// answers waits until the agent is healthy.
func answers(ctx context.Context, h Host, socket string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := h.Healthy(ctx, socket)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// settled watches an agent that answers for a while.
func settled(ctx context.Context, h Host, socket string, settle time.Duration) error {
	const looks = 10
	before, err := unitState(ctx, h, agentUnit)
	if err != nil {
		return err
	}
	for range looks {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle / looks):
		}
		if err := h.Healthy(ctx, socket); err != nil {
			return err
		}
	}
	after, err := unitState(ctx, h, agentUnit)
	if err == nil && after["MainPID"] != before["MainPID"] {
		err = fmt.Errorf("it was started anew within %v", settle)
	}
	return err
}

// unitState asks systemd for a unit's state.
func unitState(ctx context.Context, h Host, unit string) (map[string]string, error) {
	out, err := h.Run(ctx, "systemctl", "show",
		"--property=LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState,MainPID,LimitNOFILE", unit)
	if err != nil {
		return nil, err
	}
	st := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			st[k] = v
		}
	}
	return st, nil
}
