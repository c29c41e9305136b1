package owned

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	// Key is that of the object that says whose a storage is.
	Key = "capelin-storage"

	format      = 1
	maxIdentity = 64 << 10
	maxField    = 256
)

// Identity is what a storage is.
type Identity struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	ID      string `json:"id"` // by chance: no other storage has it
}

// Read returns what a storage is; nil: nobody has written that down.
func Read(ctx context.Context, b fetcher.Backend) (*Identity, error) {
	data, _, err := walk.Read(ctx, b, Key, maxIdentity)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking whose storage it is: %w", err)
	}
	id := new(Identity)
	if err := json.Unmarshal(data, id); err != nil {
		return nil, fmt.Errorf("%s: object %s, which says whose storage it is, is damaged; delete it: %w: %w",
			b.Name(), Key, err, errdefs.ErrDataLoss)
	}
	switch {
	case id.Format != format:
		return nil, fmt.Errorf("%s: object %s has format %d, and only %d is known here; was it written by a newer release?: %w",
			b.Name(), Key, id.Format, format, errdefs.ErrDataLoss)
	case id.Cluster == "" || id.ID == "" || len(id.Cluster) > maxField || len(id.ID) > maxField:
		return nil, fmt.Errorf("%s: object %s is damaged, as it names no cluster or has no id; delete it: %w", b.Name(), Key, errdefs.ErrDataLoss)
	}
	return id, nil
}

// Claim has a storage belong to a cluster, if it belongs to none. errdefs.ErrFailedPrecondition if it belongs to another one.
func Claim(ctx context.Context, b fetcher.Backend, cluster string) (*Identity, error) {
	id, err := Read(ctx, b)
	if err == nil && id == nil {
		id, err = create(ctx, b, cluster)
	}
	if err != nil {
		return nil, err
	}
	return id, id.of(b, cluster)
}

// of is an error if it is not the cluster's.
func (id *Identity) of(b fetcher.Backend, cluster string) error {
	if id == nil || id.Cluster == cluster {
		return nil
	}
	return fmt.Errorf("%s belongs to cluster %q, as its object %s says, and this is cluster %q: give this one a storage, or a prefix, of its "+
		"own; if the cluster was renamed, delete the object: %w", b.Name(), id.Cluster, Key, cluster, errdefs.ErrFailedPrecondition)
}

func create(ctx context.Context, b fetcher.Backend, cluster string) (*Identity, error) {
	data, err := json.Marshal(Identity{format, cluster, rand.Text()})
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	if b.Capabilities().CompareAndSwap {
		_, err = b.WriteIf(ctx, Key, data, "")
	} else {
		_, err = b.Write(ctx, Key, int64(len(data)), bytes.NewReader(data))
	}
	if err != nil && !errdefs.IsConflict(err) {
		return nil, fmt.Errorf("writing whose storage it is: %w", err)
	}
	id, err := Read(ctx, b) // somebody else may have been the first
	if err == nil && id == nil {
		err = fmt.Errorf("%s: object %s was deleted by somebody else: %w", b.Name(), Key, errdefs.ErrUnavailable)
	}
	return id, err
}

// Storage is a storage that is used by one cluster only. It may be used by any goroutine.
type Storage struct {
	fetcher.Backend
	cluster string

	looking chan struct{} // 1 buffered: full while somebody looks
	known   atomic.Pointer[Identity]
	looked  atomic.Bool // there was no Identity, or it may not be read
	free    atomic.Bool // it may not be created
}

// New returns b for a cluster. Closing it closes b.
func New(b fetcher.Backend, cluster string) *Storage {
	return &Storage{Backend: b, cluster: cluster, looking: make(chan struct{}, 1)}
}

// ID returns the storage's, "" if it is not known yet.
func (s *Storage) ID() string {
	if id := s.known.Load(); id != nil {
		return id.ID
	}
	return ""
}

// mine is an error if the storage is another cluster's. Who writes creates what says so.
func (s *Storage) mine(ctx context.Context, writes bool) error {
	if s.known.Load() != nil || s.free.Load() || !writes && s.looked.Load() {
		return nil
	}
	select {
	case s.looking <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", s.Name(), ctx.Err())
	}
	defer func() { <-s.looking }()
	if s.known.Load() != nil || s.free.Load() || !writes && s.looked.Load() {
		return nil
	}
	if err := s.look(ctx); err != nil || !writes || s.known.Load() != nil {
		return err
	}
	id, err := Claim(ctx, s.Backend, s.cluster)
	if refused(err) {
		s.free.Store(true)
		return nil
	}
	if err == nil {
		s.known.Store(id)
	}
	return err
}

// look reads what the storage is.
func (s *Storage) look(ctx context.Context) error {
	id, err := Read(ctx, s.Backend)
	if err == nil {
		err = id.of(s.Backend, s.cluster)
	}
	switch {
	case refused(err):
	case err != nil:
		if errdefs.IsFailedPrecondition(err) { // somebody else's now
			s.known.Store(nil)
			s.looked.Store(false)
		}
		return err
	case id != nil:
		s.known.Store(id)
	}
	s.looked.Store(true)
	return nil
}

func refused(err error) bool {
	return errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err)
}

// Check implements fetcher.Backend. It also looks anew whose the storage is.
func (s *Storage) Check(ctx context.Context) error {
	if err := s.Backend.Check(ctx); err != nil {
		return err
	}
	select {
	case s.looking <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", s.Name(), ctx.Err())
	}
	defer func() { <-s.looking }()
	s.free.Store(false) // it may be allowed by now
	return s.look(ctx)
}

// Stat implements fetcher.Backend.
func (s *Storage) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := s.mine(ctx, false); err != nil {
		return fetcher.Info{}, err
	}
	return s.Backend.Stat(ctx, key)
}

// Open implements fetcher.Backend.
func (s *Storage) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := s.mine(ctx, false); err != nil {
		return nil, fetcher.Info{}, err
	}
	return s.Backend.Open(ctx, key, off, n)
}

// List implements fetcher.Backend.
func (s *Storage) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	if err := s.mine(ctx, false); err != nil {
		return nil, false, err
	}
	return s.Backend.List(ctx, prefix, after, limit)
}

// Write implements fetcher.Backend.
func (s *Storage) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	if err := s.mine(ctx, true); err != nil {
		return fetcher.Info{}, err
	}
	return s.Backend.Write(ctx, key, size, r)
}

// WriteIf implements fetcher.Backend.
func (s *Storage) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if err := s.mine(ctx, true); err != nil {
		return fetcher.Info{}, err
	}
	return s.Backend.WriteIf(ctx, key, data, version)
}

// Delete implements fetcher.Backend.
func (s *Storage) Delete(ctx context.Context, key string) error {
	if err := s.mine(ctx, true); err != nil {
		return err
	}
	return s.Backend.Delete(ctx, key)
}
