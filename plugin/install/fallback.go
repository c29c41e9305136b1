package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

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

// restarting is the last line of a marker until containerd has been restarted.
const restarting = "containerd is not yet restarted"

// Fallback moves the drop-in aside and restarts containerd on its own content
// store, if systemd has given the agent up, or in any case if now is set. say is
// told what happens, in words for the journal. It does nothing on a node that fell
// back already, so that it may be called at each failure of the agent, but
// completes what a killed call has begun.
func Fallback(ctx context.Context, h Host, now bool, say func(format string, args ...any)) error {
	r, err := installed(h)
	if err != nil {
		return err
	}
	m := Marker(h)
	if m != "" && !strings.HasSuffix(m, restarting) {
		say("this node already fell back: %s", m)
		return nil
	}
	reason := "it was asked for"
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
		reason = fmt.Sprintf("the agent failed %s times (%s)", st["NRestarts"], st["Result"])
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
	text := fmt.Sprintf("since %s, because %s\n", time.Now().UTC().Format(time.RFC3339), reason)
	if m != "" { // of an earlier call, which did not come to its end
		text = strings.TrimSuffix(m, restarting)
	}
	if err := write(h, MarkerPath, []byte(text+restarting+"\n"), 0o644); err != nil {
		return err
	}
	say("FALLBACK: %s: %s goes back to its own content store, all images stay. The drop-in is now %s. "+
		"Find out why with \"journalctl -u %s\" and \"capelin agent doctor\"; \"capelin agent fallback --undo\" is the way back.",
		reason, r.Unit, r.DropIn+disabledSuffix, agentUnit)
	if _, err := h.Run(ctx, "systemctl", "restart", r.Unit); err != nil {
		return fmt.Errorf("containerd is not back on its own content store yet: %w", err)
	}
	if err := write(h, MarkerPath, []byte(text), 0o644); err != nil {
		return err
	}
	_, err = h.Run(ctx, "systemctl", "stop", socketUnit, agentUnit)
	return err
}

// Undo ends a fallback: if the agent starts and answers within wait, the drop-in
// is put back, and agent and containerd are restarted in the order that both need.
// If it does not, everything stays as it is.
func Undo(ctx context.Context, h Host, cfg plugin.Config, wait time.Duration, say func(format string, args ...any)) (err error) {
	r, err := installed(h)
	if err != nil {
		return err
	}
	marker := Marker(h)
	if marker == "" {
		return errors.New("this node did not fall back: nothing to undo")
	}
	if err := remove(h, MarkerPath); err != nil {
		return err
	}
	defer func() {
		if err == nil || exists(h, r.DropIn) {
			return
		}
		// Back to what was, also when ctx is over.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if werr := write(h, MarkerPath, []byte(marker+"\n"), 0o644); werr != nil {
			err = errors.Join(err, werr)
		}
		if _, serr := h.Run(ctx, "systemctl", "stop", socketUnit, agentUnit); serr != nil {
			err = errors.Join(err, serr)
		}
	}()
	say("starting the agent, to see whether it can")
	// Units that did not fail cannot be reset, and need not be.
	_, _ = h.Run(ctx, "systemctl", "reset-failed", agentUnit, socketUnit)
	if _, err := h.Run(ctx, "systemctl", "start", socketUnit, agentUnit); err != nil {
		return fmt.Errorf("the agent still does not start, containerd stays on its own content store: %w", err)
	}
	if err := answers(ctx, h, cfg.Socket, wait); err != nil {
		return fmt.Errorf("the agent does not answer, containerd stays on its own content store: %w", err)
	}
	if exists(h, r.DropIn+disabledSuffix) {
		if err := durable.Rename(h.Path(r.DropIn+disabledSuffix), h.Path(r.DropIn)); err != nil {
			return err
		}
	}
	if !exists(h, r.DropIn) {
		return fmt.Errorf("the drop-in %s is gone: \"capelin agent install\" writes it again", r.DropIn)
	}
	say("the agent answers, restarting it and %s", r.Unit)
	if _, err := h.Run(ctx, "systemctl", "restart", agentUnit, r.Unit); err != nil {
		return err
	}
	say("containerd uses the agent again")
	return nil
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
