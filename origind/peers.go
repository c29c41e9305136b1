package origind

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
)

// peers are the other members of the ring, by name.
type peers map[string]*origin.Member

// newPeers returns the members of the ring that a configuration has. It does not connect yet.
func newPeers(cfg Config, id *identity.Source) (peers, error) {
	p := peers{}
	if cfg.Ring == nil {
		return p, nil
	}
	var conf *tls.Config
	if id != nil {
		conf = id.ClientTLS(identity.RoleOrigin)
	}
	for _, m := range cfg.Ring.Members {
		if m.Name == cfg.Node {
			continue
		}
		at, err := origin.NewMember(origin.Config{Origins: []string{m.Address}, TLS: conf})
		if err != nil {
			p.close()
			return nil, fmt.Errorf("member %s: %w", m.Name, err)
		}
		p[m.Name] = at
	}
	return p, nil
}

// close closes idle connections.
func (p peers) close() {
	for _, m := range p {
		m.Close()
	}
}

// get returns a member, or errdefs.ErrUnavailable.
func (p peers) get(name string) (*origin.Member, error) {
	if m := p[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("member %s is not known: %w", name, errdefs.ErrUnavailable)
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
			st, err := m.Start(ctx, to, u.meta.Namespace, u.meta.Key)
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

// tell asks a member something whose answer is not waited for.
func (u *upload) tell(member string, f func(context.Context, *origin.Member)) {
	u.s.tasks.run(func(ctx context.Context) {
		if m, err := u.s.peers.get(member); err == nil {
			ctx, cancel := context.WithTimeout(ctx, eraseWithin)
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

// section opens a part of the upload, which may be a blob already.
func (u *upload) section(ctx context.Context, off, to int64) (io.ReadCloser, error) {
	f, err := os.Open(u.path())
	if d := u.committed(); errors.Is(err, os.ErrNotExist) && d != "" {
		f, err = u.s.blob(ctx, d, u.size.Load())
	}
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, to-off), f}, nil
}

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
	missing := fmt.Errorf("no such upload: %s: %w", id, errdefs.ErrNotFound)
	if len(s.peers) == 0 {
		return nil, missing
	}
	var others []mirror.Member
	for _, m := range s.members() {
		if m.Name != s.mirror.Self.Name {
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
