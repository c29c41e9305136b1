package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/fetcher"
)

const (
	maxPage = 1000
	// readNames is how many names are read from a directory at a time.
	readNames = 1024
)

// List implements fetcher.Backend. Of each directory on the way it keeps as many
// names as the page has room for, but of those that are large (see large.go). Objects that are written or deleted
// meanwhile are listed or not; what is there all the time is.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	if limit < 1 || limit > maxPage {
		limit = maxPage
	}
	l := &lister{ctx: ctx, b: b, after: after, limit: limit}
	err := ctx.Err()
	dir, isDir := strings.CutSuffix(prefix, "/")
	switch {
	case err != nil:
	case prefix == "":
		err = l.dir("")
	case !isDir:
		err = fmt.Errorf("the prefix does not end in \"/\": %w", errdefs.ErrInvalidArgument)
	default:
		if err = checkKey(dir); err == nil && wants(prefix, after) {
			err = l.dir(prefix)
		}
	}
	if err != nil && err != errFull {
		return nil, false, b.fail("listing", prefix, err)
	}
	return l.page, err == errFull, nil
}

// errFull ends a walk: there is more than the page holds.
var errFull = errors.New("page is full")

type lister struct {
	ctx   context.Context
	b     *Backend
	after string
	limit int
	page  []fetcher.Info
}

// wants reports whether a key, or a key below a directory's, may come after "after".
// A directory's ends in "/".
func wants(key, after string) bool {
	return key > after || strings.HasSuffix(key, "/") && strings.HasPrefix(after, key)
}

// dir walks through a directory, whose path ends in "/" unless it is the root.
// Names are sorted as the keys that they make: a directory's with its "/", so that
// "a-b" comes between "a" and "a/b".
func (l *lister) dir(prefix string) error {
	last := ""
	for {
		// One more than fits, to know whether there is more. If all of them turn out
		// to be empty directories there is another round.
		batch, cut, err := l.smallest(prefix, last, l.limit-len(l.page)+1)
		if err != nil {
			return err
		}
		for _, name := range batch {
			if strings.HasSuffix(name, "/") {
				err = l.dir(prefix + name)
			} else {
				err = l.file(prefix + name)
			}
			if err != nil {
				return err
			}
		}
		if !cut {
			return nil
		}
		last = batch[len(batch)-1]
	}
}

func (l *lister) file(key string) error {
	fi, err := l.b.root.Lstat(key)
	if errors.Is(err, os.ErrNotExist) {
		return nil // deleted just now
	}
	if err != nil {
		return err
	}
	info, err := infoOf(key, fi)
	if err != nil {
		return nil //nolint:nilerr // replaced by something else
	}
	if len(l.page) == l.limit {
		return errFull
	}
	l.page = append(l.page, info)
	return nil
}

// smallest returns, in order, the n smallest names of a directory that come after
// last and may hold what comes after l.after. cut: there are others.
func (l *lister) smallest(prefix, last string, n int) (_ []string, cut bool, err error) {
	name := cmp.Or(strings.TrimSuffix(prefix, "/"), ".")
	if fi, err := l.b.root.Lstat(name); err == nil && !fi.IsDir() {
		return nil, false, nil // an object's name, with a "/"
	}
	d, err := l.b.openDir(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer d.Close()
	isKey := func(name string) bool { return checkKey(prefix+name) == nil }
	return l.b.large.smallest(l.ctx, d, name, l.from(prefix, last), n, isKey)
}

// from returns the first that a name of a directory can be which comes after last and may hold what comes after l.after.
func (l *lister) from(prefix, last string) string {
	from := ""
	if last != "" {
		from = last + "\x00" // which is in no name
	}
	after, below := strings.CutPrefix(l.after, prefix)
	if !below || after == "" {
		return from // all is after it; otherwise the walk does not come here
	}
	if i := strings.IndexByte(after, '/'); i >= 0 {
		return max(from, after[:i+1]) // a directory, of which some is after it
	}
	return max(from, after+"\x00")
}

// openDir opens a directory to be read. A File of os.Root would stat every entry for
// its type, which the file system tells anyway.
func (b *Backend) openDir(name string) (*os.File, error) {
	d, err := b.root.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.FcntlInt(d.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(b.path, name)), nil
}
