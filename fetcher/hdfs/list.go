package hdfs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

const (
	maxPage = 1000
	// maxEntry is how long an answer may be between two entries of a directory, in bytes.
	maxEntry = 64 << 10
)

// List implements fetcher.Backend. Of each directory on the way it keeps as many names as the
// page has room for. A namenode sends a thousand at a time, from a name on; HttpFS sends all that are there, and they are
// skipped.
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
		if _, err = pathOf(dir); err == nil && (prefix > after || strings.HasPrefix(after, prefix)) {
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

// dir walks through a directory, whose path ends in "/" unless it is the root.
//
// A namenode sorts a directory by its name, but its keys begin with that and a "/", so
// that "a-b" comes between the names "a" and "a0", and before the keys "a/…". So directories are held until all names have passed
// that come before their keys. Each of them is the beginning of the name that it is held for: there are never many.
func (l *lister) dir(prefix string) error {
	rest, below := strings.CutPrefix(l.after, prefix)
	if !below {
		rest = "" // all is after it; otherwise the walk does not come here
	}
	last, _, _ := strings.Cut(rest, "/")
	h := holder{}
	for i := range len(last) { // what would be held now, if it is there
		if i > 0 && last[i] < '/' {
			h.hold(last[:i])
		}
	}
	if last != "" {
		h.hold(last)
	}
	for {
		batch, more, err := l.b.entries(l.ctx, prefix, last, l.limit-len(l.page)+1)
		if err != nil {
			return err
		}
		for _, e := range batch {
			key := e.name
			if !e.status.isFile() {
				key += "/"
			}
			if err := l.pass(&h, prefix, key); err != nil {
				return err
			}
			if !e.status.isFile() {
				h.hold(e.name)
			} else if err := l.file(prefix+e.name, e.status); err != nil {
				return err
			}
		}
		if !more {
			return l.pass(&h, prefix, "")
		}
		last = batch[len(batch)-1].name
	}
}

// pass walks through the directories that are held and come before a key; "": all.
func (l *lister) pass(h *holder, prefix, key string) error {
	for len(h.dirs) > 0 && (key == "" || h.dirs[0] < key) {
		dir := h.dirs[0]
		h.dirs = slices.Delete(h.dirs, 0, 1)
		if err := l.dir(prefix + dir); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) file(key string, st fileStatus) error {
	if key <= l.after || fetcher.CheckKey(key) != nil {
		return nil //nolint:nilerr // what no key names is no object
	}
	if len(l.page) == l.limit {
		return errFull
	}
	l.page = append(l.page, infoOf(key, st))
	return nil
}

// holder has directories in order, each with a "/".
type holder struct{ dirs []string }

func (h *holder) hold(name string) {
	name += "/"
	if i, found := slices.BinarySearch(h.dirs, name); !found {
		h.dirs = slices.Insert(h.dirs, i, name)
	}
}

// entry is what a directory has under an element of a key.
type entry struct {
	name   string
	status fileStatus
}

// entries is tryEntries, again if the answer breaks off.
func (b *Backend) entries(ctx context.Context, prefix, after string, n int) (page []entry, more bool, err error) {
	for range maxResumes {
		if page, more, err = b.tryEntries(ctx, prefix, after, n); !errors.Is(err, errBroken) {
			break
		}
	}
	return page, more, err
}

// errBroken says that a listing broke off.
var errBroken = errors.New("broken off")

// tryEntries returns the first n entries of a directory after a name. more: there are others. There are none in what is not there.
func (b *Backend) tryEntries(ctx context.Context, prefix, after string, n int) (page []entry, more bool, err error) {
	dir := b.cfg.Path
	if prefix != "" {
		p, err := pathOf(strings.TrimSuffix(prefix, "/"))
		if err != nil {
			return nil, false, nil //nolint:nilerr // "after" is any string: no key is below this one
		}
		dir += "/" + p
	}
	prev := after
	var disorder error
	// Nothing in a name sorts before what no key has: it can be cut off.
	from := after
	if i := strings.IndexFunc(from, func(r rune) bool { return r <= ' ' }); i >= 0 {
		from = from[:i]
	}
	err = b.readDir(ctx, dir, encode(from), func(_ time.Time, st fileStatus) bool {
		name, ok := decode(st.PathSuffix)
		if !ok || name == "" || name <= after || !st.isFile() && st.Type != "DIRECTORY" {
			return true
		}
		if name <= prev {
			disorder = fmt.Errorf("%s comes after %s, which no server of HDFS says: %w", st.PathSuffix, encode(prev), errdefs.ErrUnavailable)
			return false
		}
		if prev = name; len(page) == n {
			more = true
			return false
		}
		page = append(page, entry{name, st})
		return true
	})
	return page, more, cmp.Or(err, disorder)
}

// readDir calls f with a directory's entries, and the server's time, until f returns false. They come after a name, or all.
func (b *Backend) readDir(ctx context.Context, dir, after string, f func(now time.Time, st fileStatus) bool) error {
	for {
		r := request{method: http.MethodGet, op: "LISTSTATUS_BATCH", path: dir}
		if after != "" {
			r.query = url.Values{"startAfter": {after}}
		}
		resp, err := b.send(ctx, r)
		if errdefs.IsNotFound(err) || inTheWay(err) {
			return nil
		}
		if err != nil {
			return err
		}
		now, err := http.ParseTime(resp.Header.Get("Date"))
		if err != nil {
			now = time.Now()
		}
		last, on := "", true
		remaining, err := decodeListing(resp.Body, func(st fileStatus) bool {
			last = st.PathSuffix
			on = f(now, st)
			return on
		})
		resp.Body.Close()
		switch {
		case !on:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("a directory's entries: %w", err)
		case remaining <= 0 || last == "":
			return nil
		case last == after:
			return fmt.Errorf("the same entries of a directory come again and again: %w", errdefs.ErrUnavailable)
		}
		after = last
	}
}

// decodeListing reads an answer to LISTSTATUS_BATCH, whose entries may be many, one at a time.
func decodeListing(r io.Reader, f func(fileStatus) bool) (remaining int64, err error) {
	bounded := &meter{r: r, left: maxEntry}
	dec := json.NewDecoder(bounded)
	var name any
	for {
		t, err := dec.Token()
		switch {
		case err == io.EOF:
			return remaining, nil
		case err != nil:
			return 0, senseless(err)
		}
		switch {
		case t == json.Delim('['):
			for dec.More() {
				bounded.left = maxEntry
				var st fileStatus
				if err := dec.Decode(&st); err != nil {
					return 0, senseless(err)
				}
				if !f(st) {
					return 0, nil
				}
			}
			bounded.left = maxEntry
		case name == "remainingEntries":
			if n, ok := t.(float64); ok {
				remaining = int64(n)
			}
		}
		name = t
	}
}

func senseless(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if errors.As(err, &syntax) || errors.As(err, &kind) {
		return fmt.Errorf("the answer makes no sense: %w: %w", err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", errBroken, &networkError{unexpected(err)})
}

// meter ends an answer that brings too much without an end.
type meter struct {
	r    io.Reader
	left int
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, fmt.Errorf("there are more than %d bytes between two entries: %w", maxEntry, errdefs.ErrUnavailable)
	}
	n, err := m.r.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}
