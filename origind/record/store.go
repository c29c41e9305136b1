package record

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Entry is what a member keeps of a blob: what all know, and what only it does.
type Entry struct {
	Record *Record
	// Wrote: it has written the blob to a backend, and is to erase it there when the blob lives there no more.
	Wrote bool
	// Found is where a read has found the blob. It makes it no home, is told nobody, and nothing is ever erased there.
	Found []Place
}

// Store keeps entries, one of a blob: in memory, in a log that each change is appended to, and in a snapshot that is
// written when the log has grown (FORMAT.md, section 4).
//
// It may be used by any goroutine. Changes of one blob must not meet: their caller holds a lock of the digest's. What is read is what is
// durable.
type Store struct {
	dirs      *Dirs
	name      string // of its directory, below each of them
	index     index
	j         *journal
	snapshot  int64         // bytes
	compacted chan struct{} // holds a token while nobody compacts
	due       chan struct{} // 1-buffered: the log has grown
}

const (
	snapshotName = "snapshot"
	logPrefix    = "log-"
	minCompact   = 64 << 20 // bytes of a log that are always borne
)

// logName is what the log is called whose first entry has a number.
func logName(first uint64) string { return fmt.Sprintf("%s%016x", logPrefix, first) }

// OpenStore opens the store in a directory of that name, or makes an empty one. It reads all of the first one: a million entries take a
// second, from memory. A damaged file is errdefs.ErrDataLoss, and named.
func OpenStore(dirs *Dirs, name string) (*Store, error) {
	s := &Store{dirs: dirs, name: name, compacted: make(chan struct{}, 1), due: make(chan struct{}, 1)}
	s.compacted <- struct{}{}
	if err := s.load(); err != nil {
		if s.j != nil {
			s.j.files.close()
		}
		return nil, fmt.Errorf("records: %w", err)
	}
	return s, nil
}

// in returns where the store is in a directory.
func (s *Store) in(dir string) string { return filepath.Join(dir, s.name) }

// dir is where it is read.
func (s *Store) dir() string { return s.in(s.dirs.first()) }

func (s *Store) load() error {
	err := s.make(s.dirs.first())
	if err == nil {
		err = s.dirs.others(s.make)
	}
	if err != nil {
		return diskfull.Classed(err)
	}
	entries, err := os.ReadDir(s.dir()) // sorted
	if err != nil {
		return err
	}
	next, err := s.loadSnapshot()
	if err != nil {
		return err
	}
	var logs []string
	for _, f := range entries {
		switch name := f.Name(); {
		case durable.IsTemp(name), strings.HasPrefix(name, logPrefix) && name < logName(next):
			// Of an interrupted compaction: before it, or after it.
			if err := disk.Remove(filepath.Join(s.dir(), name)); err != nil {
				return diskfull.Classed(err)
			}
		case strings.HasPrefix(name, logPrefix):
			logs = append(logs, name)
		}
	}
	if len(logs) == 0 && next == 1 {
		s.j, err = createJournal(s.dirs, filepath.Join(s.name, logName(1)), newHead(kindLog, 1))
		logs = []string{logName(1)}
	} else {
		err = s.loadLogs(logs, next)
	}
	if err != nil {
		return err
	}
	return s.dirs.others(func(dir string) error { return s.mirror(dir, logs) })
}

// make makes the store's directory.
func (s *Store) make(dir string) error {
	err := durable.NewDirs(filepath.Dir(s.in(dir)), 0o700).Make(s.in(dir))
	if err == nil {
		err = durable.SyncDir(s.in(dir)) // whoever has renamed a snapshot may not have come to that
	}
	return err
}

// mirror makes the snapshot in a directory what it is in the first one; then nothing else is needed than the logs, which are the same.
func (s *Store) mirror(dir string, logs []string) error {
	keep := logs
	if s.snapshot > 0 {
		keep = append(slices.Clip(keep), snapshotName)
		if err := s.mirrorSnapshot(filepath.Join(s.in(dir), snapshotName)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(s.in(dir))
	for _, f := range entries {
		if err == nil && !slices.Contains(keep, f.Name()) {
			err = disk.Remove(filepath.Join(s.in(dir), f.Name()))
		}
	}
	return err
}

// mirrorSnapshot copies the snapshot to a path, unless it is that already: its id is random, and it was written as a whole.
func (s *Store) mirrorSnapshot(path string) error {
	from, err := os.Open(filepath.Join(s.dir(), snapshotName))
	if err != nil {
		return err
	}
	defer from.Close()
	if fi, err := os.Lstat(path); err == nil && fi.Size() == s.snapshot {
		if f, err := os.Open(path); err == nil {
			same, err := begins(f, from, headSize)
			f.Close()
			if same && err == nil {
				return nil
			}
		}
	}
	f, err := mirror(from, s.snapshot, path)
	if err != nil {
		return err
	}
	return f.Close()
}

// loadSnapshot returns the number of the first entry that comes after the snapshot.
func (s *Store) loadSnapshot() (next uint64, err error) {
	path := filepath.Join(s.dir(), snapshotName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, err := readAll(f, path, kindSnapshot, s.apply)
	if err != nil {
		return 0, err
	}
	s.snapshot = r.at
	if fi, err := f.Stat(); err != nil {
		return 0, err
	} else if n := r.next - r.first; n != r.count || fi.Size() != r.at {
		return 0, fmt.Errorf("%s is damaged, restore it or move it away: it has %d of %d entries: %w", path, n, r.count, errdefs.ErrDataLoss)
	}
	return r.first, nil
}

// loadLogs reads logs, in order, the last of which is appended to from now on.
func (s *Store) loadLogs(names []string, next uint64) error {
	for i, name := range names {
		j, err := openJournal(s.dirs, filepath.Join(s.name, name), kindLog, s.apply)
		if err != nil {
			return err
		}
		if s.j != nil {
			s.j.files.close()
		}
		s.j = j
		if name != logName(j.first) || j.first > next || i == 0 && j.first < next {
			return fmt.Errorf("%s begins with entry %d, and %d is to come: a log is missing: %w",
				j.path(), j.first, next, errdefs.ErrDataLoss)
		}
		next = max(next, j.next)
	}
	if s.j == nil {
		return fmt.Errorf("%s has no log with entry %d: it is missing: %w", s.dir(), next, errdefs.ErrDataLoss)
	}
	return nil
}

// An entry in files: flags, and the blob's digest with its algorithm; unless it was removed, what else is kept, and the packed record from
// behind the digest on. In the index: flags and algorithm, and what comes behind the digest.
const (
	flagRemoved = 1 << iota
	flagWrote
)

const maxFound = MaxHomes

func packEntry(e *Entry) []byte {
	flags := byte(0)
	if e.Wrote {
		flags |= flagWrote
	}
	packed := e.Record.AppendPacked(make([]byte, 0, 256))
	sum := 2 + e.Record.Digest.Algorithm().Size()
	b := append(make([]byte, 0, len(packed)+16), flags)
	b = append(b, packed[1:sum]...)
	b = binary.AppendUvarint(b, uint64(len(e.Found)))
	for _, at := range e.Found {
		b = appendString(appendString(b, at.Backend), at.Key)
	}
	return append(b, packed[sum:]...)
}

func packRemoved(d digest.Digest) []byte { return appendDigest([]byte{flagRemoved}, d) }

// cut returns the digest in an entry, and what is in the index of it: nil if it was removed.
func cut(entry []byte) (sum, rest []byte, err error) {
	p := unpacker{left: entry}
	flags := p.take(1)
	d := p.digest()
	if p.err != nil || flags[0]&flagRemoved != 0 && len(p.left) > 0 {
		return nil, nil, fmt.Errorf("it is no record: %w", errdefs.ErrDataLoss)
	}
	sum = entry[2 : 2+d.Algorithm().Size()]
	if flags[0]&flagRemoved != 0 {
		return sum, nil, nil
	}
	return sum, append(append(make([]byte, 0, 2+len(p.left)), entry[:2]...), p.left...), nil
}

// apply takes an entry of a file into the index.
func (s *Store) apply(_ uint64, _ int64, entry []byte) error {
	sum, rest, err := cut(entry)
	if err != nil {
		return err
	}
	if s.index.full(sum) {
		return fmt.Errorf("more records than there is room for: %w", errdefs.ErrResourceExhausted)
	}
	s.index.put(sum, rest)
	return nil
}

// entry makes an Entry of what is in the index.
func (s *Store) entry(sum, rest []byte) (*Entry, error) {
	p := unpacker{left: rest[2:]}
	e := &Entry{Wrote: rest[0]&flagWrote != 0}
	n := p.number()
	if n > maxFound {
		p.fail("%d places", n)
	}
	for range n {
		if p.err != nil {
			break
		}
		e.Found = append(e.Found, Place{p.string(), p.string()})
	}
	err := p.err
	if err == nil {
		// It was checked before it came here, and its file has sums.
		packed := append(append(make([]byte, 0, len(rest)+80), format, rest[1]), sum...)
		r := unpacker{left: append(packed, p.left...)}
		e.Record, err = r.record()
	}
	if err != nil {
		return nil, fmt.Errorf("what %s keeps of %x: %w: %w", s.dir(), sum, err, errdefs.ErrDataLoss)
	}
	return e, nil
}

// Get returns what is kept of a blob, or nil. The caller may keep it, and must not change the record.
func (s *Store) Get(d digest.Digest) (*Entry, error) {
	if err := origin.CheckDigest(d); err != nil {
		return nil, err
	}
	sum := appendDigest(nil, d)[1:]
	rest, ok := s.index.get(nil, sum)
	if !ok {
		return nil, nil
	}
	return s.entry(sum, rest)
}

// Put makes e what is kept of its blob, durably. After an error that is what was kept before; at the next start it may be
// e. A record that is not valid, or that says another size than the one before, is refused.
func (s *Store) Put(e *Entry) error { return s.PutAll(map[digest.Digest]*Entry{e.Record.Digest: e}) }

// Remove forgets what is kept of a blob, durably.
func (s *Store) Remove(d digest.Digest) error { return s.PutAll(map[digest.Digest]*Entry{d: nil}) }

// PutAll is Put of many entries, by their digests, and Remove of those that are nil, with one sync. What is kept already is not
// written again. If one is refused, nothing is changed. It is not atomic: after an error nothing is changed, but at the next start
// the first ones may be, in the order of their digests.
func (s *Store) PutAll(entries map[digest.Digest]*Entry) error {
	var first digest.Digest
	all := make([]appended, 0, len(entries))
	for _, d := range slices.Sorted(maps.Keys(entries)) {
		entry, err := s.pack(d, entries[d])
		if err != nil {
			return err
		}
		sum, rest, err := cut(entry)
		if err != nil {
			return err
		}
		old, was := s.index.get(nil, sum)
		if was == (rest != nil) && bytes.Equal(old, rest) {
			continue
		}
		if rest != nil && s.index.full(sum) {
			return fmt.Errorf("record of %s: more records than there is room for: %w", d, errdefs.ErrResourceExhausted)
		}
		first = cmp.Or(first, d)
		all = append(all, appended{entry, func(uint64, int64) { s.took(sum, rest) }})
	}
	if err := s.j.append(all...); err != nil {
		return fmt.Errorf("records of %d blobs, the first of %s: %w", len(all), first, err)
	}
	return nil
}

// pack returns an entry as it is in files, if it may be put.
func (s *Store) pack(d digest.Digest, e *Entry) ([]byte, error) {
	if e == nil {
		if err := origin.CheckDigest(d); err != nil {
			return nil, err
		}
		return packRemoved(d), nil
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	if e.Record.Digest != d {
		return nil, fmt.Errorf("record of %s, for %s: %w", e.Record.Digest, d, errdefs.ErrInvalidArgument)
	}
	old, err := s.Get(d)
	if err != nil && !errdefs.IsDataLoss(err) { // a damaged one is replaced
		return nil, err
	}
	if old != nil && old.Record.Size != 0 && old.Record.Size != e.Record.Size {
		return nil, fmt.Errorf("record of %s: it says %d bytes, and the one before %d: %w",
			d, e.Record.Size, old.Record.Size, errdefs.ErrFailedPrecondition)
	}
	return packEntry(e), nil
}

// took takes what became durable into the index.
func (s *Store) took(sum, rest []byte) {
	s.index.put(sum, rest)
	if s.j.size > max(minCompact, s.snapshot) {
		select {
		case s.due <- struct{}{}:
		default:
		}
	}
}

func (e *Entry) check() error {
	if err := e.Record.Check(); err != nil {
		return err
	}
	if n := len(e.Found); n > maxFound || n > 0 && e.Record.Size == 0 {
		return fmt.Errorf("record of %s: found at %d places, %d are the most, and it has a size then: %w",
			e.Record.Digest, n, maxFound, errdefs.ErrInvalidArgument)
	}
	return sized(e.Record.Digest, len(e.Record.AppendPacked(nil)))
}

// Len returns how many blobs something is kept of.
func (s *Store) Len() int { return s.index.len() }

// Each calls f for what is kept of each blob, in no order. What changes meanwhile is called for as it was, or as it is.
func (s *Store) Each(f func(e *Entry) error) error {
	return s.index.each(func(sum, rest []byte) error {
		e, err := s.entry(sum, rest)
		if err != nil {
			return err
		}
		return f(e)
	})
}

// Run compacts whenever the log has grown to the size of the snapshot, until ctx is done. It tells failed when that does not work, and
// tries again a minute later; meanwhile only the log grows.
func (s *Store) Run(ctx context.Context, failed func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.due:
		}
		if err := s.Compact(); err != nil {
			failed(err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Minute):
			}
		}
	}
}

// Compact writes a snapshot, and removes the logs that are in it. Others go on reading and writing meanwhile.
func (s *Store) Compact() error {
	<-s.compacted
	defer func() { s.compacted <- struct{}{} }()
	h, err := s.rotate()
	if err != nil {
		return fmt.Errorf("beginning a new log of records: %w", err)
	}
	f, size, err := writeEntries(s.dirs, filepath.Join(s.name, snapshotName), h, func(add func(batch uint64, entry []byte) error) error {
		var b []byte
		return s.index.each(func(sum, rest []byte) error {
			b = append(append(append(b[:0], rest[:2]...), sum...), rest[2:]...)
			return add(1, b)
		})
	})
	if f != nil {
		f.close()
	}
	if err != nil {
		return err
	}
	s.j.turn <- struct{}{}
	s.snapshot = size
	<-s.j.turn
	err = s.dirs.Do(func(dir string) error {
		entries, err := os.ReadDir(s.in(dir))
		for _, f := range entries {
			if name := f.Name(); err == nil && strings.HasPrefix(name, logPrefix) && name < logName(h.first) {
				err = disk.Remove(filepath.Join(s.in(dir), name))
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("removing logs that are in the snapshot: %w", diskfull.Classed(err))
	}
	return nil
}

// rotate begins a new log, unless nothing is in the last one, and returns the head of a snapshot of what is before it.
func (s *Store) rotate() (head, error) {
	s.j.turn <- struct{}{}
	defer func() { <-s.j.turn }()
	if err := s.j.settle(); err != nil {
		return head{}, fmt.Errorf("%s: %w", s.j.path(), diskfull.Classed(err))
	}
	if s.j.next > s.j.first {
		j, err := createJournal(s.dirs, filepath.Join(s.name, logName(s.j.next)), newHead(kindLog, s.j.next))
		if err != nil {
			return head{}, err
		}
		s.j.replace(j)
	}
	return newHead(kindSnapshot, s.j.next), nil
}

// Close waits for what is being written. What comes later fails.
func (s *Store) Close() error {
	<-s.compacted
	defer func() { s.compacted <- struct{}{} }()
	return s.j.close()
}
