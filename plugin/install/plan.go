package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/plugin"
)

// Options say what is installed.
type Options struct {
	Where
	Binary string // the agent's program, for its unit; "": BinaryPath
	Config string // the agent's configuration; "": ConfigPath
	Set    []string
	Force  bool // overwrite what others changed, and install for a containerd that is too old
}

// Action is what happens to a file.
type Action string

// The actions.
const (
	Create    Action = "create"
	Update    Action = "update"
	Unchanged Action = "unchanged"
	Keep      Action = "keep"     // it is the user's
	Conflict  Action = "conflict" // somebody else wrote or changed it
	Remove    Action = "remove"
)

// Change is one file of a Plan.
type Change struct {
	Path     string
	Action   Action
	Old, New []byte
	Mode     os.FileMode
	Why      string // of Keep and Conflict
}

// Plan is what an installation would write.
type Plan struct {
	Survey  *Survey
	Agent   plugin.Config // as agent.toml has it, or will
	Changes []Change      // in the order in which they are written
	Notes   []string      // what the user should know
	Fallen  bool          // the node fell back, and stays so: see Undo
	binary  string
	receipt *Receipt
	force   bool
}

// ErrConflict says that files are in the way that somebody else has written.
var ErrConflict = errors.New("files are in the way")

// NewPlan compares what should be there with what is. It writes nothing.
func NewPlan(h Host, s *Survey, o Options) (*Plan, error) {
	if s.Version != "" && !atLeast(s.Version, 2, 1) && !o.Force {
		return nil, fmt.Errorf("containerd is %s: the agent needs 2.1 or newer as its client", s.Version)
	}
	p := &Plan{Survey: s, binary: cmp.Or(o.Binary, BinaryPath), force: o.Force}
	agent := Change{Path: cmp.Or(o.Config, ConfigPath), Mode: 0o644}
	if err := p.agentConfig(h, &agent, o.Set); err != nil {
		return nil, err
	}
	path, form, err := s.place(h)
	if err != nil {
		return nil, err
	}
	old, err := LoadReceipt(h)
	if errors.Is(err, os.ErrNotExist) {
		old, err = &Receipt{Files: map[string]string{}}, nil
	}
	if err != nil {
		return nil, err
	}
	p.receipt = &Receipt{
		Version: version.Version(), Flavor: s.Flavor, Unit: s.Unit, Main: s.Config, Config: agent.Path, DropIn: path,
		Edited: old.Edited, Line: old.Line, Files: map[string]string{},
	}
	if agent.Action == Create || old.Files[agent.Path] != "" {
		p.receipt.Files[agent.Path] = cmp.Or(old.Files[agent.Path], sum(agent.New))
	}
	p.Changes = append(p.Changes, agent)

	units := Units(p.Agent, p.binary, agent.Path, s.Unit, path)
	for _, name := range slices.Sorted(maps.Keys(units)) {
		if err := p.file(h, old, name, units[name]); err != nil {
			return nil, err
		}
	}
	if form == FormEdit {
		if err := p.importLine(h, path); err != nil {
			return nil, err
		}
	}
	// Last: from here on containerd uses the agent when it starts. A node that fell
	// back stays so until Undo.
	p.Fallen = exists(h, MarkerPath)
	at := path
	if p.Fallen {
		at = path + disabledSuffix
		old.Files[at] = old.Files[path]
	}
	u, err := s.unpacking(h, path)
	if err != nil {
		return nil, err
	}
	if err := p.file(h, old, at, dropIn(p.Agent, u, form)); err != nil {
		return nil, err
	}
	if p.Fallen {
		p.receipt.Files[path] = p.receipt.Files[at]
		delete(p.receipt.Files, at)
		delete(old.Files, at)
	}
	for _, name := range slices.Sorted(maps.Keys(old.Files)) {
		if _, ours := p.receipt.Files[name]; !ours {
			if err := p.obsolete(h, name, old.Files[name]); err != nil {
				return nil, err
			}
		}
	}
	p.note(h, form)
	return p, nil
}

// agentConfig reads agent.toml, or makes one of the defaults.
func (p *Plan) agentConfig(h Host, c *Change, set []string) error {
	p.Agent = plugin.DefaultConfig()
	data, err := read(h, c.Path)
	switch {
	case err == nil:
		if len(set) > 0 {
			return fmt.Errorf("%s exists: values cannot be set from the command line, edit the file", c.Path)
		}
		if err := config.Parse(c.Path, data, &p.Agent); err != nil {
			return err
		}
		c.Action, c.Old, c.New, c.Why = Keep, data, data, "it is yours to edit"
	case errors.Is(err, os.ErrNotExist):
		p.Agent.Root, p.Agent.Containerd = p.Survey.ContentRoot, p.Survey.socket()
		if err := config.Load("", &p.Agent, set...); err != nil {
			return err
		}
		var b bytes.Buffer
		if err := config.Print(&b, p.Agent); err != nil {
			return err
		}
		c.Action, c.New = Create, b.Bytes()
	default:
		return err
	}
	if p.Agent.Root != p.Survey.ContentRoot && !p.force {
		return fmt.Errorf("root in %s is %s, but containerd keeps its content in %s: with another directory all images would be gone",
			c.Path, p.Agent.Root, p.Survey.ContentRoot)
	}
	return nil
}

// file plans a file that is all ours.
func (p *Plan) file(h Host, old *Receipt, path, text string) error {
	c := Change{Path: path, New: []byte(text), Mode: 0o644}
	data, err := read(h, path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Action = Create
	case err != nil:
		return err
	case string(data) == text:
		c.Action, c.Old = Unchanged, data
	case old.Files[path] == sum(data):
		c.Action, c.Old = Update, data
	default:
		c.Action, c.Old, c.Why = Conflict, data, "it has been changed since it was installed"
		if old.Files[path] == "" {
			c.Why = "it was not written by an installation"
		}
	}
	p.receipt.Files[path] = sum(c.New)
	p.Changes = append(p.Changes, c)
	return nil
}

// obsolete plans for a file that an earlier installation needed.
func (p *Plan) obsolete(h Host, path, was string) error {
	data, err := read(h, path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case sum(data) == was:
		p.Changes = append(p.Changes, Change{Path: path, Action: Remove, Old: data})
	default:
		const why = "no longer needed, but it has been changed since it was installed"
		p.Changes = append(p.Changes, Change{Path: path, Action: Keep, Old: data, New: data, Why: why})
	}
	return nil
}

// importLine plans the line by which containerd's main file imports the
// directory of drop-ins.
func (p *Plan) importLine(h Host, dropIn string) error {
	line := fmt.Sprintf("imports = [%q] # added by \"capelin agent install\"\n", p.Survey.DropIns+"/*.toml")
	c := Change{Path: p.Survey.Config, Action: Update, Mode: 0o644}
	data, err := read(h, c.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Action = Create
		line = "version = 3\n" + line
	case err != nil:
		return err
	default:
		fi, err := os.Stat(h.Path(c.Path))
		if err != nil {
			return err
		}
		c.Mode = fi.Mode().Perm()
	}
	c.Old, c.New = data, append([]byte(line), data...)
	p.receipt.Edited, p.receipt.Line = c.Path, line
	p.Changes = append(p.Changes, c)
	return nil
}

// note says what the files do not.
func (p *Plan) note(h Host, form Form) {
	s := p.Survey
	add := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	if s.Version == "" {
		add("containerd's version is not known; it must be 2.1 or newer")
	}
	if !exists(h, p.binary) {
		add("the program is not at %s, where its unit expects it", p.binary)
	}
	if form == FormTemplate {
		add("%s does not import drop-ins, so its template is written; a newer %s imports %s by itself", s.Config, s.Flavor, s.DropIns)
	}
	if p.Agent.Unpack && p.Agent.UnpackLayers > 1 && !atLeast(s.Version, 2, 2) {
		add("unpack_layers is %d, but containerd %s unpacks one layer of an image after the other", p.Agent.UnpackLayers, s.Version)
	}
	for _, other := range s.Effective.otherStores() {
		add("containerd has another content store, the proxy plugin %s: it accepts one only, remove the other", other)
	}
	if p.Fallen {
		add("this node fell back to containerd's own content store; \"capelin agent fallback --undo\" is the way back")
	}
	if len(p.Agent.Trackers) == 0 {
		add("no trackers are configured in %s: each blob comes from the registry", p.receipt.Config)
	}
}

// Conflicts returns the files that others have written.
func (p *Plan) Conflicts() (paths []string) {
	for _, c := range p.Changes {
		if c.Action == Conflict {
			paths = append(paths, c.Path)
		}
	}
	return paths
}

// Apply writes the files, and then the receipt. It writes nothing and fails with
// ErrConflict if there are conflicts, unless Options.Force was set: then the files
// in the way are kept beside the new ones, with the suffix ".orig". After a
// failure in the middle it can be repeated.
func (p *Plan) Apply(h Host) error {
	if c := p.Conflicts(); len(c) > 0 && !p.force {
		return fmt.Errorf("%w: %s; look at them, and use --force to replace them", ErrConflict, strings.Join(c, ", "))
	}
	for _, c := range p.Changes {
		if err := p.apply(h, c); err != nil {
			return fmt.Errorf("installing %s: %w", c.Path, err)
		}
	}
	p.receipt.Time = time.Now().UTC().Truncate(time.Second)
	return p.receipt.save(h)
}

func (p *Plan) apply(h Host, c Change) error {
	switch c.Action {
	case Conflict:
		if err := write(h, c.Path+".orig", c.Old, c.Mode); err != nil {
			return err
		}
		return write(h, c.Path, c.New, c.Mode)
	case Create, Update:
		return write(h, c.Path, c.New, c.Mode)
	case Remove:
		return os.Remove(h.Path(c.Path))
	}
	return nil
}

// Write prints the plan: every file, with diff also the lines that come and go.
func (p *Plan) Write(w io.Writer, diff bool) {
	writeChanges(w, p.Changes, diff)
	for _, n := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}

func writeChanges(w io.Writer, changes []Change, diff bool) {
	for _, c := range changes {
		c.write(w, diff)
	}
}

func (c *Change) write(w io.Writer, diff bool) {
	fmt.Fprintf(w, "%-9s %s", c.Action, c.Path)
	if c.Why != "" {
		fmt.Fprintf(w, " (%s)", c.Why)
	}
	fmt.Fprintln(w)
	if !diff {
		return
	}
	old, new := lines(c.Old), lines(c.New)
	if c.Action == Remove {
		new = nil
	}
	for len(old) > 0 && len(new) > 0 && old[0] == new[0] {
		old, new = old[1:], new[1:]
	}
	for len(old) > 0 && len(new) > 0 && old[len(old)-1] == new[len(new)-1] {
		old, new = old[:len(old)-1], new[:len(new)-1]
	}
	for _, l := range old {
		fmt.Fprintf(w, "  -%s\n", l)
	}
	for _, l := range new {
		fmt.Fprintf(w, "  +%s\n", l)
	}
}

func lines(data []byte) []string {
	if len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// Startable reports what would keep the agent from starting: its program, or its
// identity. containerd must not be restarted then.
func (p *Plan) Startable(h Host) error {
	const why = "the agent could not start, so containerd is not restarted onto it, and nothing is changed"
	switch fi, err := os.Stat(h.Path(p.binary)); {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: there is no program at %s; put it there (install -m 755 capelin %[2]s), or say --binary where it is",
			why, p.binary)
	case err != nil:
		return fmt.Errorf("%s: %w", why, err)
	case !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s: %s is not an executable file; chmod 755 %[2]s", why, p.binary)
	}
	certs := onHost(h, p.Agent.Identity)
	if !certs.Enabled() {
		return nil
	}
	src, err := identity.Load(certs, p.Agent.Cluster)
	if err != nil {
		return fmt.Errorf("%s: %w", why, err)
	}
	name, err := nodeName(h, &p.Agent)
	if err != nil {
		return fmt.Errorf("%s: the name of this node: %w", why, err)
	}
	if id := src.ID(); id.Name != name || !id.Has(identity.RoleNode) {
		return fmt.Errorf("%s: identity.cert: %s is for %s, and this is node %q: issue one with that name and the role node, or set node",
			why, p.Agent.Identity.Cert, id, name)
	}
	return nil
}

// Start has systemd load and enable the units and open the sockets. The agent
// itself starts when containerd first asks, or when the node boots. With restart
// the agent and containerd are restarted, in the order that both need: containerd
// stops, the agent starts and sees what containerd has left, containerd starts.
func Start(ctx context.Context, h Host, unit string, restart bool) error {
	cmds := [][]string{
		{"daemon-reload"},
		{"enable", socketUnit, agentUnit, returnUnit},
		{"start", socketUnit},
	}
	if restart {
		cmds = append(cmds, []string{"restart", agentUnit, unit})
	}
	for _, args := range cmds {
		if _, err := h.Run(ctx, "systemctl", args...); err != nil {
			return err
		}
	}
	return nil
}

// NextSteps returns the commands that remain to be done.
func (p *Plan) NextSteps(h Host, started, restarted bool) (steps []string) {
	if !h.Live() {
		return []string{"systemctl --root=" + h.Path("/") + " enable " + socketUnit + " " + agentUnit + " " + returnUnit}
	}
	if !started {
		steps = append(steps, "systemctl daemon-reload", "systemctl enable "+socketUnit+" "+agentUnit+" "+returnUnit)
	}
	if p.Fallen {
		return append(steps, "capelin agent fallback --undo", "capelin agent doctor")
	}
	if !restarted {
		steps = append(steps, "systemctl restart "+agentUnit+" "+p.Survey.Unit)
	}
	return append(steps, "capelin agent doctor")
}
