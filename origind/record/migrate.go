package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Records of format 1 are files, <dir>/<alg>/<2 hex>/<hex>.json.

func v1Path(dir string, d digest.Digest) string {
	enc := d.Encoded()
	return filepath.Join(dir, d.Algorithm().String(), enc[:2], enc+".json")
}

// HasV1 reports whether there is a record of format 1 below dir for a blob.
func HasV1(dir string, d digest.Digest) (bool, error) {
	_, err := os.Lstat(v1Path(dir, d))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

const migratedSuffix = ".migrated"

// Migrate takes the records of format 1 below dir into the store, as the member by has them, and then removes them: only
// when all of them are in a durable snapshot. A crash at any moment leaves all that it needs to be repeated. It must end
// before anybody uses the store. If a file is no record, nothing is migrated, and the error (errdefs.ErrDataLoss) names it.
func (s *Store) Migrate(dir, by string) (records int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("migrating records of format 1: %w", err)
		}
	}()
	err = eachV1(dir, func(path string, d digest.Digest) error {
		r, err := readV1(path, d, by)
		if err != nil {
			return err
		}
		records++
		return s.merge(r)
	})
	if errors.Is(err, fs.ErrNotExist) {
		// Never there, or renamed already: nobody looks there any more, and their removal was interrupted.
		return 0, diskfull.Classed(disk.RemoveAll(dir + migratedSuffix))
	}
	if err == nil {
		err = s.Compact()
	}
	if err == nil {
		err = durable.Rename(dir, dir+migratedSuffix)
	}
	if err == nil {
		err = disk.RemoveAll(dir + migratedSuffix)
	}
	return records, diskfull.Classed(err)
}

func readV1(path string, d digest.Digest, by string) (*Record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := FromV1(b, d, by)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged, remove it and push the blob again: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return r, nil
}

// merge merges r into the index. Nothing is durable before the next snapshot.
func (s *Store) merge(r *Record) error {
	e, err := s.Get(r.Digest)
	if err != nil {
		return err
	}
	if e == nil {
		e = new(Entry)
	}
	e.Record = Merge(e.Record, r)
	return s.apply(0, 0, packEntry(e))
}

// eachV1 calls f for each file of format 1. What an interrupted write has left is passed over.
func eachV1(dir string, f func(path string, d digest.Digest) error) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || durable.IsTemp(e.Name()) {
			return err
		}
		enc, ok := strings.CutSuffix(e.Name(), ".json")
		alg := filepath.Base(filepath.Dir(filepath.Dir(path)))
		d := digest.NewDigestFromEncoded(digest.Algorithm(alg), enc)
		if !ok || d.Validate() != nil || path != v1Path(dir, d) {
			return fmt.Errorf("%s is no record's file, remove it: %w", path, errdefs.ErrDataLoss)
		}
		return f(path, d)
	})
}

// Export writes the records as format 1, to a directory that must not be there, and is whole and durable when it is: the
// way back to an origin without a ring. If one cannot be written so, nothing is, and the error says which and why.
func (s *Store) Export(dir string) (records int, err error) {
	tmp := dir + ".exporting"
	defer func() {
		if err != nil {
			err = fmt.Errorf("exporting records to format 1: %w", diskfull.Classed(err))
		}
	}()
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%s is there already: %w", dir, errors.Join(err, errdefs.ErrAlreadyExists))
	}
	if err := disk.RemoveAll(tmp); err != nil { // of an interrupted call
		return 0, err
	}
	if err := disk.Mkdir(tmp, 0o700); err != nil { // durable when it is renamed
		return 0, err
	}
	dirs := durable.NewDirs(tmp, 0o700)
	err = s.Each(func(e *Entry) error {
		b, err := e.v1()
		if err != nil || b == nil {
			return err
		}
		records++
		path := v1Path(tmp, e.Record.Digest)
		if err := dirs.Make(filepath.Dir(path)); err != nil {
			return err
		}
		return durable.WriteFile(path, b, 0o600)
	})
	if err == nil {
		err = durable.Rename(tmp, dir)
	} else {
		err = errors.Join(err, disk.RemoveAll(tmp))
	}
	return records, err
}

// v1 returns an entry in format 1. That has no word for what is to be erased: whoever goes back to it first erases.
func (e *Entry) v1() ([]byte, error) {
	if at := e.Record.Erasable(); e.Wrote && len(at) > 0 {
		return nil, fmt.Errorf("%s was removed, and backend %s still has it as %s: format 1 cannot say that it is to be erased: %w",
			e.Record.Digest, at[0].Backend, at[0].Key, errdefs.ErrFailedPrecondition)
	}
	r := e.Record
	if len(e.Found) > 0 && !r.Live() { // as format 1 has what was read from a backend
		r = &Record{Digest: r.Digest, Size: r.Size}
		for _, at := range e.Found {
			r = Merge(r, &Record{Digest: r.Digest, Size: r.Size, Homes: []Home{{
				Place: at, Since: V1, Namespaces: Stamps{"": V1}, Written: V1 + 1,
			}}})
		}
	}
	return r.V1()
}
