package origind

import (
	"context"
	"net"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// lookEvery is how often names of the DNS are looked up, and how full the disk is.
const lookEvery = 5 * time.Second

// runMembers finds members by the names of the DNS that are configured: whoever answers at one of their addresses is one. It also
// tells the ring how full this member is.
func (s *server) runMembers(ctx context.Context) {
	asked := map[string]error{} // why an address that DNS gives is no member, as was last logged
	full := false
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		for _, l := range s.cfg.Ring.List() {
			if l.Name == "" {
				s.lookUp(ctx, l.Address, asked)
			}
		}
		if is := s.store.full(func(root string) int64 { return s.uploads.idle(root, time.Now()) }); is != full {
			full = is
			s.member.full(is)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookUp asks who is at the addresses of a name.
func (s *server) lookUp(ctx context.Context, name string, asked map[string]error) {
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return // as Validate has said
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		s.complain(ctx, name, err, asked)
		return
	}
	s.complain(ctx, name, nil, asked)
	for _, ip := range ips {
		if addr := net.JoinHostPort(ip, port); !s.peers.knows(addr) {
			s.complain(ctx, addr, s.meet(ctx, addr), asked)
		}
	}
}

// meet asks who is at an address.
func (s *server) meet(ctx context.Context, addr string) error {
	m, err := origin.NewMember(origin.Config{Origins: []string{addr}, TLS: s.peers.tls})
	if err != nil {
		return err
	}
	defer m.Close()
	incarnation, name, _, err := s.peers.askAt(ctx, m, ringstate.Probe{})
	if name == s.cfg.Node && incarnation == s.peers.self.Incarnation {
		return nil // this one, which has refused to ask itself
	}
	if err == nil && name != s.cfg.Node {
		if err = s.peers.place(name, addr, false); err == nil {
			s.member.listed([]string{name})
		}
	}
	return err
}

// complain logs what is wrong with a name or an address when that has changed.
func (s *server) complain(ctx context.Context, what string, err error, asked map[string]error) {
	was := asked[what]
	asked[what] = err
	switch {
	case ctx.Err() != nil || (was == nil) == (err == nil):
	case err != nil:
		log.G(ctx).WithError(err).WithField("member", what).Warn("no member of the ring answers there (ring.members)")
	default:
		log.G(ctx).WithField("member", what).Info("members of the ring answer there again")
	}
}

// spare is how many bytes of a disk must be left, or be in the cache or in uploads that are idle, for a member to take copies.
func spare(total int64) int64 { return min(256<<20, total/50) }

// giveUp has uploads that are idle make room on a full disk, when nothing of the cache is left.
func (s *server) giveUp(d *oneDisk) {
	if _, total, err := d.store.Space(); err == nil && s.uploads != nil {
		s.uploads.free(d.root, spare(total))
	}
}

// makeRoom frees up to need bytes of the disk that a path is on, and returns how many.
func (s *server) makeRoom(ctx context.Context, path string, need int64) (freed int64) {
	before := s.uploads.freed.Load()
	freed = s.store.makeRoomAt(ctx, path, need)
	return freed + s.uploads.freed.Load() - before
}
