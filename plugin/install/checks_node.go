package install

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/swarm"
)

// checkRoot compares the agent's content directory with containerd's.
func checkRoot(_ context.Context, p *patient, add report) {
	if p.survey == nil {
		return
	}
	root, theirs := p.agent.Root, p.survey.ContentRoot
	if root != theirs {
		add(Fail, fmt.Sprintf("root is %s, but containerd's content is in %s", root, theirs),
			"The agent would not have the blobs that containerd knows of: images would be broken.",
			fmt.Sprintf("Set root = %q in %s and restart the agent.", theirs, p.agent.file()))
		return
	}
	if !exists(p, root) {
		add(Warn, root+" does not exist yet",
			"The agent makes it, but on a containerd that has run it should be there.", "Check that containerd's root is mounted.")
		return
	}
	top, err := p.Disk(root)
	if err != nil {
		add(Fail, err.Error(), "The agent cannot work without its directory.", "Check the disk.")
		return
	}
	for _, dir := range []string{"blobs", "blobs/sha256", "ingest", "cache", "swarm", "swarm/partial"} {
		path := filepath.Join(root, dir)
		if d, err := p.Disk(path); err == nil && d.Device != top.Device {
			add(Fail, fmt.Sprintf("%s is on another file system than %s", path, root),
				"Blobs move between these directories by renaming, which works on one file system only.",
				"Mount one file system for the whole content directory.")
			return
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			add(Fail, err.Error(), "The agent cannot work without its directories.", "Check the disk.")
			return
		}
	}
	add(OK, root+", on one file system", "", "")
}

// checkDisk looks at free space.
func checkDisk(_ context.Context, p *patient, add report) {
	d, err := p.Disk(p.agent.Root)
	if err != nil || d.Size == 0 {
		return // checkRoot says so
	}
	pods, err := p.Disk(kubeletDir)
	want, kubelet := demands(p, d.Size, err == nil && pods.Device == d.Device)
	free, floor := float64(d.Free)/float64(d.Size), p.agent.Cache.FreeFloor
	space := fmt.Sprintf("%.0f%% of %.0f GiB are free", 100*free, float64(d.Size)/(1<<30))
	switch {
	case free < 0.02:
		add(Fail, space, "Pulls fail when the disk is full.", "Remove images or enlarge the disk.")
	case kubelet && free < want.free:
		add(Warn, fmt.Sprintf("%s, and kubelet %s", space, want.does), want.costs, "Remove images or enlarge the disk.")
	case free < floor:
		add(Warn, fmt.Sprintf("%s, less than cache.free_floor (%.0f%%)", space, 100*floor),
			"The cache is kept empty: what containerd deletes is not seeded any more.",
			"Enlarge the disk, or lower cache.free_floor, but not below kubelet's threshold.")
	default:
		add(OK, space, "", "")
	}
	if size := int64(p.agent.Cache.Size); kubelet && size > 0 && floor <= want.free {
		add(Warn, fmt.Sprintf("cache.free_floor is %.0f%%, and kubelet %s (%s)", 100*max(floor, 0), want.does, want.setting),
			"The cache may fill the disk up to where kubelet begins to remove images and pods.",
			fmt.Sprintf("Set cache.free_floor above %.2f in %s.", want.free, p.agent.file()))
	}
}

// checkKernel looks at what unpacking needs.
func checkKernel(_ context.Context, p *patient, add report) {
	k, err := p.Kernel()
	switch {
	case err != nil:
		add(Warn, err.Error(), "The kernel's version is not known.", "")
	case atLeast(k, 5, 6):
		add(OK, "Linux "+k, "", "")
	case p.agent.Unpack:
		add(Warn, "Linux "+k+", and unpack = true",
			"The agent's own unpacking needs openat2, of Linux 5.6; without it containerd's slower code is used.",
			"Update the kernel, or set unpack = false.")
	default:
		add(Warn, "Linux "+k, "It works, but not with unpack = true, which needs Linux 5.6.", "Update the kernel.")
	}
}

// checkOverlay looks for overlayfs.
func checkOverlay(_ context.Context, p *patient, add report) {
	data, err := read(p, "/proc/filesystems")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(data)) {
		if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == "overlay" {
			add(OK, "available", "", "")
			return
		}
	}
	add(Warn, "the kernel does not have it loaded", "containerd's default snapshotter needs it.", "Load the module: modprobe overlay.")
}

// wantFiles is LimitNOFILE of the agent's unit.
const wantFiles = 1 << 20

// checkFiles looks at limits of open files.
func checkFiles(ctx context.Context, p *patient, add report) {
	if data, err := read(p, "/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n < wantFiles {
			add(Fail, fmt.Sprintf("fs.nr_open is %d", n),
				fmt.Sprintf("The agent's unit asks for %d open files, and cannot be started with more than fs.nr_open.", wantFiles),
				fmt.Sprintf("sysctl fs.nr_open=%d, or lower LimitNOFILE in a drop-in of %s.", wantFiles, agentUnit))
			return
		}
	}
	if p.survey == nil || !p.survey.SystemdRuns {
		return
	}
	st, err := unitState(ctx, p, agentUnit)
	if err != nil || st["LoadState"] != "loaded" {
		return
	}
	if n, err := strconv.Atoi(st["LimitNOFILE"]); err == nil && n < 16384 {
		add(Warn, fmt.Sprintf("the agent may have %d files open", n),
			"Blobs and peers' connections are open files: it may run out of them.",
			fmt.Sprintf("Raise LimitNOFILE of %s.", agentUnit))
		return
	}
	add(OK, "the agent may have "+st["LimitNOFILE"]+" files open", "", "")
}

// checkClock looks at the time.
func checkClock(_ context.Context, p *patient, add report) {
	now, synced, err := p.Clock()
	switch {
	case err != nil:
		add(Warn, err.Error(), "Whether the clock is synchronised is not known.", "")
	case now.Year() < 2025:
		add(Fail, "it is "+now.UTC().Format(time.RFC3339),
			"Registries' and Capelin's certificates are not valid at this time.", "Set the clock; run chrony or systemd-timesyncd.")
	case !synced:
		add(Warn, "it is not synchronised",
			"Certificates are refused by a clock that is wrong, and logs of nodes cannot be compared.",
			"Run chrony or systemd-timesyncd.")
	default:
		add(OK, "synchronised", "", "")
	}
}

// checkIdentity looks at the agent's certificate.
func checkIdentity(_ context.Context, p *patient, add report) {
	c := onHost(p, p.agent.Identity)
	switch {
	case !c.Enabled() && p.agent.Insecure:
		add(Warn, "there is none, and insecure = true",
			"Everybody on that network can take blobs from this node and tell it about others.",
			"Make certificates with \"capelin ca\" and configure [identity].")
		return
	case !c.Enabled():
		add(OK, "there is none, and none is needed on loopback", "", "")
		return
	}
	const why = "The agent does not start without a certificate that the others accept."
	const issue = "Issue one with \"capelin ca issue\"."
	cert, id, err := identity.ReadCert(c.Cert)
	now, _, cerr := p.Clock()
	switch {
	case cert == nil:
		add(Fail, err.Error(), why, issue)
		return
	case cerr == nil && now.Before(cert.NotBefore):
		from, here := cert.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)
		add(Fail, fmt.Sprintf("the certificate is valid from %s, and it is %s here", from, here),
			why, "Check the clock of this node, and of the machine that issued it.")
		return
	case cerr == nil && now.After(cert.NotAfter):
		add(Fail, "the certificate has ended on "+cert.NotAfter.UTC().Format(time.RFC3339), why, issue)
		return
	case err != nil:
		add(Fail, err.Error(), why, issue)
		return
	case p.identity == nil:
		_, err := identity.Load(c, p.agent.Cluster)
		add(Fail, errText(err), why, "Check the files below [identity]; the CA must be the one that issued the certificate.")
		return
	}
	name, err := nodeName(p, &p.agent.Config)
	if err != nil {
		add(Warn, "the name of this node is not known: "+err.Error(), "The certificate must have it.", "")
		return
	}
	switch left := cert.NotAfter.Sub(now); {
	case id.Name != name:
		add(Fail, fmt.Sprintf("the certificate is for %q, and this is node %q", id.Name, name),
			"A node may speak for itself only.", "Issue one with that name, or set node in "+p.agent.file()+".")
	case !id.Has(identity.RoleNode):
		add(Fail, fmt.Sprintf("the certificate is for %s", id),
			"It lacks the role node: no peer and no tracker speaks with it.", "Issue one with --role node.")
	case left < 30*24*time.Hour:
		add(Warn, fmt.Sprintf("the certificate ends on %s, in %d days", cert.NotAfter.UTC().Format(time.RFC3339), int(left.Hours()/24)),
			"After that the node is alone.", "Issue a new one: files are read again without a restart.")
	default:
		add(OK, fmt.Sprintf("%s, until %s", id, cert.NotAfter.UTC().Format(time.DateOnly)), "", "")
	}
	if fi, err := os.Stat(c.Key); err == nil && fi.Mode().Perm()&0o077 != 0 {
		add(Warn, fmt.Sprintf("%s can be read by others (%04o)", p.agent.Identity.Key, fi.Mode().Perm()),
			"Who has the key is this node.", "chmod 600 "+p.agent.Identity.Key)
	}
}

// nodeName returns what the agent will take for its name.
func nodeName(h Host, c *plugin.Config) (string, error) {
	if c.Node != "" {
		return c.Node, nil
	}
	name, err := read(h, "/proc/sys/kernel/hostname")
	return strings.TrimSpace(string(name)), err
}

// checkTrackers asks the running agent about its trackers, or if there is none, connects to
// each: whether it is a tracker, and of this cluster, only a tracker's client can tell.
func checkTrackers(ctx context.Context, p *patient, add report) {
	switch {
	case p.running != nil && p.running.Swarm != "":
		add(Warn, "the agent asks none, because it takes no part in the swarm: "+p.running.Swarm,
			"Nodes do not find each other: this one pulls from the registry by itself.", "Mend that first.")
		return
	case p.running != nil && len(p.running.Trackers) > 0:
		askedTrackers(p, add)
		return
	}
	if len(p.agent.Trackers) == 0 {
		add(Warn, "none are configured",
			"Nodes do not find each other: each pulls from the registry by itself.",
			fmt.Sprintf("Set trackers in %s.", p.agent.file()))
		return
	}
	up := 0
	var down []string
	for _, t := range p.agent.Trackers {
		if err := reach(ctx, p, t); err != nil {
			down = append(down, fmt.Sprintf("%s: %v", t, err))
		} else {
			up++
		}
	}
	if up > 0 {
		add(OK, fmt.Sprintf("%d of %d can be connected to; the agent, which could say more, is not connected to any", up,
			len(p.agent.Trackers)), "", "")
	}
	downTrackers(up, down, add)
}

// askedTrackers tells what the running agent knows.
func askedTrackers(p *patient, add report) {
	up := 0
	var down []string
	for _, t := range p.running.Trackers {
		switch {
		case t.Connected && t.Error == "":
			up++
		case strings.HasPrefix(t.Error, "tracker "+t.Address):
			down = append(down, t.Error)
		default:
			down = append(down, t.Address+": "+cmp.Or(t.Error, "not connected yet"))
		}
	}
	if up > 0 {
		add(OK, fmt.Sprintf("the agent is connected to %d of %d", up, len(p.running.Trackers)), "", "")
	}
	if len(down) > 0 && p.running.Namesake != "" {
		add(Warn, fmt.Sprintf("%d of %d are away: %v, and takes this one's place there", len(down), len(p.running.Trackers), p.running.Namesake),
			"Trackers tell machines apart by their names.", "Give the two different names first, as is said above of the name.")
		return
	}
	downTrackers(up, down, add)
}

func downTrackers(up int, down []string, add report) {
	if len(down) == 0 {
		return
	}
	s, why := Warn, "The others do its work, until they fail as well."
	if up == 0 {
		s, why = Fail, "Nodes do not find each other: each pulls from the registry by itself."
	}
	add(s, strings.Join(down, "; "), why,
		"Check that it is the address of a tracker (port 7470), that capelin trackerd or server runs there, listens on more than loopback, "+
			"that no firewall is between, and that both have certificates of one CA and one cluster, or none.")
}

// checkPeers greets two of the peers that the running agent knows, those first that it
// could not reach.
func checkPeers(ctx context.Context, p *patient, add report) {
	if p.running == nil || p.running.Swarm != "" {
		return
	}
	const greeted = 2
	type peer struct{ name, addr, failed string }
	var some []peer
	for _, u := range p.running.Unreachable {
		some = append(some, peer{u.Node, u.Address, cmp.Or(u.Error, u.Reason)})
	}
	for _, c := range p.running.Peers {
		if c.Accepts != "" {
			some = append(some, peer{c.Node, c.Accepts, ""})
		}
	}
	if len(some) == 0 {
		add(OK, "none are known: nothing was pulled from others, or by them, lately", "", "")
		return
	}
	reached := 0
	var down, mended []string
	for _, c := range some[:min(len(some), greeted)] {
		err := greetPeer(ctx, p, c.addr)
		switch {
		case err != nil:
			down = append(down, fmt.Sprintf("cannot reach %s at %s: %v", c.name, c.addr, err))
		case c.failed != "":
			mended = append(mended, fmt.Sprintf("%s at %s answers, but failed as a source: %s", c.name, c.addr, c.failed))
		default:
			reached++
		}
	}
	if reached > 0 {
		add(OK, fmt.Sprintf("%d answer", reached), "", "")
	}
	const do = "Check there that listen and advertise of agent.toml (an origin's swarm.listen) name an address that this node " +
		"reaches, and that " +
		"firewalls let TCP to it through, both ways and with packets of full size (MTU); and that both have certificates of one CA and one " +
		"cluster, or none."
	if len(down) > 0 {
		s, why := Warn, "What it has comes from others, or from the registry."
		if len(p.running.Peers) == 0 {
			s, why = Fail, "This node is connected to nobody: it pulls from the registry, after trying."
		}
		add(s, strings.Join(down, "; "), why, do)
	}
	if len(mended) > 0 {
		add(Warn, strings.Join(mended, "; "), "The agent tries it again from time to time.", do)
	}
}

// greetPeer connects to a peer at one of its addresses (with commas between them), and speaks to it as the agent would.
func greetPeer(ctx context.Context, p *patient, addrs string) (err error) {
	for addr := range strings.SplitSeq(addrs, ", ") {
		if err = greetPeerAt(ctx, p, addr); err == nil {
			return nil
		}
	}
	return err
}

func greetPeerAt(ctx context.Context, p *patient, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := p.Dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	switch {
	case p.identity != nil:
		return swarm.Greet(ctx, conn, p.identity.PeerTLS(identity.RoleNode, identity.RoleOrigin))
	case p.agent.Identity.Enabled():
		return nil // checkIdentity says what is wrong with it
	}
	return swarm.Greet(ctx, conn, nil)
}

// reach connects to one address of a tracker.
func reach(ctx context.Context, p *patient, tracker string) error {
	name, dns := strings.CutPrefix(tracker, "dns+")
	addrs := []string{name}
	if dns {
		host, port, err := net.SplitHostPort(name)
		if err != nil {
			return err
		}
		found, err := p.Lookup(ctx, host)
		if err != nil {
			return err
		}
		addrs = addrs[:0]
		for _, a := range found[:min(len(found), 8)] {
			addrs = append(addrs, net.JoinHostPort(a, port))
		}
	}
	err := fmt.Errorf("%s has no address", name)
	for _, a := range addrs {
		if err = p.greet(ctx, a); err == nil {
			return nil
		}
	}
	return err
}

// greet connects to a tracker. With an identity both sides must accept the other's
// certificate, which the client knows when it hears the first byte.
func (p *patient) greet(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := p.Dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	switch {
	case p.identity == nil && p.agent.Identity.Enabled():
		return nil // checkIdentity says what is wrong with it
	case p.identity == nil:
		return greetPlain(conn)
	}
	cfg := p.identity.ClientTLS(identity.RoleTracker)
	cfg.NextProtos = []string{"h2"}
	c := tls.Client(conn, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) {
			return errors.New("it does not speak TLS, and this node has an [identity]")
		}
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("it refuses this node's certificate: %w", err)
	}
	return nil
}

// greetPlain begins HTTP/2, as gRPC does. A server that waits for a TLS handshake
// answers with an alert or not at all, and hangs up.
func greetPlain(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	// The preface, and SETTINGS that set nothing; the server begins with SETTINGS, too.
	const settings = 4
	_, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	var frame [9]byte
	if err == nil {
		_, err = io.ReadFull(conn, frame[:])
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it does not answer: %w", err)
	case err != nil || frame[3] != settings:
		return errors.New("it wants TLS, and this node has no [identity]")
	}
	return nil
}

// checkAdvertise looks whether others can reach what they are told.
func checkAdvertise(_ context.Context, p *patient, add report) {
	listen, _, err := net.SplitHostPort(p.agent.Listen)
	if err != nil {
		return // the configuration is refused anyway
	}
	remote := slices.ContainsFunc(p.agent.Trackers, func(t string) bool { return !identity.IsLoopback(strings.TrimPrefix(t, "dns+")) })
	told := p.agent.Advertise
	if told == "" {
		told = p.agent.Listen
	}
	switch {
	case remote && identity.IsLoopback(p.agent.Listen):
		add(Fail, fmt.Sprintf("listen is %s, but trackers are elsewhere", p.agent.Listen),
			"No other node can connect to this one: it takes from the swarm and gives nothing.",
			fmt.Sprintf("Set listen in %s to an address that other nodes reach, such as \":7401\".", p.agent.file()))
	case remote && identity.IsLoopback(told):
		add(Fail, fmt.Sprintf("advertise is %s, but trackers are elsewhere", told),
			"Other nodes are told an address on which they find themselves.",
			fmt.Sprintf("Set advertise in %s to an address that other nodes reach, or leave it empty.", p.agent.file()))
	case p.agent.Advertise != "" && !ownAddress(p, p.agent.Advertise):
		add(Warn, fmt.Sprintf("advertise is %s, which is no address of this host", p.agent.Advertise),
			"Unless it is translated on the way, other nodes connect to another host.", "Check advertise, or leave it empty.")
	case !remote && identity.IsLoopback(told):
		add(OK, "loopback only, like its trackers", "", "")
	case listen == "" || told == p.agent.Listen:
		add(OK, "listens on "+p.agent.Listen, "", "")
	default:
		add(OK, told, "", "")
	}
}

// checkReached has the node connect to itself where others are told that it is. That it answers is no proof that
// others reach it; that another has connected is.
func checkReached(ctx context.Context, p *patient, add report) {
	if p.running == nil || p.running.Swarm != "" || p.running.Advertise == "" {
		return
	}
	told := p.running.Advertise
	var came []string
	for _, c := range p.running.Peers {
		if c.Inbound {
			came = append(came, c.Node)
		}
	}
	err := greetPeer(ctx, p, told)
	switch {
	case len(came) > 0:
		add(OK, fmt.Sprintf("%s has connected to this node", came[0]), "", "")
	case err == nil && identity.IsLoopback(told):
		add(OK, told+" answers, and only on this machine", "", "")
	case err == nil:
		add(OK, told+" answers from here; whether it does from other machines, their \"capelin status\" and \"capelin agent doctor\" tell "+
			"(UNREACHABLE, peers): none is connected that came by it", "", "")
	default:
		add(Warn, fmt.Sprintf("this node does not reach itself at %s, which others are told: %v", told, err),
			"Unless the address is translated on the way, such as by NAT, they do not reach it either: it takes from the swarm and gives little.",
			"Check listen and advertise in "+p.agent.file()+", and that firewalls let TCP to it through; try it from another node.")
	}
}

// ownAddress reports whether the host of host:port is one of this machine's, or
// a name, which may be.
func ownAddress(h Host, addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	own, err := h.Addresses()
	if ip == nil || err != nil || len(own) == 0 {
		return true
	}
	return slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}
