package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	// healWait is for how long a reader waits for a wrong piece to be healed: other members are a few milliseconds away.
	healWait = 5 * time.Second
	// sumsWait is for how long a reader waits for the sums of a blob that has lost them: until all of it was read. The next one waits
	// for the rest.
	sumsWait = 20 * time.Second
)

// sending is an answer with a part of a blob. It may come from several places, one after the other: nothing is sent before there is
// something right to be sent.
type sending struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	hop     bool  // another member asks, or somebody whom it has sent
	size    int64 // of the blob
	off, n  int64 // of what is still to be sent
	partial bool
	begun   bool
	wrong   int // times in a row that it did not go on, as a piece was wrong
}

// begin sends the header, once.
func (s *sending) begin() {
	if s.begun {
		return
	}
	s.begun = true
	h := s.w.Header()
	h.Set("Content-Length", strconv.FormatInt(s.n, 10))
	status := http.StatusOK
	if s.partial {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", s.off, s.off+s.n-1, s.size))
		status = http.StatusPartialContent
	}
	s.w.WriteHeader(status)
}

// take sends the next bytes. The client has to take something now and then.
func (s *sending) take(p []byte) error {
	s.begin()
	if err := s.rc.SetWriteDeadline(time.Now().Add(moveTimeout)); err != nil {
		return err
	}
	_, err := s.w.Write(p)
	return err
}

// relay sends what is still to be sent from r.
func (s *sending) relay(r io.Reader) error {
	s.begin()
	for s.n > 0 {
		if err := s.rc.SetWriteDeadline(time.Now().Add(moveTimeout)); err != nil {
			return err
		}
		m, err := io.CopyN(s.w, r, min(s.n, copyChunk))
		s.off, s.n = s.off+m, s.n-m
		if err != nil {
			return err
		}
	}
	return nil
}

// verified sends the next n bytes from a blob of which they count: fewer, if one turns out to be wrong, which does not count then.
func (s *sending) verified(ctx context.Context, v *verified, b *content.Blob, n int64) error {
	m, err := v.send(ctx, b, s.off, n, s.take)
	s.off, s.n = s.off+m, s.n-m
	if m > 0 {
		s.wrong = 0
	}
	if errors.Is(err, errWrong) && s.wrong < 3 {
		s.wrong++
		return nil
	}
	return err
}

// sendHere sends from a blob that is whole here. Each piece is verified; one that is wrong is waited for.
func (s *server) sendHere(ctx context.Context, snd *sending, id piece.ID) error {
	b, err := s.openLocal(ctx, id)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := proved(ctx, b); err != nil {
		return err
	}
	for snd.n > 0 {
		if n := b.Readable(snd.off, snd.n); n > 0 {
			err = snd.verified(ctx, s.verified, b, n)
		} else {
			err = s.healed(ctx, b, snd)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// proved sees to it that a blob has sums by which its pieces can be verified. If they were lost, all of it is read, once for all who
// wait, and verified by its digest.
func proved(ctx context.Context, b *content.Blob) error {
	if _, ok := b.Sums(); ok {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, sumsWait)
	defer cancel()
	err := b.ComputeSums(within)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, piece.ErrMismatch):
		return fmt.Errorf("%w: %w", errMoved, err)
	case within.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("%s has lost its sums, and is still being verified: %w", b.ID(), errdefs.ErrUnavailable)
	}
	return err
}

// healed waits until the piece is right that is to be sent next. Other members do not: two of them might wait for each other.
func (s *server) healed(ctx context.Context, b *content.Blob, snd *sending) error {
	id := b.ID()
	i := snd.off / id.Length()
	spoiled := fmt.Errorf("%s: piece %d is wrong on this origin's disk, and is to be healed: %w", id, i, errdefs.ErrUnavailable)
	others := slices.ContainsFunc(s.member.peers(), func(p ringstate.Peer) bool { return !p.Self && p.Heard && !p.Removed })
	late := time.NewTimer(healWait)
	defer late.Stop()
	for {
		changed := b.Changed() // before the look
		switch {
		case b.Readable(snd.off, 1) > 0:
			return nil
		case s.store.Presence(id) < content.Pinned: // nobody heals it
			return errMoved
		case snd.hop || !others:
			return spoiled
		}
		select {
		case <-changed:
		case <-late.C:
			return spoiled
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow sends from a blob while it is still arriving.
func (s *server) follow(ctx context.Context, snd *sending, c *coldRead) error {
	flushed := false
	for snd.n > 0 {
		off := snd.off
		changed := c.blob.Changed() // before the look, so that nothing is missed
		if ready := min(c.blob.Prefix()-off, snd.n); ready > 0 {
			if err := snd.verified(ctx, s.verified, c.blob, ready); err != nil {
				return err
			}
			flushed = flushed && snd.off == off
			continue
		}
		if !flushed {
			if err := snd.rc.Flush(); err != nil {
				return err
			}
			flushed = true
		}
		select {
		case <-changed:
		case <-c.done:
			if c.err != nil {
				return c.err
			}
			if c.blob.Prefix() <= off {
				return fmt.Errorf("%s ends at %d: %w", c.id, off, errMoved)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
