package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Bounds of what an archive may have.
const (
	maxEntries = 100_000
	maxIndex   = 8 << 20
)

var blobPath = regexp.MustCompile(`^blobs/[a-z0-9]{1,20}/[a-f0-9]{32,128}$`)

// unpackLayout extracts an OCI archive into dir: what belongs to a layout, and
// nothing else.
func unpackLayout(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for range maxEntries {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", archive, err)
		}
		file := strings.TrimPrefix(h.Name, "./")
		limit := int64(maxIndex)
		switch {
		case h.Typeflag != tar.TypeReg:
			continue
		case file == "oci-layout" || file == "index.json":
		case blobPath.MatchString(file):
			limit = h.Size
		default:
			continue
		}
		if h.Size > limit {
			return fmt.Errorf("%s: %s has %d bytes, more than %d", archive, file, h.Size, limit)
		}
		if err := extract(r, filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("extracting %s of %s: %w", file, archive, err)
		}
	}
	return fmt.Errorf("%s has more than %d entries", archive, maxEntries)
}

func extract(r io.Reader, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// packLayout makes an OCI archive of a layout. The file appears as a whole.
func packLayout(dir, archive string) error {
	return atomically(archive, func(tmp string) (err error) {
		f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		w := tar.NewWriter(f)
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			// No times and owners: equal images make equal archives.
			if err := w.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Mode: 0o644, Size: fi.Size(), Typeflag: tar.TypeReg}); err != nil {
				return err
			}
			b, err := os.Open(path)
			if err != nil {
				return err
			}
			_, err = io.Copy(w, b)
			return errors.Join(err, b.Close())
		})
		return errors.Join(err, w.Close())
	})
}

// atomically has make write a temporary file, which then gets its name.
func atomically(path string, make func(tmp string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := make(f.Name()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
