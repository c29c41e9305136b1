package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Disk is a directory that is watched.
type Disk struct {
	t   testing.TB
	dir string

	mu    sync.Mutex
	root  *node
	known map[uint64]*node // by inode: those whose file we hold open, so that none is given out again
	cuts  []cut            // before each operation; with failAt, at the end only
	ops   int

	failAt int // the operation that fails; -1: none
	fail   error
	failed *disk.Op
	off    bool // stopped
	said   map[string]string
}

// node is an inode.
type node struct {
	n    int
	dir  bool
	hold *os.File
	mode fs.FileMode

	// A file's.
	synced, now []byte
	syncedTime  time.Time // zero: never
	time        time.Time
	lost        map[int]bool // pages, by offset, that a failed sync has made clean

	// A directory's.
	durable, names map[string]*node
	pending        []*change // since the last sync
}

// change is one change of a directory's names.
type change struct {
	edits []edit
	needs *change // the other half of a rename: the new name
	done  bool    // synced
	of    *node
}

type edit struct {
	name string
	to   *node // nil: removed
}

// cut is what there was before an operation.
type cut struct {
	op    string
	said  map[string]string
	files map[*node]fileState
	dirs  map[*node]dirState
}

type fileState struct {
	synced, now      []byte
	syncedTime, time time.Time
}

type dirState struct {
	durable map[string]*node
	pending []*change
}

// Watch records what happens below dir until the test ends or Stop is called. What
// is there is taken to be durable. Syncs are recorded only, not done.
func Watch(t testing.TB, dir string) *Disk {
	t.Helper()
	d := &Disk{t: t, dir: dir, known: map[uint64]*node{}, failAt: -1, said: map[string]string{}}
	fi, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	d.root = d.meet(dir, fi)
	d.look()
	for _, n := range d.known {
		n.sync(true)
	}
	stop := disk.Intercept(dir, d)
	t.Cleanup(func() {
		stop()
		d.Stop()
		for _, n := range d.known {
			n.hold.Close()
		}
	})
	return d
}

// Stop ends the recording.
func (d *Disk) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.off {
		d.snap("the end")
		d.off = true
	}
}

// Say notes that from now on something is promised, under a name of the test's own.
// An empty promise takes the last one back.
func (d *Disk) Say(what, promise string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = maps.Clone(d.said)
	d.said[what] = promise
}

// Synced notes that somebody else has synced files or directories.
func (d *Disk) Synced(files ...*os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.look()
	for _, f := range files {
		d.of(f).sync(true)
	}
}

// FailAt has the n-th operation, from 0, fail with err. A write writes half of its
// bytes before that. The only moment that is recorded then is the end.
func (d *Disk) FailAt(n int, err error) { d.failAt, d.fail = n, err }

// Failed returns the operation that has failed.
func (d *Disk) Failed() (disk.Op, bool) {
	if d.failed == nil {
		return disk.Op{}, false
	}
	return *d.failed, true
}

// Do implements disk.Hook.
func (d *Disk) Do(op disk.Op, do func(int) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return do(op.Bytes)
	}
	d.ops++
	if d.failAt < 0 {
		d.snap(d.describe(op))
	}
	if d.ops-1 == d.failAt {
		d.failed = &op
		switch op.Kind {
		case disk.OpWrite:
			_ = do(op.Bytes / 2)
		case disk.OpSync, disk.OpDatasync:
			d.look()
			if n := d.of(op.File); n != nil && !n.dir {
				n.lose()
			}
		}
		return &os.PathError{Op: string(op.Kind), Path: op.Path, Err: d.fail}
	}
	switch op.Kind {
	case disk.OpWrite:
		if n := d.of(op.File); n != nil {
			for off := int(op.Off) / page * page; off < int(op.Off)+op.Bytes; off += page {
				delete(n.lost, off)
			}
		}
	case disk.OpSync, disk.OpDatasync:
		if d.failAt >= 0 {
			d.lookAt(op.File)
		}
		n := d.of(op.File)
		if n == nil {
			d.t.Errorf("%s of %s, which was never below %s", op.Kind, op.Path, d.dir)
			return nil
		}
		n.sync(op.Kind == disk.OpSync)
		return nil
	case disk.OpSyncFS:
		d.look()
		for _, n := range d.known {
			n.sync(true)
		}
		return nil
	}
	return do(op.Bytes)
}

func (d *Disk) describe(op disk.Op) string {
	rel := func(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, d.dir), "/") }
	s := fmt.Sprintf("%s %s", op.Kind, rel(op.Path))
	if op.To != "" {
		s += " to " + rel(op.To)
	}
	return s
}

// of returns the node of an open file.
func (d *Disk) of(f *os.File) *node {
	fi, err := f.Stat()
	if err != nil {
		return nil
	}
	return d.known[inode(fi)]
}

func inode(fi fs.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Ino }

// meet returns the node of what is at path, a new one if it is new.
func (d *Disk) meet(path string, fi fs.FileInfo) *node {
	n := d.known[inode(fi)]
	if n == nil {
		f, err := os.Open(path)
		if err != nil {
			d.t.Errorf("watching %s: %v", path, err)
			return nil
		}
		n = &node{n: len(d.known), dir: fi.IsDir(), hold: f}
		if n.dir {
			n.durable, n.names = map[string]*node{}, map[string]*node{}
		}
		d.known[inode(fi)] = n
	}
	n.mode, n.time = fi.Mode().Perm(), fi.ModTime()
	return n
}

// snap looks at the directory and notes what may be left of it.
func (d *Disk) snap(op string) {
	d.look()
	c := cut{op: op, said: d.said, files: map[*node]fileState{}, dirs: map[*node]dirState{}}
	for _, n := range d.known {
		if n.dir {
			c.dirs[n] = dirState{n.durable, slices.Clone(n.pending)}
		} else {
			c.files[n] = fileState{n.synced, n.now, n.syncedTime, n.time}
		}
	}
	d.cuts = append(d.cuts, c)
}

// look finds what has changed since the last look.
func (d *Disk) look() {
	m := moves{gone: map[*node][]place{}, come: map[*node][]place{}}
	var walk func(path string, dir *node)
	walk = func(path string, dir *node) {
		for name, n := range d.names(path, dir, &m) {
			p := filepath.Join(path, name)
			if n.dir {
				walk(p, n)
			} else if b, err := os.ReadFile(p); err != nil {
				d.t.Errorf("watching: %v", err)
			} else {
				n.read(b)
			}
		}
	}
	walk(d.dir, d.root)
	m.note()
}

// lookAt finds what has changed of a file, or of a directory's names. If one is gone, it may
// be anywhere.
func (d *Disk) lookAt(f *os.File) {
	fi, err := f.Stat()
	if err != nil {
		d.t.Errorf("watching: %v", err)
		return
	}
	n := d.meet(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fi)
	if n == nil {
		return
	}
	if !n.dir {
		b := make([]byte, fi.Size())
		if _, err := n.hold.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			d.t.Errorf("watching: %v", err)
		}
		n.read(b)
		return
	}
	was := n.names
	m := moves{gone: map[*node][]place{}, come: map[*node][]place{}}
	now := d.names(f.Name(), n, &m)
	for name := range was {
		if now[name] == nil {
			n.names = was
			d.look()
			return
		}
	}
	m.note()
}

// names reads the names of a directory, and notes in m which are others than before.
func (d *Disk) names(path string, dir *node, m *moves) map[string]*node {
	entries, err := os.ReadDir(path)
	if err != nil {
		d.t.Errorf("watching: %v", err)
	}
	names := map[string]*node{}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() && !fi.IsDir() {
			continue
		}
		if n := d.meet(filepath.Join(path, e.Name()), fi); n != nil {
			names[e.Name()] = n
		}
	}
	for name, n := range dir.names {
		if names[name] != n {
			m.gone[n] = append(m.gone[n], place{dir, name})
		}
	}
	for name, n := range names {
		if dir.names[name] != n {
			m.come[n] = append(m.come[n], place{dir, name})
		}
	}
	dir.names = names
	return names
}

// moves are the names that nodes have lost and got.
type moves struct{ gone, come map[*node][]place }

type place struct {
	dir  *node
	name string
}

// note adds what has moved to the changes that the directories' next syncs make durable.
func (m *moves) note() {
	for _, n := range slices.SortedFunc(maps.Keys(m.come), func(a, b *node) int { return a.n - b.n }) {
		for _, at := range m.come[n] {
			c := &change{of: at.dir, edits: []edit{{at.name, n}}}
			at.dir.pending = append(at.dir.pending, c)
			if len(m.gone[n]) == 0 {
				continue
			}
			from := m.gone[n][0]
			m.gone[n] = m.gone[n][1:]
			if from.dir.names[from.name] != nil {
				continue // its old name is another's by now
			}
			if from.dir == at.dir {
				c.edits = append(c.edits, edit{from.name, nil})
			} else {
				from.dir.pending = append(from.dir.pending, &change{of: from.dir, edits: []edit{{from.name, nil}}, needs: c})
			}
		}
	}
	for _, n := range slices.SortedFunc(maps.Keys(m.gone), func(a, b *node) int { return a.n - b.n }) {
		for _, from := range m.gone[n] {
			if from.dir.names[from.name] == nil {
				from.dir.pending = append(from.dir.pending, &change{of: from.dir, edits: []edit{{from.name, nil}}})
			}
		}
	}
}

// read notes what is in a file.
func (n *node) read(b []byte) {
	if n.now == nil || !bytes.Equal(b, n.now) {
		n.now = b
	}
}

const page = 4096

// sync makes a node durable as it is now; times too, if that is wanted.
func (n *node) sync(times bool) {
	if n.dir {
		for _, c := range n.pending {
			if c.needs != nil {
				c.needs.apply()
			}
			c.done = true
		}
		n.durable, n.pending = maps.Clone(n.names), nil
		return
	}
	was := n.synced
	n.synced = n.now
	if len(n.lost) > 0 {
		n.synced = mix(len(n.now), func(at int) []byte {
			if n.lost[at] {
				return pageOf(was, at)
			}
			return pageOf(n.now, at)
		})
	}
	if times {
		n.syncedTime = n.time
	}
}

// lose is a sync that fails: what was to be written counts as clean.
func (n *node) lose() {
	n.lost = map[int]bool{}
	for at := 0; at < len(n.now); at += page {
		if !bytes.Equal(pageOf(n.now, at), pageOf(n.synced, at)) {
			n.lost[at] = true
		}
	}
}

// apply makes one change of a directory durable.
func (c *change) apply() {
	if c.done {
		return
	}
	c.done = true
	n := c.of
	n.durable = maps.Clone(n.durable)
	for _, e := range c.edits {
		e.do(n.durable)
	}
	n.pending = slices.DeleteFunc(slices.Clone(n.pending), func(p *change) bool { return p == c })
}

func (e edit) do(names map[string]*node) {
	if e.to == nil {
		delete(names, e.name)
	} else {
		names[e.name] = e.to
	}
}

func pageOf(b []byte, at int) []byte { return b[min(at, len(b)):min(at+page, len(b))] }

// mix makes a file of that size of pages.
func mix(size int, at func(off int) []byte) []byte {
	b := make([]byte, size)
	for off := 0; off < size; off += page {
		copy(b[off:], at(off))
	}
	return b
}

// Survival says what survives a power cut beyond what must.
type Survival struct {
	name string
	// change and data report whether a change, and a page, that was not synced does.
	change, data func(r *rand.Rand) bool
	seed         uint64
}

func always(*rand.Rand) bool  { return true }
func never(*rand.Rand) bool   { return false }
func maybe(r *rand.Rand) bool { return r.IntN(2) == 0 }

// The ways in which a disk may lose what was not synced.
var (
	Nothing    = Survival{"nothing", never, never, 0}
	Names      = Survival{"names", always, never, 0}
	Everything = Survival{"everything", always, always, 0} // as if the process had been killed
)

// Anything keeps some of it, by seed.
func Anything(seed uint64) Survival {
	return Survival{fmt.Sprintf("some, seed %d", seed), maybe, maybe, seed}
}

// item is a name in a directory that a power cut leaves.
type item struct {
	name string // below the directory
	dir  bool
	link string // another name of the same file
	data []byte
	mode fs.FileMode
	time time.Time
}

// plan says what a cut leaves.
func (c *cut) plan(root *node, s Survival, r *rand.Rand) (items []item) {
	applied := map[*change]bool{}
	chosen := func(ch *change) bool {
		yes, ok := applied[ch]
		if !ok {
			yes = s.change(r)
			applied[ch] = yes
		}
		return yes
	}
	made := map[*node]string{}
	var dir func(n *node, at string)
	dir = func(n *node, at string) {
		st := c.dirs[n]
		names := maps.Clone(st.durable)
		for _, ch := range st.pending {
			if chosen(ch) && (ch.needs == nil || !c.waits(ch.needs) || chosen(ch.needs)) {
				for _, e := range ch.edits {
					e.do(names)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			n, p := names[name], filepath.Join(at, name)
			link, ok := made[n]
			switch {
			case n.dir && ok: // a directory that moved: it is in one place
			case n.dir:
				made[n] = p
				items = append(items, item{name: p, dir: true})
				dir(n, p)
			case ok:
				items = append(items, item{name: p, link: link})
			default:
				made[n] = p
				it := c.file(n, s, r)
				it.name = p
				items = append(items, it)
			}
		}
	}
	dir(root, "")
	return items
}

// waits reports whether a change was not synced at the cut.
func (c *cut) waits(ch *change) bool { return slices.Contains(c.dirs[ch.of].pending, ch) }

func (c *cut) file(n *node, s Survival, r *rand.Rand) item {
	st := c.files[n]
	it := item{data: st.synced, time: st.syncedTime, mode: n.mode}
	if !bytes.Equal(st.synced, st.now) {
		size := len(st.synced)
		if s.data(r) {
			size = len(st.now)
		}
		it.data = mix(size, func(off int) []byte {
			if s.data(r) {
				return pageOf(st.now, off)
			}
			return pageOf(st.synced, off)
		})
	}
	if s.data(r) {
		it.time = st.time
	}
	if it.time.IsZero() {
		it.time = time.Unix(1e9, 0) // any
	}
	return it
}

// write makes an item of a directory.
func (it *item) write(dir string) error {
	p := filepath.Join(dir, it.name)
	switch {
	case it.dir:
		return os.Mkdir(p, 0o700)
	case it.link != "":
		return os.Link(filepath.Join(dir, it.link), p)
	}
	if err := os.WriteFile(p, it.data, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(p, it.mode); err != nil {
		return err
	}
	return os.Chtimes(p, it.time, it.time)
}

var table = crc64.MakeTable(crc64.ECMA)

// digest tells directories and promises apart.
func digest(items []item, said map[string]string) string {
	b := []byte(fmt.Sprint(said))
	for _, it := range items {
		b = fmt.Appendf(b, "%s %t %s %v %d %x %d\n", it.name, it.dir, it.link, it.mode, it.time.UnixNano(),
			crc64.Checksum(it.data, table), len(it.data))
	}
	return string(b)
}

// Cuts calls check for every moment and way in which the power may have gone, with a
// directory that is as it may be then and what was promised before. Directories
// that are equal, with equal promises, are checked once. It returns how many there were.
func (d *Disk) Cuts(ways []Survival, check func(t testing.TB, dir string, said map[string]string)) (n int) {
	d.t.Helper()
	d.Stop()
	seen := map[string]bool{}
	for i := range d.cuts {
		n += d.cut(i, ways, seen, check)
	}
	return n
}

// LastCut is Cuts for the last moment only.
func (d *Disk) LastCut(ways []Survival, check func(t testing.TB, dir string, said map[string]string)) {
	d.t.Helper()
	d.Stop()
	d.cut(len(d.cuts)-1, ways, map[string]bool{}, check)
}

func (d *Disk) cut(i int, ways []Survival, seen map[string]bool, check func(t testing.TB, dir string, said map[string]string)) (n int) {
	c := &d.cuts[i]
	for _, way := range ways {
		r := rand.New(rand.NewPCG(uint64(i), way.seed))
		items := c.plan(d.root, way, r)
		key := digest(items, c.said)
		if seen[key] {
			continue
		}
		seen[key] = true
		n++
		dir, err := os.MkdirTemp(filepath.Dir(d.dir), "cut-")
		for _, it := range items {
			if err == nil {
				err = it.write(dir)
			}
		}
		if err != nil {
			d.t.Fatalf("building a cut: %v", err)
		}
		told := ""
		if d.failed != nil {
			told = fmt.Sprintf(", after a failed %s", d.describe(*d.failed))
		}
		check(&named{d.t, fmt.Sprintf("power cut before operation %d (%s)%s; of what was not synced survives %s: ", i, c.op, told, way.name)},
			dir, c.said)
		os.RemoveAll(dir)
	}
	return n
}

// Ops returns what was done, for a look at it.
func (d *Disk) Ops() (ops []string) {
	for _, c := range d.cuts {
		ops = append(ops, c.op)
	}
	return ops
}

// named is a test whose failures begin with what happened.
type named struct {
	testing.TB
	what string
}

func (n *named) Errorf(format string, args ...any) {
	n.Helper()
	n.TB.Errorf("%s"+format, append([]any{n.what}, args...)...)
}

func (n *named) Fatalf(format string, args ...any) {
	n.Helper()
	n.TB.Fatalf("%s"+format, append([]any{n.what}, args...)...)
}

func (n *named) Error(args ...any) {
	n.Helper()
	n.TB.Error(append([]any{n.what}, args...)...)
}

func (n *named) Fatal(args ...any) {
	n.Helper()
	n.TB.Fatal(append([]any{n.what}, args...)...)
}

// Errs are what a failing disk says.
var Errs = []error{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT}
