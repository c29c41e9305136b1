package moving

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

// settled is what was done to the new storage, in objects and bytes.
type settled struct{ changed, bytes, verified int64 }

// settleAll makes objects of the new storage those of the old one.
func (m *Mover) settleAll(ctx context.Context, keys []string) (sum settled, err error) {
	each := make([]settled, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(m.Kind.parallel)
	for i, key := range keys {
		g.Go(func() (err error) {
			if d := m.Kind.named(key); d != "" {
				each[i], err = m.settleBlob(ctx, key, d)
			} else {
				each[i], err = m.settle(ctx, key)
			}
			return err
		})
	}
	err = g.Wait()
	for _, n := range each {
		sum.changed += n.changed
		sum.bytes += n.bytes
		sum.verified += n.verified
	}
	return sum, err
}

// settle makes a small object of the new storage what the old one has. What
// the new one has is read first: so if another Mover writes it in between, this one does not put an older state in its place.
func (m *Mover) settle(ctx context.Context, key string) (settled, error) {
	for range settleTries {
		has, info, err := read(ctx, m.To, key)
		if err != nil {
			return settled{}, err
		}
		want, _, err := read(ctx, m.From, key)
		if err != nil {
			return settled{}, err
		}
		switch {
		case (has == nil) == (want == nil) && bytes.Equal(has, want):
			return settled{}, nil
		case want == nil:
			return settled{changed: 1}, m.To.Delete(ctx, key)
		case len(want) > maxSwap || !m.To.Capabilities().CompareAndSwap: // no tag has as much, and the bytes of all others follow from their keys
			_, err = m.To.Write(ctx, key, int64(len(want)), bytes.NewReader(want))
		default:
			_, err = m.To.WriteIf(ctx, key, want, info.Version)
		}
		if !errdefs.IsConflict(err) {
			return settled{changed: 1, bytes: int64(len(want))}, err
		}
	}
	return settled{}, m.restless(key)
}

func (m *Mover) restless(key string) error {
	return fmt.Errorf("%s: %s was written %d times by others meanwhile: %w", m.To.Name(), key, settleTries, errdefs.ErrConflict)
}

// read returns nil if there is no object.
func read(ctx context.Context, b fetcher.Backend, key string) ([]byte, fetcher.Info, error) {
	data, info, err := walk.Read(ctx, b, key, maxSmall)
	if errdefs.IsNotFound(err) {
		return nil, fetcher.Info{}, nil
	}
	if err == nil && data == nil {
		data = []byte{}
	}
	return data, info, err
}

// named returns after which bytes an object is named; "": it is not.
func (k *Kind) named(key string) digest.Digest {
	e := strings.Split(key, "/")
	if !k.large || len(e) != 4 {
		return ""
	}
	d := digest.Digest(e[1] + ":" + e[3])
	if at, err := fetcher.BlobKey(d); err != nil || at != key {
		return ""
	}
	return d
}

// errDamaged is that bytes are not what their name says.
var errDamaged = errors.New("the bytes are not what the digest says")

// settleBlob makes a blob of the new storage what the old one has. All of it is read from the new one afterwards; one that was there is
// not copied, but read as well.
func (m *Mover) settleBlob(ctx context.Context, key string, d digest.Digest) (done settled, err error) {
	for range settleTries {
		want, err := stat(ctx, m.From, key)
		if err != nil {
			return done, err
		}
		has, err := stat(ctx, m.To, key)
		switch {
		case err != nil:
			return done, err
		case want == nil && has == nil:
			m.damage(key, false)
			return done, nil
		case want == nil:
			m.damage(key, false)
			done.changed = 1
			return done, m.To.Delete(ctx, key)
		case has != nil && has.Size == want.Size:
			switch err := sumOf(ctx, m.To, key, d); {
			case err == nil:
				m.damage(key, false)
				done.verified = 1
				return done, nil
			case !errors.Is(err, errDamaged) && !errdefs.IsNotFound(err):
				return done, err
			}
		}
		n, err := m.carry(ctx, key, d)
		switch {
		case err == nil:
			done.changed, done.bytes = 1, done.bytes+n
		case errors.Is(err, errDamaged):
			m.damage(key, true)
			return done, m.To.Delete(ctx, key)
		case !errdefs.IsNotFound(err): // it was deleted meanwhile
			return done, err
		}
	}
	return done, m.restless(key)
}

// damage notes whether a blob is damaged in the old storage.
func (m *Mover) damage(key string, is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is {
		m.damaged[key] = true
	} else {
		delete(m.damaged, key)
	}
}

// stat returns nil if there is no object.
func stat(ctx context.Context, b fetcher.Backend, key string) (*fetcher.Info, error) {
	info, err := b.Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return &info, err
}

// sumOf reads an object. The error is errDamaged if it is not what the digest says.
func sumOf(ctx context.Context, b fetcher.Backend, key string, d digest.Digest) error {
	r, _, err := b.Open(ctx, key, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	h := d.Algorithm().Hash()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if digest.NewDigest(d.Algorithm(), h) != d {
		return fmt.Errorf("%s: %s: %w", b.Name(), key, errDamaged)
	}
	return nil
}

// carry copies a blob. What was read is verified before its last bytes are given away, and so is that this is still the one who
// moves: one that slept meanwhile does not bring back what was deleted.
func (m *Mover) carry(ctx context.Context, key string, d digest.Digest) (int64, error) {
	r, info, err := m.From.Open(ctx, key, 0, -1)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	_, err = m.To.Write(ctx, key, info.Size, &carried{
		Reader: r, h: d.Algorithm().Hash(), left: info.Size, end: func(h hash.Hash) error {
			if digest.NewDigest(d.Algorithm(), h) != d {
				return fmt.Errorf("%s: %s: %w", m.From.Name(), key, errDamaged)
			}
			return m.mine(ctx)
		},
	})
	return info.Size, err
}

// carried calls end before it gives the last bytes away.
type carried struct {
	io.Reader
	h    hash.Hash
	left int64
	end  func(h hash.Hash) error
	over bool
}

func (c *carried) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.h.Write(p[:n])
	c.left -= int64(n)
	if (c.left <= 0 || err == io.EOF) && !c.over {
		if err := c.end(c.h); err != nil {
			return 0, err
		}
		c.over = true
	}
	return n, err
}
