package moving

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	format    = 1
	maxObject = 1 << 20
)

// Phases of a move.
const (
	none    = "" // nothing moves, or it was given up
	copying = "copying"
	closed  = "closed"
	moved   = "moved"
)

// state says how far a move is.
type state struct {
	Format int    `json:"format"`
	ID     string `json:"id"` // of the move
	Phase  string `json:"phase"`
	Epoch  int    `json:"epoch"` // of the journal, from 1
	To     string `json:"to"`    // name of the new storage, for people

	version string // of the object
}

// target says in the new storage that it is the one.
type target struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	From   string `json:"from"`
	Done   bool   `json:"done"`            // it may be used by itself
	After  string `json:"after,omitempty"` // all keys up to this one are copied

	version string
}

// Member is an index, or an origin, that uses a storage.
type Member struct {
	Format  int       `json:"format"`
	Name    string    `json:"name"` // of an index: host:port, "~" and chance; of an origin: its name in the ring
	Started time.Time `json:"started"`
	Next    string    `json:"next,omitempty"` // name of the storage that it is told to be the next
}

// get reads one of the objects above. It is nil if there is none.
func get[T any](ctx context.Context, b fetcher.Backend, key string) (*T, string, error) {
	data, info, err := walk.Read(ctx, b, key, maxObject)
	if errdefs.IsNotFound(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("looking how far a move is: %w", err)
	}
	var head struct {
		Format int `json:"format"`
	}
	v := new(T)
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, "", fmt.Errorf("%s: object %s is damaged: %w: %w", b.Name(), key, err, errdefs.ErrDataLoss)
	}
	if head.Format != format {
		return nil, "", fmt.Errorf("%s: object %s has format %d, and only %d is known here; was it written by a newer release?: %w",
			b.Name(), key, head.Format, format, errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return nil, "", fmt.Errorf("%s: object %s is damaged: %w: %w", b.Name(), key, err, errdefs.ErrDataLoss)
	}
	return v, info.Version, nil
}

// readState returns a state without a phase if there is none.
func (k *Kind) readState(ctx context.Context, b fetcher.Backend) (*state, error) {
	s, version, err := get[state](ctx, b, k.stateKey())
	if err != nil {
		return nil, err
	}
	if s == nil {
		s = &state{}
	}
	s.version = version
	switch s.Phase {
	case none, copying, closed, moved:
		return s, nil
	}
	return nil, fmt.Errorf("%s: object %s has a phase %.100q that is not known here: %w", b.Name(), k.stateKey(), s.Phase, errdefs.ErrDataLoss)
}

func (s *state) same(o *state) bool { return s.ID == o.ID && s.Phase == o.Phase && s.Epoch == o.Epoch }

// swap writes an object if it is still of that version, and returns its new one. In a storage that does not compare and swap it
// writes it in any case.
func swap(ctx context.Context, b fetcher.Backend, key string, v any, version string) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	write := func() (fetcher.Info, error) { return b.WriteIf(ctx, key, buf.Bytes(), version) }
	if !b.Capabilities().CompareAndSwap {
		write = func() (fetcher.Info, error) { return b.Write(ctx, key, int64(buf.Len()), &buf) }
	}
	info, err := write()
	if err != nil {
		return "", fmt.Errorf("writing %s: %w", key, err)
	}
	return info.Version, nil
}

// Here is errdefs.ErrFailedPrecondition if a storage is not where its index is, because that has moved, or is not there yet.
func (k *Kind) Here(ctx context.Context, b fetcher.Backend) error {
	return k.New(b, nil, "").allowed(ctx, true)
}
