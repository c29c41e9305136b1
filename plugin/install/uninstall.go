package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/capelin-io/capelin/internal/durable"
)

// Removal is what Uninstall would remove.
type Removal struct {
	Receipt *Receipt
	Changes []Change // drop-in first
	Links   []string // by which systemd starts the units
	early   int      // how many of Changes are containerd's configuration
}

// NewRemoval compares what an installation wrote with what is there. Files that
// somebody has changed since are kept, unless force is set. Without an
// installation the error is os.ErrNotExist.
func NewRemoval(h Host, force bool) (*Removal, error) {
	rec, err := LoadReceipt(h)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("nothing is known to be installed here: %w", err)
	}
	if err != nil {
		return nil, err
	}
	r := &Removal{Receipt: rec}
	was := rec.Files[rec.DropIn]
	for _, path := range []string{rec.DropIn, rec.DropIn + disabledSuffix} {
		if err := r.file(h, path, was, force); err != nil {
			return nil, err
		}
	}
	if err := r.importLine(h); err != nil {
		return nil, err
	}
	r.early = len(r.Changes)
	for _, path := range slices.Sorted(maps.Keys(rec.Files)) {
		if path != rec.DropIn {
			if err := r.file(h, path, rec.Files[path], force); err != nil {
				return nil, err
			}
		}
	}
	links, err := filepath.Glob(h.Path(UnitDir + "/*.wants/capelin-agent*"))
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		r.Links = append(r.Links, filepath.Join("/", strings.TrimPrefix(l, h.Path("/"))))
	}
	return r, nil
}

func (r *Removal) file(h Host, path, was string, force bool) error {
	data, err := read(h, path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case sum(data) == was || force:
		r.Changes = append(r.Changes, Change{Path: path, Action: Remove, Old: data})
	default:
		r.Changes = append(r.Changes, Change{Path: path, Action: Keep, Old: data, New: data, Why: "it has been changed since it was installed"})
	}
	return nil
}

// importLine takes our line out of containerd's file, unless other drop-ins
// have come to need it.
func (r *Removal) importLine(h Host) error {
	if r.Receipt.Edited == "" {
		return nil
	}
	c := Change{Path: r.Receipt.Edited, Mode: 0o644}
	data, err := read(h, c.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fi, err := os.Stat(h.Path(c.Path))
	if err != nil {
		return err
	}
	c.Mode = fi.Mode().Perm()
	others, err := filepath.Glob(h.Path(filepath.Join(filepath.Dir(r.Receipt.DropIn), "*.toml")))
	if err != nil {
		return err
	}
	others = slices.DeleteFunc(others, func(p string) bool { return filepath.Base(p) == filepath.Base(r.Receipt.DropIn) })
	c.Old, c.New = data, bytes.Replace(data, []byte(r.Receipt.Line), nil, 1)
	switch {
	case len(others) > 0:
		c.Action, c.New, c.Why = Keep, data, "the line that was added imports other drop-ins as well"
	case bytes.Equal(c.Old, c.New):
		c.Action, c.Why = Keep, "the line that was added is no longer there as it was"
	case len(c.New) == 0:
		c.Action = Remove
	default:
		c.Action = Update
	}
	r.Changes = append(r.Changes, c)
	return nil
}

// Write prints what is removed, with diff also the lines of it.
func (r *Removal) Write(w io.Writer, diff bool) {
	writeChanges(w, r.Changes, diff)
	for _, l := range r.Links {
		fmt.Fprintf(w, "%-9s %s\n", Remove, l)
	}
}

// Apply removes the files. With restart containerd is restarted as soon as its
// configuration is its own again, and then the agent is stopped. Without it both
// run on as they are, until the commands are run that NextSteps returns. After a
// failure in the middle it can be repeated.
func (r *Removal) Apply(ctx context.Context, h Host, restart bool) error {
	if err := r.apply(h, r.Changes[:r.early]); err != nil {
		return err
	}
	if restart {
		if _, err := h.Run(ctx, "systemctl", "restart", r.Receipt.Unit); err != nil {
			return err
		}
		if err := stopAgent(ctx, h); err != nil {
			return err
		}
	}
	if err := r.apply(h, r.Changes[r.early:]); err != nil {
		return err
	}
	for _, path := range slices.Concat(r.Links, keptState.Files(), []string{MarkerPath, returnedPath, receipt}) {
		if err := remove(h, path); err != nil {
			return err
		}
	}
	dirs := []string{
		filepath.Dir(filepath.Join(UnitDir, unpackConf)),
		filepath.Join(UnitDir, r.Receipt.Unit+".wants"),
		filepath.Dir(r.Receipt.Config),
		keptState.Dir,
		StateDir,
	}
	for _, dir := range dirs {
		_ = os.Remove(h.Path(dir)) // if it is empty
	}
	if restart {
		_, err := h.Run(ctx, "systemctl", "daemon-reload")
		return err
	}
	return nil
}

func (r *Removal) apply(h Host, changes []Change) (err error) {
	for _, c := range changes {
		switch c.Action {
		case Remove:
			err = remove(h, c.Path)
		case Update:
			err = write(h, c.Path, c.New, c.Mode)
		}
		if err != nil {
			return fmt.Errorf("uninstalling: %w", err)
		}
	}
	return nil
}

func remove(h Host, path string) error {
	return durable.Remove(h.Path(path))
}

// NextSteps returns the commands that remain to be done.
func (r *Removal) NextSteps(h Host, restarted bool) []string {
	if !h.Live() || restarted {
		return nil
	}
	return []string{"systemctl restart " + r.Receipt.Unit, "systemctl stop " + socketUnit + " " + agentUnit, "systemctl daemon-reload"}
}
