package origind

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
)

// homes are the backends, as the places where blobs live.
type homes struct{ Backends }

// of returns where blobs of a namespace live.
func (hs homes) of(namespace string, d digest.Digest) (home, error) {
	name, b, ok := hs.Match(namespace)
	if !ok {
		return home{}, fmt.Errorf("no backend takes the namespace %q: %w", namespace, errdefs.ErrFailedPrecondition)
	}
	h := home{Backend: name}
	if b == nil {
		return h, nil
	}
	if !b.Capabilities().Write {
		return home{}, fmt.Errorf("backend %s, which has the namespace %q, is read only: %w", name, namespace, errdefs.ErrFailedPrecondition)
	}
	if d == "" {
		return h, nil
	}
	var err error
	h.Key, err = fetcher.Locate(b, namespace, d)
	return h, err
}

// unrecorded returns where a blob without a record may live.
func (hs homes) unrecorded(ref origin.Ref) (homes []home) {
	if ref.Namespace != "" {
		if h, err := hs.of(ref.Namespace, ref.Digest); err == nil {
			return []home{h}
		}
		return nil
	}
	for name, b := range hs.All() {
		if caps := b.Capabilities(); caps.NeedsRepository || !caps.Delete {
			continue
		}
		if key, err := fetcher.Locate(b, "", ref.Digest); err == nil {
			homes = append(homes, home{Backend: name, Key: key})
		}
	}
	return homes
}

// erasable reports why a backend could not remove a blob.
func (hs homes) erasable(h home, d digest.Digest) error {
	if h.kept() {
		return nil
	}
	b, _ := hs.Get(h.Backend)
	if b == nil {
		return fmt.Errorf("%s lives in backend %q, which is not configured any more: %w", d, h.Backend, errdefs.ErrFailedPrecondition)
	}
	if !b.Capabilities().Delete {
		return fmt.Errorf("backend %s cannot delete %s: %w", h.Backend, d, errdefs.ErrNotImplemented)
	}
	return nil
}

// erase removes a blob and its record from a backend.
func (hs homes) erase(ctx context.Context, h home, d digest.Digest) error {
	if h.kept() {
		return nil
	}
	if err := hs.erasable(h, d); err != nil {
		return err
	}
	b, _ := hs.Get(h.Backend)
	if b.Capabilities().Write {
		if err := b.Delete(ctx, recordKey(d)); err != nil {
			return err
		}
	}
	return b.Delete(ctx, h.Key)
}
