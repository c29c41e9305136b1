package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/gateway"
	"github.com/capelin-io/capelin/indexd"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind"
	"github.com/capelin-io/capelin/trackerd"
)

// serverConfig is the configuration of `capelin server`: what the four roles have in
// common, and each role's own table, as in its own file.
type serverConfig struct {
	Data    string `toml:"data" comment:"Directory for everything that the server keeps: blobs, tags, the queue. All of it must be on one file system. An absolute path."`
	Address string `toml:"address" comment:"IP address or name of this machine on which the tracker (port 7470), the origin (7480, swarm 7481), the index (7490) and the gateway (7500) listen. All nodes must reach it. The default is for trying Capelin on one machine."`
	Name    string `toml:"name" comment:"Name of this server, unique in the cluster, among its nodes too. Empty: the certificate's, or without identity \"origin-\" and the host's name."`
	Zone    string `toml:"zone" comment:"Where this server is, such as a rack or an availability zone. May be empty."`
	daemon.Common

	Storage backends.IndexStorage `toml:"storage" comment:"One storage for tags (below index/) and blobs (blobs/ and records/). Servers that are one ring name the same one, and then each has an index of the same tags."`
	Next    backends.IndexStorage `toml:"next" like:"storage" comment:"Where all of that goes when \"capelin index move\" and \"capelin origin move-backend\" move it: all servers are told, before it begins. No kind: nowhere."`

	Tracker trackerd.Config `toml:"tracker" comment:"As in \"capelin trackerd config\". Here and below, what is empty follows from the keys above."`
	Origin  origind.Config  `toml:"origin" comment:"As in \"capelin origind config\"."`
	Index   indexd.Config   `toml:"index" comment:"As in \"capelin indexd config\"."`
	Gateway gateway.Config  `toml:"gateway" comment:"As in \"capelin gateway config\"."`

	reload <-chan serverConfig
}

// Notes adds to the comments of common keys.
func (serverConfig) Notes() map[string]string {
	notes := map[string]string{
		"metrics": "Shows all roles but those that have an address of their own; /readyz speaks for all.",
		"identity": "The certificate needs the roles tracker, origin, index and gateway: \"capelin ca issue --role " +
			"tracker,origin,index,gateway --name NAME --host ADDRESS\".",
		"origin.ring.members": "Servers that are one ring need this key, the same on all of them, and storage, or gateway.indexes. " +
			"What else is empty follows from it: name from address, origin.trackers (port 7470 of each), index.origins and gateway.origins; " +
			"and, if all indexes have one storage, gateway.indexes (port 7490 of each).",
		"storage.kind": "Empty: tags are kept below data, and blobs by the origins themselves.",
	}
	for _, r := range new(serverConfig).roles() {
		for _, key := range []string{"log_level", "log_format"} { // the process has one log
			notes[r.name+"."+key] = "Not used: the roles share the server's."
		}
	}
	return notes
}

func defaultServerConfig() serverConfig {
	c := serverConfig{
		Data: "/var/lib/capelin/server", Address: "127.0.0.1",
		// Beside the port of the gateway, which is the one that people know of a server.
		Common:  daemon.DefaultCommon("127.0.0.1:7501"),
		Tracker: trackerd.DefaultConfig(), Origin: origind.DefaultConfig(), Index: indexd.DefaultConfig(), Gateway: gateway.DefaultConfig(),
	}
	for _, r := range c.roles() {
		*r.common = daemon.Common{}
	}
	for _, d := range c.derived() {
		*d.at = ""
	}
	for _, d := range c.references() {
		*d.at = []string{}
	}
	c.Index.Storage = backends.IndexStorage{Kind: backends.KindFile} // where that is follows from storage, or data
	return c
}

// part is one of the server's roles.
type part struct {
	name   string // also its table's
	common *daemon.Common
	config daemon.Config
}

func (c *serverConfig) roles() []part {
	return []part{
		{"tracker", &c.Tracker.Common, &c.Tracker},
		{"origin", &c.Origin.Common, &c.Origin},
		{"index", &c.Index.Common, &c.Index},
		{"gateway", &c.Gateway.Common, &c.Gateway},
	}
}

// derived is a role's key that follows from one of the server's, if it is empty.
type derived[T any] struct {
	key   string
	at    *T
	from  string
	value T
}

func (c *serverConfig) derived() []derived[string] {
	on := func(port string) string { return net.JoinHostPort(c.Address, port) }
	all := []derived[string]{
		{"tracker.listen", &c.Tracker.Listen, "address", on("7470")},
		{"origin.listen", &c.Origin.Listen, "address", on("7480")},
		{"origin.swarm.listen", &c.Origin.Swarm.Listen, "address", on("7481")},
		{"index.listen", &c.Index.Listen, "address", on("7490")},
		{"gateway.listen", &c.Gateway.Listen, "address", on("7500")},
		{"origin.root", &c.Origin.Root, "data", filepath.Join(c.Data, "origin")},
		{"origin.node", &c.Origin.Node, "name", c.Name},
		{"origin.zone", &c.Origin.Zone, "zone", c.Zone},
	}
	for _, r := range c.roles() {
		all = append(all,
			derived[string]{r.name + ".cluster", &r.common.Cluster, "cluster", c.Cluster},
			derived[string]{r.name + ".log_level", &r.common.LogLevel, "log_level", c.LogLevel},
			derived[string]{r.name + ".log_format", &r.common.LogFormat, "log_format", c.LogFormat})
	}
	return all
}

// fillStorage has tags and blobs be where the server's storage says, unless their role says otherwise.
func (c *serverConfig) fillStorage(from map[string]string) {
	shared := c.Storage.Kind != "" && len(c.Storage.Check("")) == 0
	moves := shared && c.Next.Kind != "" && len(c.Next.Check("")) == 0
	switch s := &c.Index.Storage; {
	case !c.ownTags():
	case shared:
		*s, from["index.storage.kind"] = c.Storage, "storage.kind"
		if moves && c.Index.Next.Kind == "" {
			c.Index.Next = c.Next
		}
	default:
		s.Kind, s.File.Path, from["index.storage.file.path"] = backends.KindFile, filepath.Join(c.Data, "index"), "data"
	}
	if c.Index.Storage.Kind == "" {
		c.Index.Storage.Kind = backends.KindFile
	}
	if shared && len(c.Origin.Backends) == 0 {
		b := backends.Config{Name: "storage", Namespaces: []string{".*"}, Storage: *c.Storage.Storage()}
		if moves {
			b.Next = *c.Next.Storage()
		}
		c.Origin.Backends = []backends.Config{b}
	}
}

// ownTags reports whether nobody has said where the index keeps its tags.
func (c *serverConfig) ownTags() bool {
	s := c.Index.Storage
	return (s.Kind == "" || s.Kind == backends.KindFile) && s.File.Path == ""
}

// references are how the roles find each other, when all addresses are known.
func (c *serverConfig) references() []derived[[]string] {
	trackers, origins := c.ring()
	return []derived[[]string]{
		{"origin.trackers", &c.Origin.Trackers, "tracker.listen", trackers},
		{"index.origins", &c.Index.Origins, "origin.listen", origins},
		{"gateway.origins", &c.Gateway.Origins, "origin.listen", origins},
		{"gateway.indexes", &c.Gateway.Indexes, "index.listen", c.indexes()},
	}
}

// indexes returns this server's index and, if they have one storage, those of all other members whose names are known, on this one's port.
func (c *serverConfig) indexes() []string {
	own := c.reached(c.Index.Listen)
	all := []string{own}
	if !c.Index.Storage.Shared() && c.Index.Storage.File.Path == filepath.Join(c.Data, "index") {
		return all
	}
	_, port, _ := net.SplitHostPort(own)
	for _, m := range c.Origin.Ring.List() {
		if x := net.JoinHostPort(hostOf(m), port); m.Name != "" && m.Name != c.Origin.Node && x != own {
			all = append(all, x)
		}
	}
	return all
}

// ring returns the trackers and origins of all servers whose origins are one ring: this one's, and those of the other members, which
// have their trackers on this one's port.
func (c *serverConfig) ring() (trackers, origins []string) {
	_, port, _ := net.SplitHostPort(c.Tracker.Listen)
	for _, m := range c.Origin.Ring.List() {
		tracker := net.JoinHostPort(hostOf(m), port)
		if m.Name == "" {
			tracker = "dns+" + tracker
		}
		trackers, origins = append(trackers, tracker), append(origins, m.Address)
	}
	if !c.listed() {
		trackers = append([]string{c.reached(c.Tracker.Listen)}, trackers...)
		origins = append([]string{c.reached(c.Origin.Listen)}, origins...)
	}
	return trackers, origins
}

// reached returns where others reach what listens on an address, host:port.
func (c *serverConfig) reached(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip, _ := netip.ParseAddr(host); err == nil && (host == "" || ip.IsUnspecified()) {
		return net.JoinHostPort(c.Address, port)
	}
	return listen
}

// hostOf returns where a member is; "" if its address is none, as the origin's Validate says.
func hostOf(m origind.RingMember) string {
	addr := m.Address
	if _, after, ok := strings.Cut(addr, "://"); ok {
		addr = after
	}
	host, _, _ := net.SplitHostPort(addr)
	return host
}

// memberAt returns the name of the member of the ring that is on this machine, as far as its configuration says.
func (c *serverConfig) memberAt() string {
	for _, m := range c.Origin.Ring.List() {
		if hostOf(m) == c.Address {
			return m.Name
		}
	}
	return ""
}

// listed reports whether the members of the ring name this server's origin.
func (c *serverConfig) listed() bool {
	return slices.ContainsFunc(c.Origin.Ring.List(), func(m origind.RingMember) bool { return m.Name != "" && m.Name == c.Origin.Node })
}

// several reports whether there are other servers, as far as the configuration says.
func (c *serverConfig) several() bool {
	all := c.Origin.Ring.List()
	return len(all) > 1 || len(all) == 1 && all[0].Name == ""
}

// fill returns c with the roles' tables complete, and from which key each follows that
// nobody wrote.
func (c serverConfig) fill() (full serverConfig, from map[string]string) {
	from = map[string]string{}
	for _, d := range c.derived() {
		if *d.at == "" {
			*d.at, from[d.key] = d.value, d.from
		}
	}
	c.fillStorage(from)
	if c.Origin.Node == "" {
		c.Origin.Node = c.memberAt()
	}
	if r := &c.Origin.Ring; r.Address == "" && len(r.Members) > 0 && c.reached(c.Origin.Listen) != c.Origin.Listen && !c.listed() {
		r.Address, from["origin.ring.address"] = c.reached(c.Origin.Listen), "origin.listen"
	}
	for _, d := range c.references() {
		if len(*d.at) == 0 {
			*d.at, from[d.key] = d.value, d.from
		}
	}
	for _, r := range c.roles() {
		if !r.common.Identity.Enabled() {
			r.common.Identity = c.Identity
			for _, key := range []string{"ca", "cert", "key"} {
				from[r.name+".identity."+key] = "identity." + key
			}
		}
		r.common.Insecure = r.common.Insecure || c.Insecure
		if r.common.Metrics == c.Metrics { // one address shows them all
			c.Pprof = c.Pprof || r.common.Pprof
			r.common.Metrics, r.common.Pprof = "", false
		}
	}
	return c, from
}

// Written learns which keys somebody wrote. A role's metrics on the port of the server's,
// of which nobody spoke, are where all are shown: files that are older than the server's
// own address keep theirs.
func (c *serverConfig) Written(is func(key string) bool) {
	if is("metrics") {
		return
	}
	for _, r := range c.roles() {
		if daemon.SamePort(r.common.Metrics, c.Metrics) {
			c.Metrics = r.common.Metrics
			return
		}
	}
}

// ignoreRoleLogs takes out what roles say of the log, which is one, and warns of it.
func (c *serverConfig) ignoreRoleLogs(ctx context.Context) {
	for _, r := range c.roles() {
		for _, k := range []struct {
			key    string
			role   *string
			server string
		}{{"log_level", &r.common.LogLevel, c.LogLevel}, {"log_format", &r.common.LogFormat, c.LogFormat}} {
			if *k.role != "" && *k.role != k.server {
				log.G(ctx).WithFields(log.Fields{"key": r.name + "." + k.key, "instead": k.key}).
					Warn("a role's key is not used, because all roles of a server share its log; leave it out")
			}
			*k.role = ""
		}
	}
}

// Validate reports what is wrong with c, by the keys that somebody wrote.
func (c *serverConfig) Validate() error {
	errs := c.Common.Check()
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if !filepath.IsAbs(c.Data) {
		bad("data", "%q is not an absolute path", c.Data)
	}
	if c.Address == "" {
		bad("address", "must be set")
		return errors.Join(errs...) // most of the roles' keys follow from it
	}
	errs = append(errs, c.CheckListen("address", net.JoinHostPort(c.Address, "7500"), nil)...)
	for _, r := range c.roles() {
		if m := r.common.Metrics; r.common.Pprof && m != "" && m == c.Metrics && !identity.IsLoopback(m) {
			bad(r.name+".pprof", "is served on loopback only, and %s.metrics is %q", r.name, m)
		}
	}
	switch {
	case c.Storage.Kind != "":
		errs = append(errs, c.Storage.Check("storage.")...)
	case c.Storage != backends.IndexStorage{}:
		bad("storage.kind", "must be set, because others of the storage are")
	}
	switch {
	case c.Next.Kind != "" && c.Storage.Kind == "":
		bad("next.kind", "says where the storage goes, and there is none: set storage, or index.next and next of a backend of the origin")
	case c.Next.Kind != "":
		errs = append(errs, c.Next.Check("next.")...)
	}
	if c.several() && c.Storage.Kind == "" && len(c.Gateway.Indexes) == 0 && c.ownTags() {
		bad("gateway.indexes", "must be set, because there are several servers (origin.ring.members) and each one's index has tags of its "+
			"own: name one server's index here, the same on all of them, such as %q; or keep the tags of all in one storage",
			net.JoinHostPort(c.Address, "7490"))
	}
	full, from := c.fill()
	if len(full.Origin.Ring.Members) > 0 && full.Origin.Ring.Static() && !full.listed() {
		bad("origin.ring.members", "has no member at address, which is %q: write the one in both, or this server's name as members has it",
			c.Address)
	}
	told := map[string]bool{}
	for _, err := range errs {
		told[config.KeyOf(err)] = true
	}
	for _, r := range full.roles() {
		for _, err := range config.Renamed(r.config.Validate(), func(key string) string { return r.name + "." + key }) {
			key := config.KeyOf(err)
			if by := written(from, key); by != key {
				if told[by] { // as one of the server's own, or by another role
					continue
				}
				key, err = by, config.Renamed(err, func(string) string { return by })[0]
			}
			told[key] = true
			errs = append(errs, err)
		}
		if daemon.Overlap(r.common.Metrics, full.Metrics) && !told["metrics"] { // those that are equal are shared
			bad(r.name+".metrics", "%q and metrics, %q, are on one port: make them equal, which shows all roles there, or choose another port",
				r.common.Metrics, full.Metrics)
		}
	}
	for _, err := range full.checkPorts() {
		if key := config.KeyOf(err); !told[key] {
			told[key] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkIdentity reports what is wrong with the roles' certificates, each thing once, by the keys that somebody wrote.
func (c serverConfig) checkIdentity() error {
	full, from := c.fill()
	told := map[string]bool{}
	var errs []error
	for _, r := range full.roles() {
		for _, err := range config.Renamed(daemon.CheckIdentity(r.config), func(key string) string { return written(from, r.name+"."+key) }) {
			if !told[err.Error()] {
				told[err.Error()] = true
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// checkPorts returns which addresses of a complete configuration are one another's. Metrics of a role and
// the server's were compared.
func (c *serverConfig) checkPorts() []error {
	listens := []daemon.Address{
		{Key: "tracker.listen", Addr: c.Tracker.Listen}, {Key: "origin.listen", Addr: c.Origin.Listen},
		{Key: "origin.swarm.listen", Addr: c.Origin.Swarm.Listen}, {Key: "index.listen", Addr: c.Index.Listen},
		{Key: "gateway.listen", Addr: c.Gateway.Listen},
	}
	metrics := slices.Clone(listens)
	for _, r := range c.roles() {
		metrics = append(metrics, daemon.Address{Key: r.name + ".metrics", Addr: r.common.Metrics})
	}
	return append(daemon.CheckPorts(append(listens, daemon.Address{Key: "metrics", Addr: c.Metrics})...), daemon.CheckPorts(metrics...)...)
}

// written returns the key that somebody wrote, or could have, of which key follows.
func written(from map[string]string, key string) string {
	for from[key] != "" {
		key = from[key]
	}
	return key
}
