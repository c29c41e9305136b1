package origind

import (
	"fmt"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/origind/record"
)

// homes are the backends, as the places where blobs live.
type homes struct{ Backends }

// of returns where blobs of a namespace live. Without a digest it is only whether they may.
func (hs homes) of(namespace string, d digest.Digest) (record.Place, error) {
	name, b, ok := hs.Match(namespace)
	if !ok {
		return record.Place{}, fmt.Errorf("no backend takes the namespace %q: %w", namespace, errdefs.ErrFailedPrecondition)
	}
	at := record.Place{Backend: name}
	if b == nil {
		return at, nil
	}
	if !b.Capabilities().Write {
		return record.Place{}, fmt.Errorf("backend %s, which has the namespace %q, is read only: %w",
			name, namespace, errdefs.ErrFailedPrecondition)
	}
	if d == "" {
		return at, nil
	}
	var err error
	at.Key, err = fetcher.Locate(b, namespace, d)
	return at, err
}

// removed returns the places that a removal is about: where the blob lives of which e is kept, or was found, and where it may
// live without anybody's knowledge.
func (hs homes) removed(ref origin.Ref, e *record.Entry) (all []record.Place) {
	if ref.Namespace != "" {
		if at, err := hs.of(ref.Namespace, ref.Digest); err == nil {
			return []record.Place{at}
		}
	}
	if e != nil {
		for _, h := range living(e.Record) {
			if _, in := h.Namespaces[ref.Namespace]; in || ref.Namespace == "" && !h.Kept() {
				all = append(all, h.Place)
			}
		}
		return append(all, e.Found...)
	}
	if ref.Namespace != "" {
		return nil
	}
	for name, b := range hs.All() {
		if caps := b.Capabilities(); caps.NeedsRepository || !caps.Delete {
			continue
		}
		if key, err := fetcher.Locate(b, "", ref.Digest); err == nil {
			all = append(all, record.Place{Backend: name, Key: key})
		}
	}
	return all
}

// living returns the homes in which a blob lives.
func living(rec *record.Record) (all []record.Home) {
	for i := range rec.Homes {
		if rec.Lives(&rec.Homes[i]) {
			all = append(all, rec.Homes[i])
		}
	}
	return all
}

// erasable reports why a backend could not remove a blob.
func (hs homes) erasable(at record.Place, d digest.Digest) error {
	if at.Kept() {
		return nil
	}
	b, _ := hs.Get(at.Backend)
	if b == nil {
		return fmt.Errorf("%s lives in backend %q, which is not configured any more: %w", d, at.Backend, errdefs.ErrFailedPrecondition)
	}
	if !b.Capabilities().Delete {
		return fmt.Errorf("backend %s cannot delete %s: %w", at.Backend, d, errdefs.ErrNotImplemented)
	}
	return nil
}

// recordKey is what the record beside a blob is called in its backend.
func recordKey(d digest.Digest) string {
	hex := d.Encoded()
	return "records/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex
}
