package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/control/origin"
)

// Ring is a ring of origins, each on a host of its own.
type Ring struct {
	Members []*RingMember // by number
	Client  *Host         // from which they are used; its link has no limit

	c     *Cluster
	o     RingOptions
	names string // the file with the members' addresses, each host's /etc/hosts
}

// RingOptions say how a ring is set up.
type RingOptions struct {
	Members  int               // that are made
	Rate     int64             // of each one's link, bytes per second each way; 0: as fast as it goes
	Trackers []string          // host:port
	Keys     map[string]string // of origind.toml to values as TOML, instead of the harness's
	TOML     string            // appended: backends
}

// RingMember is a `capelin origind` that is one of a ring.
type RingMember struct {
	*Host
	Listen string   // host:port of its API
	Root   string   // all that it keeps, without Disks
	Disks  []string // where its disks are mounted; below each is "data"

	ring *Ring
	proc *Process
	at   *origin.Member
}

// ringName is the name of the DNS by which members find each other.
const ringName = "origins.ring"

// NewRing makes a ring and starts no member. They are called o1, o2, ….
func (c *Cluster) NewRing(o RingOptions) (*Ring, error) {
	r := &Ring{c: c, o: o, names: filepath.Join(c.Dir, "ring.hosts")}
	if err := os.WriteFile(r.names, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		return nil, err
	}
	var err error
	if r.Client, err = c.NewHost("client"); err != nil {
		return nil, err
	}
	for range o.Members {
		if _, err := r.Add(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Add makes one more member, which the others find by the name of all, and does not start it.
func (r *Ring) Add() (*RingMember, error) {
	h, err := r.c.NewHost(fmt.Sprintf("o%d", len(r.Members)+1))
	if err != nil {
		return nil, err
	}
	if err := r.c.Shape(h, r.o.Rate); err != nil {
		return nil, err
	}
	m := &RingMember{Host: h, Listen: h.Addr + ":7480", Root: filepath.Join(h.Dir, "data"), ring: r}
	if err := h.in(enterMount, func() error { return unix.Mount(r.names, "/etc/hosts", "", unix.MS_BIND, "") }); err != nil {
		return nil, fmt.Errorf("giving %s names of others: %w", h.Name, err)
	}
	f, err := os.OpenFile(r.names, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", h.Addr, ringName)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	m.at, err = origin.NewMember(origin.Config{Origins: []string{m.Listen}, Dial: r.Client.DialContext})
	if err != nil {
		return nil, err
	}
	r.c.onClose(m.at.Close)
	r.Members = append(r.Members, m)
	return m, nil
}

// Start starts members, all if none are given, and waits until they answer.
func (r *Ring) Start(ctx context.Context, members ...*RingMember) error {
	if len(members) == 0 {
		members = r.Members
	}
	for _, m := range members {
		if err := m.begin(); err != nil {
			return err
		}
	}
	for _, m := range members {
		if err := m.proc.await(ctx, m.accepts(m.Listen)); err != nil {
			return err
		}
	}
	return nil
}

// Origins returns the addresses of members, of all if none are given.
func (r *Ring) Origins(members ...*RingMember) (all []string) {
	if len(members) == 0 {
		members = r.Members
	}
	for _, m := range members {
		all = append(all, m.Listen)
	}
	return all
}

// Open returns a client of members, of all if none are given, on the client's host.
func (r *Ring) Open(members ...*RingMember) (*origin.Client, error) {
	c, err := origin.New(origin.Config{Origins: r.Origins(members...), Dial: r.Client.DialContext})
	if err == nil {
		r.c.onClose(c.Close)
	}
	return c, err
}

// Cut has no packet pass between two hosts, or ends that. Neither is told.
func (c *Cluster) Cut(a, b *Host, cut bool) error {
	return errors.Join(unreach(a, b, cut), unreach(b, a, cut))
}

// Disk gives it one more disk, before it starts: an empty one, of so many bytes.
func (m *RingMember) Disk(ctx context.Context, size int64) error {
	dir := filepath.Join(m.Dir, fmt.Sprint("disk", len(m.Disks)+1))
	m.Disks = append(m.Disks, dir)
	return m.NewDisk(ctx, dir, size)
}

// NewDisk mounts an empty disk, where none is mounted.
func (m *RingMember) NewDisk(ctx context.Context, dir string, size int64) error {
	if err := m.MountExt4(ctx, dir, size); err != nil {
		return err
	}
	return os.Mkdir(m.Path(filepath.Join(dir, "data")), 0o700)
}

// Roots are the directories in which it keeps all, as it is told them.
func (m *RingMember) Roots() []string {
	if len(m.Disks) == 0 {
		return []string{m.Root}
	}
	var all []string
	for _, dir := range m.Disks {
		all = append(all, filepath.Join(dir, "data"))
	}
	return all
}

func (m *RingMember) begin() error {
	keys := map[string]string{
		"root": fmt.Sprintf("%q", m.Root), "listen": fmt.Sprintf("%q", m.Listen), "metrics": fmt.Sprintf("%q", m.Addr+":7482"),
		"node": fmt.Sprintf("%q", m.Name), "insecure": "true", "log_level": `"debug"`,
		"trackers":     `["` + strings.Join(m.ring.o.Trackers, `", "`) + `"]`,
		"swarm.listen": fmt.Sprintf("%q", m.Addr+":7481"), "ring.members": `["dns+` + ringName + `:7480"]`,
		// Tests must not depend on how full this machine's disk is.
		"cache.free_floor": "-1.0",
	}
	if len(m.ring.o.Trackers) == 0 {
		delete(keys, "trackers")
	}
	if len(m.Disks) > 0 {
		keys["data"] = `["` + strings.Join(m.Roots(), `", "`) + `"]`
	}
	for k, v := range m.ring.o.Keys {
		keys[k] = v
	}
	config := filepath.Join(m.Dir, "origind.toml")
	if err := os.WriteFile(config, []byte(tomlOf(keys)+m.ring.o.TOML), 0o644); err != nil {
		return err
	}
	bin, err := Built("capelin")
	if err != nil {
		return err
	}
	m.proc, err = m.Host.Start("origind", nil, nil, bin, "origind", "--config", config)
	return err
}

// Kill ends it with SIGKILL.
func (m *RingMember) Kill() { m.proc.Kill() }

// Stop ends it with SIGTERM.
func (m *RingMember) Stop() error { return m.proc.Stop() }

// Running reports whether it has not ended.
func (m *RingMember) Running() bool { return m.proc.Running() }

// Wipe removes all that it keeps; it must not run.
func (m *RingMember) Wipe() error { return os.RemoveAll(m.Root) }

// Freeze has it do nothing, as a machine whose power management went wrong; or go on.
func (m *RingMember) Freeze(yes bool) error {
	if yes {
		return m.proc.Signal(syscall.SIGSTOP)
	}
	return m.proc.Signal(syscall.SIGCONT)
}

// Tail returns the last lines of its log.
func (m *RingMember) Tail(lines int) string { return m.proc.Tail(lines) }

// API is the member as operators and other members ask it, from the client's host.
func (m *RingMember) API() *origin.Member { return m.at }

// Metric returns the sum of a metric's values, of those that have all the labels, which are "name=value". What is not there is 0.
func (m *RingMember) Metric(ctx context.Context, name string, labels ...string) (sum float64, err error) {
	text, err := m.HTTP(ctx, "http://"+m.Addr+":7482/metrics")
	if err != nil {
		return 0, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return 0, err
	}
	for _, one := range families[name].GetMetric() {
		has := 0
		for _, l := range one.GetLabel() {
			if slices.Contains(labels, l.GetName()+"="+l.GetValue()) {
				has++
			}
		}
		if has == len(labels) {
			sum += one.GetCounter().GetValue() + one.GetGauge().GetValue() + one.GetUntyped().GetValue()
		}
	}
	return sum, nil
}

// PID returns the process's id, as this machine sees it.
func (m *RingMember) PID() int { return m.proc.PID() }
