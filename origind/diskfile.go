package origind

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/durable"
)

// diskFile is disk.json (record/FORMAT.md, section 6): whose disk it is, of a member that has several.
type diskFile struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Member  string `json:"member"`
	ID      hexID  `json:"id"` // random, not 0
}

const (
	diskName   = "disk.json"
	diskFormat = 1
	maxDisk    = 64 << 10 // bytes
)

// random returns a random number that is not 0.
func random() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // it never fails
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// readDisk reads a disk's file; nil if it has none. What is damaged is errdefs.ErrDataLoss; a later format
// errdefs.ErrFailedPrecondition.
func readDisk(root string) (*diskFile, error) {
	path := filepath.Join(root, diskName)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxDisk))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	f := new(diskFile)
	if err := json.Unmarshal(text, f); err != nil || f.Format < 1 || f.ID == 0 {
		return nil, fmt.Errorf("%s is damaged: restore it, or empty the disk: %w: %w", path, errors.Join(err), errdefs.ErrDataLoss)
	}
	if f.Format > diskFormat {
		return nil, fmt.Errorf("%s has format %d, and this release knows %d: a later release has written it, run that: %w",
			path, f.Format, diskFormat, errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// write makes the file durable.
func (f *diskFile) write(root string) error {
	text, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(root, diskName), append(text, '\n'), 0o600)
}

// check reports that the disk is somebody else's.
func (f *diskFile) check(root, cluster, member string) error {
	if f.Member == member && f.Cluster == cluster {
		return nil
	}
	return fmt.Errorf("%s is a disk of member %s of cluster %q, and this is %s of %q: give it back, or empty it: %w",
		root, f.Member, f.Cluster, member, cluster, errdefs.ErrFailedPrecondition)
}
