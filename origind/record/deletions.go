package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
)

// Deletion is an entry of a deletion log: a blob was removed from a namespace, from all if that is empty.
type Deletion struct {
	Digest    digest.Digest
	Namespace string
	Stamp     Stamp
}

// Check reports what is wrong with an entry, as errdefs.ErrInvalidArgument.
func (d Deletion) Check() error {
	err := origin.CheckDigest(d.Digest)
	if err == nil {
		err = origin.CheckNamespace(d.Namespace)
	}
	if err == nil && (d.Stamp == 0 || d.Stamp > MaxStamp || !utf8.ValidString(d.Namespace)) {
		err = fmt.Errorf("stamp %d of %s in namespace %q: %w", d.Stamp, d.Digest, d.Namespace, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("entry of a deletion log: %w", err)
	}
	return nil
}

func (d Deletion) pack() []byte {
	b := binary.BigEndian.AppendUint64(appendDigest(nil, d.Digest), uint64(d.Stamp))
	return append(b, d.Namespace...)
}

func unpackDeletion(b []byte) (Deletion, error) {
	p := unpacker{left: b}
	d := Deletion{Digest: p.digest(), Stamp: p.stamp()}
	d.Namespace = string(p.left)
	if p.err != nil {
		return d, p.err
	}
	return d, d.Check()
}

// Deletions is a member's deletion log: what was deleted here and what it was told by others, by numbers that begin with 1 and
// never mean another entry. It may be used by any goroutine. What is in memory is a hint where to read for each 4 KiB.
type Deletions struct {
	j *journal

	closed atomic.Bool

	mu    sync.RWMutex
	f     *files // that hints are about
	first uint64 // the number of the first entry that is not retired
	head  uint64 // the number of the last one that is durable
	hints []hint
}

// hint is where an entry begins.
type hint struct {
	number uint64
	at     int64
}

const hintEvery = 4 << 10 // bytes

// OpenDeletions opens the log of that name in directories that are durable, or makes an empty one. A damaged log is errdefs.ErrDataLoss:
// if it is moved away, the member reads the others' logs from their beginning, as one that lost its disk does.
func OpenDeletions(dirs *Dirs, name string) (*Deletions, error) {
	d := new(Deletions)
	err := durable.SyncDir(dirs.first()) // whoever made it may not have come to that
	if err != nil {
		return nil, fmt.Errorf("deletion log: %w", diskfull.Classed(err))
	}
	d.j, err = openJournal(dirs, name, kindDeletions, func(number uint64, at int64, entry []byte) error {
		d.note(number, at)
		_, err := unpackDeletion(entry)
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		d.j, err = createJournal(dirs, name, newHead(kindDeletions, 1))
	}
	if err != nil {
		return nil, fmt.Errorf("deletion log: %w", err)
	}
	d.f, d.first, d.head = d.j.files, d.j.first, d.j.next-1
	return d, nil
}

// note remembers where an entry begins. d.mu is held, or nobody else knows d.
func (d *Deletions) note(number uint64, at int64) {
	if n := len(d.hints); n == 0 || at-d.hints[n-1].at >= hintEvery {
		d.hints = append(d.hints, hint{number, at})
	}
}

// ID is the log's: a log that was begun anew, on another disk, has another one.
func (d *Deletions) ID() uint64 { return binary.BigEndian.Uint64(d.j.id[:]) }

// Bounds returns the numbers of the first entry that is there and of the last one; first is last + 1 if there is none.
func (d *Deletions) Bounds() (first, last uint64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.first, d.head
}

// Append appends entries, durably and with one sync, and returns the number of the last of them; the others have those before it. After
// an error none is there; at the next start some may be, the first ones first. An entry that was told by another member is appended only
// if it was not known here: otherwise two members would tell each other for ever.
func (d *Deletions) Append(entries ...Deletion) (last uint64, err error) {
	all := make([]appended, len(entries))
	for i, e := range entries {
		if err := e.Check(); err != nil {
			return 0, err
		}
		all[i] = appended{e.pack(), func(n uint64, at int64) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.note(n, at)
			d.head, last = n, n
		}}
	}
	if err := d.j.append(all...); err != nil {
		return 0, fmt.Errorf("noting that %s was deleted: %w", entries[0].Digest, err)
	}
	return last, nil
}

// Read returns at most most of the durable entries after a number, in order, and the number of the last of them. Entries that
// are retired are left out: whoever asks for them has read them, or was no member. Without an entry, last is after.
func (d *Deletions) Read(after uint64, most int) (page []Deletion, last uint64, err error) {
	for {
		err = d.read(after, func(number uint64, _ int64, e Deletion) bool {
			if len(page) < most {
				page, last = append(page, e), number
			}
			return len(page) < most
		})
		switch {
		case errors.Is(err, os.ErrClosed) && !d.closed.Load(): // it was replaced meanwhile
			page = nil
		case err != nil:
			return nil, 0, fmt.Errorf("reading the deletion log: %w", err)
		case len(page) == 0:
			return nil, after, nil
		default:
			return page, last, nil
		}
	}
}

// read calls each for the durable entries after a number, with where they begin, until it returns false.
func (d *Deletions) read(after uint64, each func(number uint64, at int64, e Deletion) bool) error {
	d.mu.RLock()
	from, head, f := max(after+1, d.first), d.head, d.f.of(d.j.dirs.first())
	i := sort.Search(len(d.hints), func(i int) bool { return d.hints[i].number > from }) - 1
	var at hint
	if i >= 0 {
		at = d.hints[i]
	}
	d.mu.RUnlock()
	if after >= head {
		return nil
	}
	r, err := newReader(f, kindDeletions)
	if err != nil {
		return err
	}
	r.from(f, at.number, at.at)
	var b []byte
	for r.next <= head {
		number, at := r.next, r.at
		if b, err = r.entry(b[:0]); err != nil {
			return fmt.Errorf("entry %d, at byte %d of %s: %w: %w", number, at, f.Name(), err, errdefs.ErrDataLoss)
		}
		if number < from {
			continue
		}
		e, err := unpackDeletion(b)
		if err != nil {
			return err
		}
		if !each(number, at, e) {
			break
		}
	}
	return nil
}

// Retire forgets the entries before a number; all, at most. Those that are forgotten may be there again at the next start.
func (d *Deletions) Retire(before uint64) error {
	d.j.turn <- struct{}{}
	defer func() { <-d.j.turn }()
	first, last := d.Bounds()
	if before <= first {
		return nil
	}
	first = min(before, last+1)
	keep := d.j.size // where the first entry that is left begins
	err := d.read(first-1, func(_ uint64, at int64, _ Deletion) bool {
		keep = at
		return false
	})
	if err == nil {
		d.mu.Lock()
		d.first = first
		d.mu.Unlock()
		if keep-headSize < max(hintEvery, d.j.size/2) {
			return nil // later, with more
		}
		err = d.rewrite(first, keep)
	}
	if err != nil {
		return fmt.Errorf("retiring entries of the deletion log: %w", err)
	}
	return nil
}

// rewrite makes the log a file that begins with the entry first, which is at a place in the one that is there. It has the turn.
func (d *Deletions) rewrite(first uint64, at int64) error {
	if err := d.j.settle(); err != nil {
		return err
	}
	h := d.j.head
	h.first = first
	f, size, err := writeEntries(d.j.dirs, d.j.name, h, func(add func(batch uint64, entry []byte) error) error {
		was := d.f.of(d.j.dirs.first())
		r, err := newReader(was, kindDeletions)
		if err != nil {
			return err
		}
		r.from(was, first, at)
		var b []byte
		for r.next < d.j.next {
			if b, err = r.entry(b[:0]); err != nil {
				return err
			}
			if err := add(r.last, b); err != nil {
				return err
			}
		}
		return nil
	})
	if f == nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.j.replace(newJournal(d.j.dirs, d.j.name, f, h, d.j.next, size))
	d.j.unnamed = err != nil
	d.f = f
	hints := d.hints
	d.hints = []hint{{first, headSize}}
	for _, was := range hints {
		if was.number > first {
			d.note(was.number, was.at-at+headSize)
		}
	}
	return err
}

// Close waits for what is being appended.
func (d *Deletions) Close() error {
	d.closed.Store(true)
	return d.j.close()
}
