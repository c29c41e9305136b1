package moving

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/owned"
	"github.com/capelin-io/capelin/fetcher/walk"
)

// closedPause is how long a write waits before it looks whether the move has gone on.
const closedPause = 100 * time.Millisecond

// Storage is a storage whose contents may move to another one, as those who use it see it. It may be used by any goroutine.
//
// It is a fetcher.Backend, whose versions are those of one of the two storages: after the move a version of before
// is no longer what is there, which costs a writer a conflict.
type Storage struct {
	kind *Kind
	old  fetcher.Backend
	next fetcher.Backend // nil: it is not told one
	self Member
	key  string // of self, in the register

	joining chan struct{} // 1 buffered: full while somebody joins
	entered atomic.Bool   // into the register, perhaps
	joined  atomic.Bool
	moved   atomic.Bool            // for good
	known   atomic.Pointer[string] // the move of which next is the target
}

var _ fetcher.Backend = (*Storage)(nil)

// New returns a storage for whoever has that name: of an index, its address, for people; of an origin, its name in the ring, which no
// other process has at the same time. next, if not nil, is where it may move to. Closing it closes both.
func (k *Kind) New(old, next fetcher.Backend, name string) *Storage {
	s := &Storage{kind: k, old: old, next: next, joining: make(chan struct{}, 1), self: Member{Format: format, Name: name}}
	life := rand.Text()[:8]
	if k.large {
		s.key = k.lives(name) + life
	} else {
		s.self.Name = name + "~" + life
		s.key = k.memberPrefix() + s.self.Name
	}
	if next != nil {
		s.self.Next = next.Name()
	}
	return s
}

// lives is where all processes register that have had the name of a member, which may have any characters.
func (k *Kind) lives(name string) string {
	return k.memberPrefix() + digest.FromString(name).Encoded()[:32] + "/"
}

// Join registers who uses the storage, and finds out whether it may: errdefs.ErrFailedPrecondition if it may not, because
// what is there moves or has moved to where this one is not told. Until it has succeeded, all other calls try it first. Where it may not
// write, an origin is not registered, and only reads.
func (s *Storage) Join(ctx context.Context) error {
	if s.joined.Load() {
		return nil
	}
	select {
	case s.joining <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", s.old.Name(), ctx.Err())
	}
	defer func() { <-s.joining }()
	if s.joined.Load() {
		return nil
	}
	self := s.self
	self.Started = time.Now().UTC().Round(0)
	s.entered.Store(true)
	// First registered, and then the state: see the package's documentation. In the next storage as well, which may
	// move on to a third one when this one uses it.
	err := s.enter(ctx, s.old, self)
	if err == nil && s.next != nil {
		self.Next = ""
		err = s.enter(ctx, s.next, self)
	}
	if err == nil {
		err = s.allowed(ctx, false)
	}
	if errdefs.IsFailedPrecondition(err) {
		s.leave(ctx)
		s.entered.Store(false)
	}
	if err != nil {
		return err
	}
	s.joined.Store(true)
	return nil
}

func (s *Storage) enter(ctx context.Context, b fetcher.Backend, self Member) error {
	_, err := swap(ctx, b, s.key, &self, "")
	switch {
	case errdefs.IsConflict(err): // by a try of before
		return nil
	case err == nil && s.kind.large:
		err = s.outlive(ctx, b)
	case s.kind.large && (errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err)):
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: registering as %s: %w", b.Name(), s.kind.user, err)
	}
	return nil
}

// outlive takes those off a register that had this one's name before it.
func (s *Storage) outlive(ctx context.Context, b fetcher.Backend) error {
	for info, err := range walk.All(ctx, b, s.kind.lives(s.self.Name), "") {
		if err != nil {
			return err
		}
		if info.Key != s.key {
			if err := b.Delete(ctx, info.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// leave takes this one off the registers. If that fails it is as if the process had been killed.
func (s *Storage) leave(ctx context.Context) {
	_ = s.old.Delete(ctx, s.key)
	if s.next != nil {
		_ = s.next.Delete(ctx, s.key)
	}
}

// allowed is errdefs.ErrFailedPrecondition if the storages that it is told may not be used. Who only reads may do so until
// all has moved.
func (s *Storage) allowed(ctx context.Context, reads bool) error {
	k := s.kind
	st, err := k.readState(ctx, s.old)
	if err != nil {
		return err
	}
	t, _, err := get[target](ctx, s.old, k.targetKey())
	switch {
	case err != nil:
		return err
	case t != nil && !t.Done && st.Phase == none:
		return fmt.Errorf("%s is where %s moves to from %s; it cannot be used before %q has ended: %w",
			s.old.Name(), k.a(), t.From, k.command, errdefs.ErrFailedPrecondition)
	case s.next != nil:
		after, err := k.readState(ctx, s.next)
		if err == nil && after.Phase != none {
			err = fmt.Errorf("the %s in %s, which is the next storage of this one, moves to %s or has moved there: %w",
				k.noun, s.next.Name(), after.To, errdefs.ErrFailedPrecondition)
		}
		return err
	case st.Phase == none, reads && st.Phase != moved:
		return nil
	case st.Phase == moved:
		return fmt.Errorf("the %s that was in %s has moved to %s: configure that as its storage: %w",
			k.noun, s.old.Name(), st.To, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("the %s in %s moves to %s: configure that as the next storage of this one: %w",
		k.noun, s.old.Name(), st.To, errdefs.ErrFailedPrecondition)
}

// now returns how far the move is; nil if this one has no part in one.
func (s *Storage) now(ctx context.Context) (*state, error) {
	if err := s.Join(ctx); err != nil {
		return nil, err
	}
	if s.next == nil {
		return nil, nil
	}
	if s.moved.Load() {
		return &state{Phase: moved}, nil
	}
	st, err := s.kind.readState(ctx, s.old)
	if err != nil || st.Phase == none {
		return st, err
	}
	if id := s.known.Load(); id == nil || *id != st.ID {
		t, _, err := get[target](ctx, s.next, s.kind.targetKey())
		if err != nil {
			return nil, err
		}
		if t == nil || t.ID != st.ID {
			return nil, fmt.Errorf("the %s in %s moves to %s, and this one is told that the next storage is %s, which is another one: %w",
				s.kind.noun, s.old.Name(), st.To, s.next.Name(), errdefs.ErrFailedPrecondition)
		}
		s.known.Store(&st.ID)
	}
	if st.Phase == moved {
		s.moved.Store(true)
	}
	return st, nil
}

// at returns the storage that is read now, and what its versions begin with.
func (s *Storage) at(ctx context.Context) (fetcher.Backend, string, error) {
	st, err := s.now(ctx)
	if err != nil {
		return nil, "", err
	}
	if st != nil && st.Phase == moved {
		return s.next, "next:", nil
	}
	return s.old, "old:", nil
}

func marked(info fetcher.Info, mark string) fetcher.Info {
	if info.Version != "" {
		info.Version = mark + info.Version
	}
	return info
}

// change does a write of an object where it belongs now. do is told the storage and what its versions begin with; it is
// called once, or not at all.
func (s *Storage) change(ctx context.Context, key string, do func(b fetcher.Backend, mark string) error) error {
	var st *state
	for {
		var err error
		if st, err = s.now(ctx); err != nil {
			return err
		}
		if st == nil {
			return do(s.old, "old:")
		}
		if st.Phase == moved {
			return do(s.next, "next:")
		}
		if st.Phase != closed {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: writing %s: the %s moves to %s, and waits for %q to end: %w: %w",
				s.old.Name(), key, s.kind.noun, st.To, s.kind.command, ctx.Err(), errdefs.ErrUnavailable)
		case <-time.After(closedPause):
		}
	}
	if err := s.note(ctx, st, key); err != nil {
		return err
	}
	if err := do(s.old, "old:"); err != nil {
		return err
	}
	for {
		now, err := s.now(ctx)
		if err != nil {
			return fmt.Errorf("%s: %s was written, and it is not known whether to where the %s is: %w: %w",
				s.old.Name(), key, s.kind.noun, err, errdefs.ErrUnavailable)
		}
		switch {
		case now.same(st) || now.Phase == none:
			return nil
		case now.Phase == copying: // a move has begun, or another epoch
			if err := s.note(ctx, now, key); err != nil {
				return err
			}
			st = now
		default:
			return fmt.Errorf("%s: writing %s: the %s moved to %s meanwhile, try again: %w",
				s.old.Name(), key, s.kind.noun, now.To, errdefs.ErrUnavailable)
		}
	}
}

// note leaves an object's key in the journal.
func (s *Storage) note(ctx context.Context, st *state, key string) error {
	if st.Phase != copying || !s.kind.moves(key) {
		return nil
	}
	_, err := s.old.Write(ctx, s.kind.journal(st, st.Epoch)+key, 1, strings.NewReader("\n"))
	return err
}

// Name implements fetcher.Backend. It does not change when all has moved.
func (s *Storage) Name() string { return s.old.Name() }

// Capabilities implements fetcher.Backend: what both storages can do.
func (s *Storage) Capabilities() fetcher.Capabilities {
	c := s.old.Capabilities()
	if s.next != nil {
		n := s.next.Capabilities()
		c.Write, c.List, c.Delete = c.Write && n.Write, c.List && n.List, c.Delete && n.Delete
		c.CompareAndSwap, c.Generations = c.CompareAndSwap && n.CompareAndSwap, c.Generations && n.Generations
	}
	return c
}

// Check implements fetcher.Backend, for both.
func (s *Storage) Check(ctx context.Context) error {
	if s.next != nil {
		if err := s.next.Check(ctx); err != nil {
			return err
		}
	}
	if s.moved.Load() { // the old one may be gone
		return nil
	}
	return s.old.Check(ctx)
}

// ID returns that of the storage that is used now (owned.Storage), "" if it is not known.
func (s *Storage) ID() string {
	b := s.old
	if s.moved.Load() {
		b = s.next
	}
	if o, ok := b.(*owned.Storage); ok {
		return o.ID()
	}
	return ""
}

// Stat implements fetcher.Backend.
func (s *Storage) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	b, mark, err := s.at(ctx)
	if err != nil {
		return fetcher.Info{}, err
	}
	info, err := b.Stat(ctx, key)
	return marked(info, mark), err
}

// Open implements fetcher.Backend.
func (s *Storage) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	b, mark, err := s.at(ctx)
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	r, info, err := b.Open(ctx, key, off, n)
	return r, marked(info, mark), err
}

// List implements fetcher.Backend.
func (s *Storage) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	b, mark, err := s.at(ctx)
	if err != nil {
		return nil, false, err
	}
	page, more, err := b.List(ctx, prefix, after, limit)
	for i := range page {
		page[i] = marked(page[i], mark)
	}
	return page, more, err
}

// Write implements fetcher.Backend.
func (s *Storage) Write(ctx context.Context, key string, size int64, r io.Reader) (info fetcher.Info, err error) {
	err = s.change(ctx, key, func(b fetcher.Backend, mark string) error {
		info, err = b.Write(ctx, key, size, r)
		info = marked(info, mark)
		return err
	})
	return info, err
}

// WriteIf implements fetcher.Backend.
func (s *Storage) WriteIf(ctx context.Context, key string, data []byte, version string) (info fetcher.Info, err error) {
	err = s.change(ctx, key, func(b fetcher.Backend, mark string) error {
		v, ok := strings.CutPrefix(version, mark)
		if version != "" && !ok {
			return fmt.Errorf("%s: %s is not of version %q any more: %w", b.Name(), key, version, errdefs.ErrConflict)
		}
		info, err = b.WriteIf(ctx, key, data, v)
		info = marked(info, mark)
		return err
	})
	return info, err
}

// Delete implements fetcher.Backend.
func (s *Storage) Delete(ctx context.Context, key string) error {
	return s.change(ctx, key, func(b fetcher.Backend, _ string) error { return b.Delete(ctx, key) })
}

// leaveTimeout is how long who ends tries to take itself off the register.
const leaveTimeout = 5 * time.Second

// Close implements fetcher.Backend. Who used it is no longer registered.
func (s *Storage) Close() error {
	var errs []error
	if s.entered.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		defer cancel()
		s.leave(ctx)
	}
	errs = append(errs, s.old.Close())
	if s.next != nil {
		errs = append(errs, s.next.Close())
	}
	return errors.Join(errs...)
}
