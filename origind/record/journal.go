package record

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Files of entries: a head, and entries in frames (FORMAT.md, section 2).
const (
	magic     = "CPLNREC\x01"
	headSize  = 44 // bytes
	frameSize = 16 // bytes, before the entry
	maxEntry  = MaxRecord + 1<<20
)

// kind is what a file's entries are.
type kind byte

const (
	kindDeletions kind = 1
	kindLog       kind = 2
	kindSnapshot  kind = 3
)

// head begins a file.
type head struct {
	kind  kind
	id    [8]byte // random; it goes into the sums of all frames, so that nothing in an entry can look like a frame
	first uint64  // the number of the first entry; of a snapshot: of the first one that is not in it
	count uint64  // how many entries a snapshot has
}

func newHead(k kind, first uint64) head {
	h := head{kind: k, first: first}
	_, _ = rand.Read(h.id[:]) // it never fails
	return h
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h *head) bytes() []byte {
	b := append(make([]byte, 0, headSize), magic...)
	b = append(b, byte(h.kind), 0, 0, 0, 0, 0, 0, 0)
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint64(b, h.count)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseHead(b []byte, k kind) (head, error) {
	var h head
	if len(b) < headSize || string(b[:8]) != magic {
		return h, errors.New("it does not begin as such a file")
	}
	h = head{kind(b[8]), [8]byte(b[16:24]), binary.BigEndian.Uint64(b[24:32]), binary.BigEndian.Uint64(b[32:40])}
	if !bytes.Equal(h.bytes(), b[:headSize]) || h.kind != k || h.first == 0 {
		return h, errors.New("its head is not what was written")
	}
	return h, nil
}

// appendFrame appends an entry. batch is the number of the first of those that are written, and synced, together.
func (h *head) appendFrame(b []byte, batch uint64, entry []byte) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(entry)))
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, batch)
	b = append(b, entry...)
	binary.BigEndian.PutUint32(b[at+4:], h.sum(b[at:]))
	return b
}

// sum is of the frame that b begins with, without its own four bytes.
func (h *head) sum(b []byte) uint32 {
	s := crc32.Update(crc32.Checksum(h.id[:], castagnoli), castagnoli, b[:4])
	return crc32.Update(s, castagnoli, b[8:])
}

// frame returns the entry at the beginning of b, which may end before it does.
func (h *head) frame(b []byte) (batch uint64, entry []byte, ok bool) {
	if len(b) < frameSize {
		return 0, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if n == 0 || n > maxEntry || uint64(len(b)) < frameSize+uint64(n) {
		return 0, nil, false
	}
	b = b[:frameSize+n]
	return binary.BigEndian.Uint64(b[8:]), b[frameSize:], binary.BigEndian.Uint32(b[4:]) == h.sum(b)
}

// reader reads a file's entries.
type reader struct {
	head
	r    *bufio.Reader
	next uint64 // the number of the next entry
	at   int64  // where it begins
	last uint64 // the batch of the one before
}

func newReader(f io.ReaderAt, k kind) (*reader, error) {
	r := &reader{r: bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 64<<10)}
	b, err := r.r.Peek(headSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if r.head, err = parseHead(b, k); err != nil {
		return nil, err
	}
	_, err = r.r.Discard(headSize)
	r.next, r.at = r.first, headSize
	return r, err
}

// from has r read on at an entry's beginning.
func (r *reader) from(f io.ReaderAt, next uint64, at int64) {
	r.r.Reset(io.NewSectionReader(f, at, 1<<62))
	r.next, r.at, r.last = next, at, 0
}

// errTorn: here is no entry, or no whole one.
var errTorn = errors.New("it ends in the middle of an entry")

// entry appends the next entry to b. At the end of the file the error is io.EOF, and errTorn where no entry is.
func (r *reader) entry(b []byte) ([]byte, error) {
	b = append(b, make([]byte, frameSize)...)
	at := len(b) - frameSize
	if _, err := io.ReadFull(r.r, b[at:]); errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errTorn
	} else if err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(b[at:])
	if n == 0 || n > maxEntry {
		return nil, errTorn
	}
	b = append(b, make([]byte, n)...)
	if _, err := io.ReadFull(r.r, b[at+frameSize:]); errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return nil, errTorn
	} else if err != nil {
		return nil, err
	}
	batch, entry, ok := r.frame(b[at:])
	if !ok || batch != r.next && batch != r.last && r.last != 0 {
		return nil, errTorn
	}
	r.next, r.at, r.last = r.next+1, r.at+int64(frameSize+n), batch
	return append(b[:at], entry...), nil
}

// torn reports whether what follows the last good entry can be what a crash has left of one batch, because no later batch is
// behind it: a batch is written after the one before is synced.
func (r *reader) torn(f io.ReaderAt) (bool, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, r.at, 1<<62))
	if err != nil {
		return false, err
	}
	for i := 1; i+frameSize < len(b); i++ {
		if binary.BigEndian.Uint64(b[i+8:]) > r.next {
			if _, _, ok := r.frame(b[i:]); ok {
				return false, nil
			}
		}
	}
	return true, nil
}

// journal is a file that entries are appended to, durably: those of all who come while others are being synced with
// one sync. It may be used by any goroutine.
type journal struct {
	head
	dirs  *Dirs
	name  string        // below each of them
	turn  chan struct{} // whoever has its token writes, and may use what follows
	files *files
	size  int64 // of what is durable
	next  uint64
	// open: after size may be anything. unnamed: the file's name may not be durable.
	open, unnamed, closed bool

	mu  sync.Mutex
	now *batch // that is gathered; nil: none
}

type batch struct {
	entries []appended
	done    chan struct{}
	err     error
}

// appended is an entry to be appended. apply is told when it is durable.
type appended struct {
	entry []byte
	apply func(number uint64, at int64)
}

// createJournal makes a file without entries, durably.
func createJournal(dirs *Dirs, name string, h head) (*journal, error) {
	f, size, err := writeEntries(dirs, name, h, func(func(uint64, []byte) error) error { return nil })
	if err != nil {
		if f != nil {
			f.close()
		}
		return nil, err
	}
	return newJournal(dirs, name, f, h, h.first, size), nil
}

func newJournal(dirs *Dirs, name string, f *files, h head, next uint64, size int64) *journal {
	return &journal{head: h, dirs: dirs, name: name, turn: make(chan struct{}, 1), files: f, next: next, size: size}
}

// path is where the file is read.
func (j *journal) path() string { return filepath.Join(j.dirs.first(), j.name) }

// openJournal opens a file whose name is durable, calls each for its entries, and cuts off what a crash has left of the
// last ones. What it is damaged in besides is errdefs.ErrDataLoss. If there is none the error is os.ErrNotExist. In directories that are
// not the first it becomes what it is there.
func openJournal(dirs *Dirs, name string, k kind, each func(number uint64, at int64, entry []byte) error) (j *journal, err error) {
	path, all := filepath.Join(dirs.first(), name), new(files)
	f, err := disk.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, diskfull.Classed(err)
	}
	all.set(dirs.first(), f)
	defer func() {
		if err != nil {
			all.close()
		}
	}()
	r, err := readAll(f, path, k, each)
	if err != nil {
		return nil, err
	}
	err = dirs.others(func(dir string) error {
		c, err := mirror(f, r.at, filepath.Join(dir, name))
		if err == nil {
			all.set(dir, c)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	j = newJournal(dirs, name, all, r.head, r.next, r.at)
	j.open = true // whoever wrote it may not have come to its sync
	if err = j.settle(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, diskfull.Classed(err))
	}
	return j, nil
}

// readAll reads a file up to its end, or to where a crash has torn it.
func readAll(f io.ReaderAt, path string, k kind, each func(number uint64, at int64, entry []byte) error) (*reader, error) {
	damaged := func(err error) error {
		return fmt.Errorf("%s is damaged, restore it or move it away: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	r, err := newReader(f, k)
	if err != nil {
		return nil, damaged(err)
	}
	var b []byte
	for {
		number, at := r.next, r.at
		b, err = r.entry(b[:0])
		switch {
		case err == nil:
			if err = each(number, at, b); err != nil {
				return nil, damaged(fmt.Errorf("entry %d, at byte %d: %w", number, at, err))
			}
			continue
		case errors.Is(err, io.EOF):
			return r, nil
		case !errors.Is(err, errTorn):
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if torn, err := r.torn(f); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		} else if !torn {
			return nil, damaged(fmt.Errorf("entry %d, at byte %d, is not what was written, and later ones are", number, at))
		}
		return r, nil
	}
}

// settle makes the file, and its name, what is known to be durable. Whoever calls it has the turn.
func (j *journal) settle() error {
	if j.closed {
		return os.ErrClosed
	}
	if j.unnamed {
		if err := j.dirs.Do(func(dir string) error { return durable.SyncDir(filepath.Dir(filepath.Join(dir, j.name))) }); err != nil {
			return err
		}
		j.unnamed = false
	}
	if !j.open {
		return nil
	}
	err := j.dirs.Do(func(dir string) error {
		err := disk.Truncate(j.files.of(dir), j.size)
		if err == nil {
			err = disk.Datasync(j.files.of(dir))
		}
		return err
	})
	j.open = err != nil
	return err
}

// append appends entries, one behind the other. When it returns nil they are durable, and apply was called of each, in their order
// and by one goroutine at a time. After an error some of them may be found at the next start, the first ones first.
func (j *journal) append(all ...appended) error {
	if len(all) == 0 {
		return nil
	}
	j.mu.Lock()
	b := j.now
	if b == nil {
		b = &batch{done: make(chan struct{})}
		j.now = b
	}
	first := len(b.entries) == 0
	b.entries = append(b.entries, all...)
	j.mu.Unlock()
	if !first {
		<-b.done
		return b.err
	}
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	j.mu.Lock()
	j.now = nil // whoever comes now is too late for it
	j.mu.Unlock()
	b.err = diskfull.Classed(j.write(b))
	close(b.done)
	return b.err
}

func (j *journal) write(b *batch) error {
	if err := j.settle(); err != nil {
		return fmt.Errorf("%s: %w", j.path(), err)
	}
	size := 0
	for _, e := range b.entries {
		size += frameSize + len(e.entry)
	}
	out, at := make([]byte, 0, size), make([]int64, len(b.entries))
	for i, e := range b.entries {
		at[i] = j.size + int64(len(out))
		out = j.appendFrame(out, j.next, e.entry)
	}
	j.open = true // until it is synced: a sync that has failed may not be believed when it is repeated
	err := j.dirs.Do(func(dir string) error {
		_, err := disk.WriteAt(j.files.of(dir), out, j.size)
		if err == nil {
			err = disk.Datasync(j.files.of(dir))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("appending to %s: %w", j.path(), err)
	}
	j.open = false
	j.size += int64(len(out))
	for i, e := range b.entries {
		e.apply(j.next, at[i])
		j.next++
	}
	return nil
}

// replace swaps the file for another one, of the same name or not. Whoever calls it has the turn.
func (j *journal) replace(o *journal) {
	j.files.close()
	j.head, j.name, j.files, j.size, j.next, j.open, j.unnamed = o.head, o.name, o.files, o.size, o.next, o.open, o.unnamed
}

// close waits for what is being written. What comes later fails.
func (j *journal) close() error {
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	j.closed = true
	return j.files.close()
}

// writeEntries makes a file of entries, atomically and durably; all calls add for each of them. If f is not nil, that is what has the name
// now, also if there is an error: the name may not be durable then.
func writeEntries(
	dirs *Dirs, name string, h head, all func(add func(batch uint64, entry []byte) error) error,
) (f *files, size int64, err error) {
	tmp := new(files)
	defer func() {
		for dir, t := range tmp.m { // nobody else has it any more
			if f == nil || f.of(dir) == nil {
				t.Close()
				_ = disk.Remove(t.Name())
			}
		}
		if err != nil {
			err = fmt.Errorf("writing %s: %w", filepath.Join(dirs.first(), name), diskfull.Classed(err))
		}
	}()
	err = dirs.Do(func(dir string) error {
		t, err := disk.CreateTemp(filepath.Dir(filepath.Join(dir, name)), durable.TempPrefix+"*")
		if err == nil {
			tmp.set(dir, t)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if size, err = fill(dirs, tmp, h, all); err != nil {
		return nil, 0, err
	}
	renamed := new(files)
	err = dirs.settled(func(dir string) error {
		t := tmp.of(dir)
		err := durable.Rename(t.Name(), filepath.Join(dir, name))
		if unsynced := new(durable.SyncError); err == nil || errors.As(err, &unsynced) {
			renamed.set(dir, t)
		}
		return err
	})
	if renamed.len() > 0 {
		f = renamed
	}
	return f, size, err
}

// fill writes a file of entries, and syncs it.
func fill(
	dirs *Dirs, f *files, h head, all func(add func(batch uint64, entry []byte) error) error,
) (size int64, err error) {
	const chunk = 1 << 20
	out, n := make([]byte, headSize, chunk+chunk/4), uint64(0)
	write := func(b []byte, at int64) error {
		return dirs.Do(func(dir string) error {
			_, err := disk.WriteAt(f.of(dir), b, at)
			return err
		})
	}
	flush := func() error {
		err := write(out, size)
		size += int64(len(out))
		out = out[:0]
		return err
	}
	err = all(func(batch uint64, entry []byte) error {
		n++
		if out = h.appendFrame(out, batch, entry); len(out) < chunk {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if h.kind == kindSnapshot {
		h.count = n
	}
	if err == nil {
		err = write(h.bytes(), 0)
	}
	if err == nil {
		err = dirs.Do(func(dir string) error { return disk.Sync(f.of(dir)) })
	}
	return size, err
}
