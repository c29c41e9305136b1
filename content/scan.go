package content

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Scan reads pieces of a whole blob anew and verifies them, past the page cache: it finds out what is on the disk,
// and takes the room of nothing that others read. Where a file system does not know how (tmpfs), it reads as
// everybody does. It belongs to one goroutine at a time.
type Scan struct {
	b      *Blob
	sums   *piece.Sums
	f      *os.File
	buf    []byte
	direct bool
}

// directAlign is what direct reads are aligned to, in memory and in the file.
const directAlign = 4096

// Scan returns a Scan of a blob that is complete, with proven sums; otherwise the error is [ErrIncomplete]. It is to be
// closed before b is.
func (b *Blob) Scan() (*Scan, error) {
	st := b.st
	st.mu.Lock()
	ok := st.complete && st.proven
	sums := st.sums.Clone()
	st.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("scanning %s without proven sums: %w", st.dgst, ErrIncomplete)
	}
	f, err := b.Reopen()
	if err != nil {
		return nil, fmt.Errorf("scanning: %w", err)
	}
	sc := &Scan{b: b, sums: sums, f: f}
	size := (st.id.PieceSize(0) + directAlign - 1) / directAlign * directAlign
	sc.buf, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("scanning %s: %w", st.dgst, os.NewSyscallError("mmap", err))
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	sc.direct = err == nil
	return sc, nil
}

// Check verifies piece i. If it is wrong, or cannot be read, that is as with [Blob.Recheck]. A piece that does not
// count is left alone. n is how many bytes were read.
func (sc *Scan) Check(i int) (n int, err error) {
	st := sc.b.st
	st.mu.Lock()
	err = sc.b.usable()
	has := st.have.Has(i)
	st.mu.Unlock()
	if err != nil || !has {
		return 0, err
	}
	look := func() error {
		p, err := sc.read(i)
		if err != nil {
			return err
		}
		return sc.sums.Verify(i, p)
	}
	if err = look(); err == nil {
		return st.id.PieceSize(i), nil
	}
	err = fmt.Errorf("scanning piece %d of %s: %w", i, st.dgst, err)
	st.op <- struct{}{}
	defer func() { <-st.op }()
	if st.mends() {
		return st.id.PieceSize(i), st.spoil(i, err, look)
	}
	if look() == nil {
		return st.id.PieceSize(i), nil
	}
	return st.id.PieceSize(i), errors.Join(err, st.quarantine())
}

// read reads a piece. What it returns is valid until the next call.
func (sc *Scan) read(i int) ([]byte, error) {
	id := sc.b.st.id
	want := id.PieceSize(i)
	size := want
	if sc.direct { // reads end where the file does
		size = (want + directAlign - 1) / directAlign * directAlign
	}
	for n := 0; n < want; {
		m, err := unix.Pread(int(sc.f.Fd()), sc.buf[n:size], id.Offset(i)+int64(n))
		switch {
		case err == unix.EINTR:
		case err == unix.EINVAL && sc.direct: // it took the flag, and does not read so
			flags, ferr := unix.FcntlInt(sc.f.Fd(), unix.F_GETFL, 0)
			if ferr == nil {
				_, ferr = unix.FcntlInt(sc.f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
			}
			if ferr != nil {
				return nil, os.NewSyscallError("fcntl", ferr)
			}
			sc.direct, n, size = false, 0, want
		case err != nil:
			return nil, os.NewSyscallError("pread", err)
		case m == 0:
			return nil, fmt.Errorf("the file ends at %d: %w", id.Offset(i)+int64(n), piece.ErrMismatch)
		default:
			n += m
		}
	}
	return sc.buf[:want], nil
}

// Close ends the Scan.
func (sc *Scan) Close() error {
	return errors.Join(unix.Munmap(sc.buf), sc.f.Close())
}
