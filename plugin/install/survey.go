package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Layout is where one way of installing containerd keeps things.
type Layout struct {
	Flavor   string   // "containerd", "kind", "k3s" or "rke2"
	Config   string   // containerd's main file
	DropIns  string   // directory for drop-ins, if Config imports it
	Template string   // template of Config, if that is generated; "": it is not
	Root     string   // containerd's default directory
	Socket   string   // containerd's default socket
	Binaries []string // where its program may be; the first found counts
	Units    []string // systemd units that run it; the first found counts
}

func rancher(name string, units []string, binaries ...string) Layout {
	etc := "/var/lib/rancher/" + name + "/agent/etc/containerd"
	return Layout{
		Flavor: name, Config: etc + "/config.toml", DropIns: etc + "/config-v3.toml.d", Template: etc + "/config-v3.toml.tmpl",
		Root: "/var/lib/rancher/" + name + "/agent/containerd", Socket: "/run/k3s/containerd/containerd.sock",
		Units: units, Binaries: binaries,
	}
}

// layouts are tried in this order; the last one is what remains.
var layouts = []Layout{
	rancher("k3s", []string{"k3s-agent.service", "k3s.service"}, "/var/lib/rancher/k3s/data/current/bin/containerd"),
	rancher("rke2", []string{"rke2-agent.service", "rke2-server.service"}, "/var/lib/rancher/rke2/bin/containerd"),
	{
		Flavor: "containerd", Config: "/etc/containerd/config.toml", DropIns: "/etc/containerd/conf.d",
		Root: "/var/lib/containerd", Socket: "/run/containerd/containerd.sock",
		Binaries: []string{"/usr/local/bin/containerd", "/usr/bin/containerd", "/usr/sbin/containerd"},
		Units:    []string{"containerd.service"},
	},
}

// Flavors are the names of the known ways to install containerd.
var Flavors = []string{"containerd", "k3s", "rke2"}

// unitDirs is where systemd finds units.
var unitDirs = []string{
	"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
}

// Where says what Look shall not find out by itself; its zero value is nothing.
type Where struct {
	Flavor string // one of Flavors
	Config string // containerd's main file
	Unit   string // systemd unit that runs containerd
}

// Survey is what Look found.
type Survey struct {
	Layout
	Unit        string
	Binary      string      // containerd's program; "": not found
	Version     string      // as in "2.4.2"; "": unknown
	Running     *Containerd // nil: it does not answer
	NotRunning  error       // why
	Effective   Effective   // what it would load if it were started now
	ContentRoot string      // its content directory
	SystemdRuns bool
}

// Look finds containerd on a host. It fails only if containerd's configuration
// cannot be read; a containerd that is not there or too old is for the reader of
// the Survey to judge.
func Look(ctx context.Context, h Host, where Where) (*Survey, error) {
	l, err := layout(h, where.Flavor)
	if err != nil {
		return nil, err
	}
	s := &Survey{Layout: l, Unit: where.Unit}
	if where.Config != "" && where.Config != l.Config {
		s.Config, s.DropIns, s.Template = where.Config, filepath.Join(filepath.Dir(where.Config), "conf.d"), ""
	}
	for _, b := range l.Binaries {
		if s.Binary == "" && exists(h, b) {
			s.Binary = b
		}
	}
	if s.Unit == "" {
		s.Unit = cmp.Or(firstUnit(h, l.Units), l.Units[0])
	}
	s.SystemdRuns = h.Live() && exists(h, "/run/systemd/system")

	if s.Effective, err = effective(ctx, h, s.Binary, s.Config); err != nil {
		return nil, err
	}
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := h.Containerd(ask, s.socket())
	if err == nil {
		s.Running = &c
	} else {
		s.NotRunning = err
	}
	s.Version = s.version(ctx, h)
	s.ContentRoot = filepath.Join(s.root(), stockContent)
	return s, nil
}

func layout(h Host, flavor string) (Layout, error) {
	for i, l := range layouts {
		last := i == len(layouts)-1
		if flavor != "" && flavor != l.Flavor || flavor == "" && !last && !exists(h, filepath.Dir(l.Config)) {
			continue
		}
		if last && exists(h, "/kind") {
			l.Flavor = "kind"
		}
		return l, nil
	}
	return Layout{}, fmt.Errorf("flavor %q is none of %s", flavor, strings.Join(Flavors, ", "))
}

func firstUnit(h Host, units []string) string {
	for _, u := range units {
		for _, dir := range unitDirs {
			if exists(h, filepath.Join(dir, u)) {
				return u
			}
		}
	}
	return ""
}

// socket is containerd's own.
func (s *Survey) socket() string { return cmp.Or(s.Effective.Address, s.Layout.Socket) }

// root is containerd's directory: what its plugins use, or what is configured.
func (s *Survey) root() string {
	if s.Running != nil {
		for _, p := range s.Running.Plugins {
			if r := strings.TrimSuffix(p.Root, "/"+p.Type+"."+p.ID); p.Root != "" && r != p.Root {
				return r
			}
		}
	}
	return cmp.Or(s.Effective.Root, s.Layout.Root)
}

// version asks the running containerd, or the program, and returns "" if
// neither tells.
func (s *Survey) version(ctx context.Context, h Host) string {
	if s.Running != nil {
		return strings.TrimPrefix(s.Running.Version, "v")
	}
	if s.Binary == "" {
		return ""
	}
	out, err := h.Run(ctx, s.Binary, "--version")
	if err != nil {
		return ""
	}
	// "containerd <import path> v2.4.2 <revision>"
	for _, f := range strings.Fields(out) {
		if v := strings.TrimPrefix(f, "v"); len(v) > 0 && v[0] >= '0' && v[0] <= '9' && strings.Contains(v, ".") {
			return v
		}
	}
	return ""
}

// atLeast reports whether a version such as "2.4.2-k3s1" or "6.1.0-28-amd64" is
// major.minor or later; a version that cannot be read is not.
func atLeast(version string, major, minor int) bool {
	a, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	x, errx := strconv.Atoi(a)
	y, erry := strconv.Atoi(b)
	return errx == nil && erry == nil && (x > major || x == major && y >= minor)
}

// Form is how a drop-in reaches containerd.
type Form int

// The forms.
const (
	FormImport   Form = iota // containerd's main file imports it
	FormEdit                 // the main file must get a line that imports it
	FormTemplate             // it is the template of the main file
)

// place says where the drop-in goes: into a directory that the main file imports,
// or else what must be done so that it does.
func (s *Survey) place(h Host) (path string, form Form, err error) {
	path = filepath.Join(s.DropIns, "capelin.toml")
	f, err := readFile(h, s.Config)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if s.Template != "" { // it is made when the node first starts, and imports the directory
			return path, FormImport, nil
		}
		return path, FormEdit, nil
	case err != nil:
		return "", 0, err
	}
	patterns := imports(s.Config, f.Imports)
	covers := func(path string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { ok, _ := filepath.Match(p, path); return ok })
	}
	if covers(path) {
		return path, FormImport, nil
	}
	for _, p := range patterns { // another directory that it imports
		if other := filepath.Join(filepath.Dir(p), "capelin.toml"); !strings.Contains(filepath.Dir(p), "*") && covers(other) {
			return other, FormImport, nil
		}
	}
	if s.Template != "" {
		return s.Template, FormTemplate, nil
	}
	if len(f.Imports) > 0 {
		return "", 0, fmt.Errorf("%s has imports, but none for a directory of drop-ins: add %q to its list",
			s.Config, filepath.Join(s.DropIns, "*.toml"))
	}
	return path, FormEdit, nil
}
