package origind

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/keylock"
)

// record says where a blob lives.
type record struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Homes  []home        `json:"homes"`
}

// home is one place where a blob lives.
type home struct {
	// Backend is its name in the configuration.
	Backend string `json:"backend"`
	// Key is what the blob is called there. Empty: this origin keeps it.
	Key string `json:"key,omitempty"`
	// Namespaces are those that it was pushed to or asked for as, the latest last.
	Namespaces []string `json:"namespaces,omitempty"`
	// More: there were others, too many to be named.
	More bool `json:"more,omitempty"`
	// Written: the backend has it.
	Written bool `json:"written,omitempty"`
}

// maxNamespaces is how many a home names.
const maxNamespaces = 1000

// kept reports whether the blob is to stay here for good.
func (h home) kept() bool { return h.Key == "" }

// pending reports whether the home's backend is still to get the blob.
func (h home) pending() bool { return !h.kept() && !h.Written }

// pinned reports whether the blob must not be evicted.
func (r *record) pinned() bool {
	return slices.ContainsFunc(r.Homes, func(h home) bool { return h.kept() || h.pending() })
}

// pending reports whether a backend is still to get the blob.
func (r *record) pending() bool { return slices.ContainsFunc(r.Homes, home.pending) }

// durable is origin.Info.Durable.
func (r *record) durable() bool {
	return slices.ContainsFunc(r.Homes, func(h home) bool { return h.kept() || h.Written })
}

// add notes that the blob, as a part of namespace, lives at h's backend and key, and
// whether it is there.
func (r *record) add(h home, namespace string) {
	i := slices.IndexFunc(r.Homes, func(o home) bool { return o.Backend == h.Backend && o.Key == h.Key })
	if i < 0 {
		h.Namespaces = nil
		i, r.Homes = len(r.Homes), append(r.Homes, h)
	}
	at := &r.Homes[i]
	at.Written = h.Written
	if namespace == "" || slices.Contains(at.Namespaces, namespace) {
		return
	}
	at.Namespaces = append(at.Namespaces, namespace)
	if len(at.Namespaces) > maxNamespaces {
		at.Namespaces, at.More = at.Namespaces[1:], true
	}
}

// remove takes a namespace away, and returns the homes that have none left; with
// an empty namespace, all of them.
func (r *record) remove(namespace string) (gone []home) {
	var left []home
	for _, h := range r.Homes {
		had := slices.Contains(h.Namespaces, namespace)
		h.Namespaces = slices.DeleteFunc(h.Namespaces, func(ns string) bool { return ns == namespace })
		if namespace == "" || had && len(h.Namespaces) == 0 && !h.More {
			gone = append(gone, h)
		} else {
			left = append(left, h)
		}
	}
	r.Homes = left
	return gone
}

// check reports what is wrong with a record that was read.
func (r *record) check(d digest.Digest) error {
	if r.Digest != d {
		return fmt.Errorf("it is about %q", r.Digest)
	}
	if r.Size < 1 || r.Size > origin.MaxSize {
		return fmt.Errorf("a size of %d bytes", r.Size)
	}
	for _, h := range r.Homes {
		if h.Key != "" {
			if err := fetcher.CheckKey(h.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxRecord bounds the bytes of a record's file.
const maxRecord = 1 << 20

// records keeps them on disk, as records/<alg>/<2 hex>/<hex>.json.
type records struct {
	dir   string
	dirs  *durable.Dirs
	locks keylock.Locks[digest.Digest]
}

func openRecords(dir string) *records {
	return &records{dir: dir, dirs: durable.NewDirs(filepath.Dir(dir), 0o700)}
}

// recordKey is what a record is called, here and in backends.
func recordKey(d digest.Digest) string {
	hex := d.Encoded()
	return "records/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex
}

func (s *records) path(d digest.Digest) string {
	return filepath.Join(s.dir, strings.TrimPrefix(recordKey(d), "records/")+".json")
}

// lock gives d's record and pin to the caller until it calls unlock.
func (s *records) lock(d digest.Digest) (unlock func()) { return s.locks.Lock(d) }

// get returns a blob's record, or nil if there is none. It reads a small file.
func (s *records) get(d digest.Digest) (*record, error) {
	b, err := os.ReadFile(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", d, err)
	}
	r, err := parseRecord(b, d)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged, remove it and push the blob again: %w: %w", s.path(d), err, errdefs.ErrDataLoss)
	}
	return r, nil
}

func parseRecord(b []byte, d digest.Digest) (*record, error) {
	if len(b) > maxRecord {
		return nil, fmt.Errorf("it has more than %d bytes", maxRecord)
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	return r, r.check(d)
}

// put makes r the blob's record, durably. Its digest is locked.
func (s *records) put(r *record) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return fmt.Errorf("record of %s: %d bytes are more than %d: %w", r.Digest, len(b), maxRecord, errdefs.ErrResourceExhausted)
	}
	p := s.path(r.Digest)
	if err = s.dirs.Make(filepath.Dir(p)); err == nil {
		err = durable.WriteFile(p, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record of %s: %w", r.Digest, err)
	}
	return nil
}

// remove forgets a blob's record, durably. Its digest is locked.
func (s *records) remove(d digest.Digest) error {
	if err := durable.Remove(s.path(d)); err != nil {
		return fmt.Errorf("removing the record of %s: %w", d, diskfull.Classed(err))
	}
	return nil
}
