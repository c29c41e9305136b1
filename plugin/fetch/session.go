package fetch

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// A Session is one client that has a blob open; see the package comment. Its methods
// are for one goroutine at a time, but for Progress.
type Session struct {
	fs       *Fetches
	id       piece.ID
	number   SessionID
	attached chan struct{} // closed when handle is set
	handle   *handle

	brought atomic.Int64 // bytes that the Machine has not heard of
	offset  atomic.Int64 // where they end
	told    atomic.Bool  // it will hear of them

	answer chan answer // of a Wait; Run's goroutine's
}

type answer struct {
	Answer
	err error
}

// Client is who has a blob open.
type Client struct {
	// Authorized: it downloads itself, as somebody who may have the blob.
	Authorized bool
	// Registry is where it downloads from, by name; empty: not known.
	Registry string
	// Ask, if not nil, finds that out, and returns soon: empty if it cannot. It is called once,
	// by a goroutine of its own.
	Ask func(context.Context) string
}

// Open has a session open the blob, until Close. It does not wait for the disk.
func (fs *Fetches) Open(id piece.ID, c Client) *Session {
	s := &Session{fs: fs, id: id, number: SessionID(fs.sessions.Add(1)), attached: make(chan struct{})}
	fs.do(func(ctx context.Context) {
		fs.open[s.number] = s
		fs.step(ctx, EvSessionOpened{ID: id, Session: s.number, Authorized: c.Authorized, Registry: c.Registry, Asking: c.Ask != nil})
		s.handle = fs.handle(id)
		close(s.attached)
		if c.Ask != nil {
			fs.wg.Go(func() { fs.tell(EvRegistry{ID: id, Session: s.number, Registry: c.Ask(ctx)}) })
		}
	})
	return s
}

// ID returns the blob's name.
func (s *Session) ID() piece.ID { return s.id }

// Blob returns the blob, once it is open. It stays open until Close.
func (s *Session) Blob(ctx context.Context) (Blob, error) {
	select {
	case <-s.attached:
	case <-s.fs.stopped:
		return nil, ErrStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-s.handle.ready:
		return s.handle.blob, s.handle.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Wait returns where the client is to continue, at the blob's size if everything is
// there. A session that gets another offset writes until End.
func (s *Session) Wait(ctx context.Context) (Answer, error) {
	ch := make(chan answer, 1)
	s.fs.do(func(ctx context.Context) {
		s.answer = ch
		s.fs.step(ctx, EvSessionWaits{ID: s.id, Session: s.number})
	})
	select {
	case a := <-ch:
		return a.Answer, a.err
	case <-ctx.Done():
		s.End(ErrGivenUp) // the answer may be under way
		return Answer{}, ctx.Err()
	case <-s.fs.stopped:
	}
	select {
	case a := <-ch:
		return a.Answer, a.err
	default:
		return Answer{}, ErrStopped
	}
}

// Write makes a session one that writes from 0 on without having waited.
func (s *Session) Write() { s.fs.tell(EvSessionWrites{ID: s.id, Session: s.number}) }

// Wrote counts n bytes that the session stored, the last of which ends at offset.
func (s *Session) Wrote(n int, offset int64) {
	s.fs.cfg.OnRegistry(n)
	s.brought.Add(int64(n))
	s.offset.Store(offset)
	if !s.told.Swap(true) {
		s.fs.do(func(ctx context.Context) {
			s.told.Store(false)
			s.fs.step(ctx, EvSessionWrote{ID: s.id, Session: s.number, Bytes: s.brought.Swap(0), Offset: s.offset.Load()})
		})
	}
}

// End ends the session's writing, if it writes: err is nil if the blob was written to its
// end, and is else why not; see EvSessionEnded.
func (s *Session) End(err error) {
	s.fs.tell(EvSessionEnded{ID: s.id, Session: s.number, Err: err})
}

// Fail makes every session of the blob fail: the disk cannot take it.
func (s *Session) Fail(err error) { s.fs.tell(EvDiskFailed{ID: s.id, Err: err}) }

// Progress returns how many bytes are verified, and when the last ones were, from
// memory.
func (s *Session) Progress() (verified int64, at time.Time) {
	select {
	case <-s.attached:
		st := s.handle.status.Load()
		return st.Verified, st.Progress
	default:
		return 0, time.Time{}
	}
}

// Close ends the session.
func (s *Session) Close() {
	s.fs.do(func(ctx context.Context) {
		s.fs.step(ctx, EvSessionClosed{ID: s.id, Session: s.number})
		delete(s.fs.open, s.number)
	})
}
