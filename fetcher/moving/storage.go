package moving

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// closedPause is how long a write waits before it looks whether the move has gone on.
const closedPause = 100 * time.Millisecond

// Storage is the storage of an index, which may move to another one. It may be used by any goroutine.
//
// It is a fetcher.Backend, whose versions are those of one of the two storages: after the move a version of before
// is no longer what is there, which costs a writer a conflict.
type Storage struct {
	old  fetcher.Backend
	next fetcher.Backend // nil: it is not told one
	self Member

	mu      sync.Mutex
	entered atomic.Bool // into the register, perhaps
	joined  atomic.Bool
	moved   atomic.Bool            // for good
	known   atomic.Pointer[string] // the move of which next is the target
}

var _ fetcher.Backend = (*Storage)(nil)

// New returns the storage of an index that is reached at an address, for people. next, if not nil, is where it may move to.
// Closing it closes both.
func New(old, next fetcher.Backend, address string) *Storage {
	s := &Storage{old: old, next: next, self: Member{Format: format, Name: address + "~" + rand.Text()[:8]}}
	if next != nil {
		s.self.Next = next.Name()
	}
	return s
}

// Join registers the index, and finds out whether it may use the storage: errdefs.ErrFailedPrecondition if it may not, because
// the storage's index moves or has moved to where this one is not told. Until it has succeeded, all other calls try it first.
func (s *Storage) Join(ctx context.Context) error {
	if s.joined.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joined.Load() {
		return nil
	}
	self := s.self
	self.Started = time.Now().UTC().Round(0)
	s.entered.Store(true)
	// First registered, and then the state: see the package's documentation. In the next storage as well, which may
	// move on to a third one when this index uses it.
	err := enter(ctx, s.old, self)
	if err == nil && s.next != nil {
		self.Next = ""
		err = enter(ctx, s.next, self)
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

func enter(ctx context.Context, b fetcher.Backend, self Member) error {
	if _, err := swap(ctx, b, memberPrefix+self.Name, &self, ""); err != nil && !errdefs.IsConflict(err) {
		return fmt.Errorf("%s: registering as an index: %w", b.Name(), err)
	}
	return nil
}

// leave takes the index off the registers. If that fails it is as if the process had been killed.
func (s *Storage) leave(ctx context.Context) {
	_ = s.old.Delete(ctx, memberPrefix+s.self.Name)
	if s.next != nil {
		_ = s.next.Delete(ctx, memberPrefix+s.self.Name)
	}
}

// allowed is errdefs.ErrFailedPrecondition if the index may not use the storages that it is told. Who only reads may do so until
// the index has moved.
func (s *Storage) allowed(ctx context.Context, reads bool) error {
	st, err := readState(ctx, s.old)
	if err != nil {
		return err
	}
	t, _, err := get[target](ctx, s.old, targetKey)
	switch {
	case err != nil:
		return err
	case t != nil && !t.Done && st.Phase == none:
		return fmt.Errorf("%s is where an index moves to that is in %s; it cannot be used before \"capelin index move\" has ended: %w",
			s.old.Name(), t.From, errdefs.ErrFailedPrecondition)
	case s.next != nil:
		after, err := readState(ctx, s.next)
		if err == nil && after.Phase != none {
			err = fmt.Errorf("the index in %s, which is the next storage of this one, moves to %s or has moved there: %w",
				s.next.Name(), after.To, errdefs.ErrFailedPrecondition)
		}
		return err
	case st.Phase == none, reads && st.Phase != moved:
		return nil
	case st.Phase == moved:
		return fmt.Errorf("the index that was in %s has moved to %s: configure that as its storage: %w",
			s.old.Name(), st.To, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("the index in %s moves to %s: configure that as the next storage of this one: %w",
		s.old.Name(), st.To, errdefs.ErrFailedPrecondition)
}

// now returns how far the move is; nil if this index has no part in one.
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
	st, err := readState(ctx, s.old)
	if err != nil || st.Phase == none {
		return st, err
	}
	if id := s.known.Load(); id == nil || *id != st.ID {
		t, _, err := get[target](ctx, s.next, targetKey)
		if err != nil {
			return nil, err
		}
		if t == nil || t.ID != st.ID {
			return nil, fmt.Errorf("the index in %s moves to %s, and this one is told that the next storage is %s, which is another one: %w",
				s.old.Name(), st.To, s.next.Name(), errdefs.ErrFailedPrecondition)
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
			return fmt.Errorf("%s: writing %s: the index moves to %s, and waits for \"capelin index move\" to end: %w: %w",
				s.old.Name(), key, st.To, ctx.Err(), errdefs.ErrUnavailable)
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
			return fmt.Errorf("%s: %s was written, and it is not known whether to where the index is: %w: %w",
				s.old.Name(), key, err, errdefs.ErrUnavailable)
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
			return fmt.Errorf("%s: writing %s: the index moved to %s meanwhile, try again: %w", s.old.Name(), key, now.To, errdefs.ErrUnavailable)
		}
	}
}

// note leaves an object's key in the journal.
func (s *Storage) note(ctx context.Context, st *state, key string) error {
	if st.Phase != copying || !strings.HasPrefix(key, Prefix) {
		return nil
	}
	_, err := s.old.Write(ctx, st.journal(st.Epoch)+key, 1, strings.NewReader("\n"))
	return err
}

// Name implements fetcher.Backend. It does not change when the index moves.
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

// leaveTimeout is how long an index that ends tries to take itself off the register.
const leaveTimeout = 5 * time.Second

// Close implements fetcher.Backend. The index is no longer registered.
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
