package origind

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
)

// peers are the other members of the ring, by name, and where they are: as the configuration says, or as they say themselves.
type peers struct {
	self origin.Asker
	tls  *tls.Config // nil: plain HTTP

	mu  sync.Mutex
	all map[string]*other
}

// other is one of them.
type other struct {
	addr  string
	at    *origin.Member
	given bool // by the configuration
}

// newPeers returns peers of which the configuration knows some. It does not connect yet.
func newPeers(cfg Config, self origin.Asker, id *identity.Source) (*peers, error) {
	p := &peers{self: self, all: map[string]*other{}}
	if id != nil {
		p.tls = id.ClientTLS(identity.RoleOrigin)
	}
	for _, m := range cfg.Ring.List() {
		if m.Name != "" && m.Name != self.Name {
			if err := p.place(m.Name, m.Address, true); err != nil {
				p.close()
				return nil, err
			}
		}
	}
	return p, nil
}

// place notes where a member is.
func (p *peers) place(name, addr string, given bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.all[name]
	if name == p.self.Name || addr == "" || old != nil && (old.addr == addr || old.given && !given) {
		return nil
	}
	at, err := origin.NewMember(origin.Config{Origins: []string{addr}, TLS: p.tls})
	if err != nil {
		return fmt.Errorf("member %s: %w", name, err)
	}
	if old != nil {
		old.at.Close()
	}
	p.all[name] = &other{addr, at, given}
	return nil
}

// changed takes in what members say of each other.
func (p *peers) changed(all []ringstate.Peer) {
	for _, m := range all {
		if err := p.place(m.Name, m.Addr, false); err != nil {
			log.L.WithError(err).Debug("a member's address is none")
		}
	}
}

// heard takes in where a member says it is that has asked, unless the configuration says where: it may be new, or have moved.
func (p *peers) heard(from origin.Asker) {
	if err := p.place(from.Name, from.Address, false); err != nil {
		log.L.WithError(err).Debug("a member's address is none")
	}
}

// knows reports whether there is a member at an address.
func (p *peers) knows(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.all {
		if m.addr == addr {
			return true
		}
	}
	return false
}

// close closes idle connections.
func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.all {
		m.at.Close()
	}
}

// get returns a member, or errdefs.ErrUnavailable.
func (p *peers) get(name string) (*origin.Member, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.all[name]; m != nil {
		return m.at, nil
	}
	return nil, fmt.Errorf("where member %s is, is not known: %w", name, errdefs.ErrUnavailable)
}

// has reports whether a member is known, and whether there are any.
func (p *peers) has(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[name] != nil
}

func (p *peers) none() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all) == 0
}

// ask asks a member. An answer of somebody else at its address is none.
func (p *peers) ask(ctx context.Context, to string, q ringstate.Ask) (incarnation uint64, a ringstate.Answer, err error) {
	m, err := p.get(to)
	if err != nil {
		return 0, nil, err
	}
	incarnation, name, a, err := p.askAt(ctx, m, q)
	if name != "" && name != to {
		p.misplaced(to, m)
		err = fmt.Errorf("member %s: %s answers at %s: %w", to, name, m.Base(), errdefs.ErrUnavailable)
	}
	return incarnation, a, err
}

// misplaced forgets where a member was, if another one is there now: the DNS, or other members, know its new address. What the
// configuration says stays.
func (p *peers) misplaced(name string, at *origin.Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.all[name]; o != nil && o.at == at && !o.given {
		at.Close()
		delete(p.all, name)
	}
}

// askTimeout is how long an answer is waited for; a member that takes longer is asked again.
const askTimeout = 5 * time.Second

// askAt asks whoever is at an address. Who answers is said with an error, too.
func (p *peers) askAt(
	ctx context.Context, m *origin.Member, q ringstate.Ask,
) (incarnation uint64, name string, a ringstate.Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	kind := ringstate.KindOf(q)
	body, err := ringstate.EncodeAsk(q)
	if err != nil {
		return 0, "", nil, err
	}
	incarnation, name, body, err = m.Ring(ctx, p.self, string(kind), body, ringstate.MaxAnswer)
	if err == nil {
		a, err = ringstate.DecodeAnswer(kind, body)
	}
	return incarnation, name, a, err
}

// handle names the upload to other members.
func (u *upload) handle(term mirror.Term) origin.Copy {
	return origin.Copy{ID: u.id, From: u.s.mirror.Self.Name, Term: uint64(term)}
}

// performAway has another member do something, in the background. u.mu is held.
func (u *upload) performAway(a mirror.Action) {
	switch a := a.(type) {
	case mirror.ActStart:
		u.call(a.Call, func(ctx context.Context, m *origin.Member, to origin.Copy) (origin.Stand, bool, error) {
			st, err := m.Start(ctx, to, origin.NewUpload{Namespace: u.meta.Namespace, Owner: u.meta.Owner, Digest: digest.Digest(u.meta.Key)})
			return st, true, err
		})
	case mirror.ActFeed:
		u.call(a.Call, func(ctx context.Context, m *origin.Member, to origin.Copy) (origin.Stand, bool, error) {
			r, err := u.section(ctx, a.Off, a.To)
			if err != nil {
				return origin.Stand{}, false, err
			}
			defer r.Close()
			st, err := m.Append(ctx, to, a.Off, &telling{r, func() { u.step(time.Now(), mirror.EvMoved{Feeder: a.Feeder}) }})
			return st, true, err
		})
	case mirror.ActConfirm:
		u.call(a.Call, func(ctx context.Context, m *origin.Member, to origin.Copy) (origin.Stand, bool, error) {
			return m.Commit(ctx, to, a.Size, a.Digest)
		})
	case mirror.ActDrop:
		if cancel := u.calls[a.Feeder]; cancel != nil {
			cancel()
			delete(u.calls, a.Feeder)
		}
	case mirror.ActErase:
		u.tell(a.Member, func(ctx context.Context, m *origin.Member) {
			_ = m.Cancel(ctx, u.handle(a.Term)) // it will ask after what stays behind
		})
	case mirror.ActAsk:
		u.tell(a.Member, func(ctx context.Context, m *origin.Member) {
			if st, err := standsAt(ctx, m, u.handle(0)); err == nil {
				u.step(time.Now(), mirror.EvStands{Member: a.Member, Stands: st})
			}
		})
	}
}

// call asks a mirror, and tells the machine what it says. u.mu is held.
func (u *upload) call(c mirror.Call, ask func(context.Context, *origin.Member, origin.Copy) (origin.Stand, bool, error)) {
	ctx, cancel := context.WithCancel(u.s.tasks.ctx)
	u.calls[c.Feeder] = cancel
	u.s.tasks.run(func(context.Context) {
		defer cancel()
		m, err := u.s.peers.get(c.Member)
		var st origin.Stand
		done := true
		if err == nil {
			st, done, err = ask(ctx, m, u.handle(c.Term))
		}
		a := mirror.Answer{Code: codeOf(err), Offset: st.Offset, Term: mirror.Term(st.Term), Err: err}
		if err == nil && !done {
			a.Code = mirror.Later
		}
		u.step(time.Now(), mirror.EvAnswer{Feeder: c.Feeder, Answer: a})
	})
}

// tellWithin is how long a member has to be told something.
const tellWithin = 5 * time.Second

// tell asks a member something whose answer is not waited for.
func (u *upload) tell(member string, f func(context.Context, *origin.Member)) {
	u.s.tasks.run(func(ctx context.Context) {
		if m, err := u.s.peers.get(member); err == nil {
			ctx, cancel := context.WithTimeout(ctx, tellWithin)
			defer cancel()
			f(ctx, m)
		}
	})
}

// codeOf is what an error of another member says to the machine.
func codeOf(err error) mirror.Code {
	switch {
	case err == nil:
		return mirror.Done
	case errdefs.IsInvalidArgument(err):
		return mirror.WrongDigest
	case errdefs.IsNotFound(err):
		return mirror.Unknown
	case errdefs.IsConflict(err):
		return mirror.Conflict
	case errdefs.IsOutOfRange(err):
		return mirror.OutOfRange
	}
	return mirror.Unavailable
}

// standsAt asks a member how an upload stands there. That it does not know it is no error.
func standsAt(ctx context.Context, m *origin.Member, u origin.Copy) (mirror.Stands, error) {
	st, err := m.Stands(ctx, u)
	if errdefs.IsNotFound(err) {
		return mirror.Stands{}, nil
	}
	return mirror.Stands{
		Known: true, Offset: st.Offset, Term: mirror.Term(st.Term), Leads: st.Leads, Feeds: st.Feeds, Committed: st.Committed,
	}, err
}

// section opens a part of the upload, which may be a blob already. It goes on behind to as long as more has arrived meanwhile: each
// new request to a mirror takes the time of some round trips, and one that never catches up would fall back further with each.
func (u *upload) section(ctx context.Context, off, to int64) (io.ReadCloser, error) {
	f, err := os.Open(u.path())
	if d := u.committed(); errors.Is(err, os.ErrNotExist) && d != "" {
		f, err = u.s.blob(ctx, d, u.size.Load())
	}
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return &tail{f, &u.size, off, to}, nil
}

// tail reads a file that grows.
type tail struct {
	f       *os.File
	size    *atomic.Int64 // of the file
	off, to int64
}

func (t *tail) Read(p []byte) (int, error) {
	n := max(t.to, t.size.Load()) - t.off
	if n <= 0 {
		return 0, io.EOF
	}
	read, err := t.f.ReadAt(p[:min(n, int64(len(p)))], t.off)
	t.off += int64(read)
	return read, err
}

func (t *tail) Close() error { return t.f.Close() }

// telling says when something was read.
type telling struct {
	io.Reader
	moved func()
}

func (t *telling) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.moved()
	}
	return n, err
}

// search finds the member to which a client is sent that asks for an upload that is not here.
func (s *uploads) search(ctx context.Context, id string) (*origin.Member, error) {
	missing := s.missing(id)
	if s.peers.none() {
		return nil, missing
	}
	var others []mirror.Member
	for _, m := range s.members() {
		if m.Name != s.mirror.Self.Name {
			m.Up = true // whoever cannot take copies just now may have it
			others = append(others, m)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type said struct {
		member string
		mirror.Stands
		err error
	}
	search := mirror.NewSearch(others, time.Now())
	answers := make(chan said, len(others))
	for name := range search.Asks() {
		s.tasks.run(func(context.Context) {
			m, err := s.peers.get(name)
			var st mirror.Stands
			if err == nil {
				st, err = standsAt(ctx, m, origin.Copy{ID: id, From: s.mirror.Self.Name})
			}
			answers <- said{name, st, err}
		})
	}
	for {
		at, code := search.Result(time.Now())
		switch code {
		case mirror.Done:
			return s.peers.get(at)
		case mirror.Unknown:
			return nil, missing
		case mirror.Unavailable:
			return nil, fmt.Errorf("upload %s: not every member could be asked for it: %w", id, errdefs.ErrUnavailable)
		}
		select {
		case a := <-answers:
			search.Answer(a.member, a.Stands, a.err == nil)
		case <-time.After(time.Until(search.Until())):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
