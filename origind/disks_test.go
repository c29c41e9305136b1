package origind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// diskDirs makes directories, as an operator does.
func diskDirs(t testing.TB, n int) (dirs []string) {
	top := t.TempDir()
	for i := range n {
		dir := filepath.Join(top, fmt.Sprint("disk", i+1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// breaking is a disk whose operations fail when it is broken.
type breaking struct {
	err atomic.Pointer[error]
}

func (b *breaking) Do(op disk.Op, do func(int) error) error {
	if err := b.err.Load(); err != nil {
		return &os.PathError{Op: string(op.Kind), Path: op.Path, Err: *err}
	}
	return do(op.Bytes)
}

func (b *breaking) with(err error) { b.err.Store(&err) }

// perDisk counts the whole blobs on each disk.
func perDisk(t testing.TB, dirs []string) (n []int) {
	t.Helper()
	for _, dir := range dirs {
		all, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
		if err != nil {
			t.Fatal(err)
		}
		n = append(n, len(all))
	}
	return n
}

// has reports why a blob cannot be read here.
func (s *server) has(ctx context.Context, d digest.Digest, data []byte) error {
	id, _, ok, err := s.blobs.local(d)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("%s is not here: %w", d, errdefs.ErrNotFound))
	}
	b, err := s.openLocal(ctx, id)
	if err != nil {
		return err
	}
	defer b.Close()
	f, err := b.Reopen()
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("%s has other bytes", d)
	}
	return err
}

// lonely opens an origin without a network on some disks; the error is that of opening it.
func lonely(t testing.TB, dirs []string, change func(*Config)) (*server, func(), error) {
	ctx, cancel := context.WithCancel(context.Background())
	cfg := testConfig(t, "", nil)
	cfg.Data = dirs
	if change != nil {
		change(&cfg)
	}
	s, err := openServer(ctx, ctx, cfg, nil, "127.0.0.1:0", prometheus.NewRegistry())
	if err != nil {
		cancel()
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.store.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-ended, s.close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return s, stop, nil
}

func mustLonely(t testing.TB, dirs []string) (*server, func()) {
	t.Helper()
	s, stop, err := lonely(t, dirs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, stop
}

func (s *server) pushes(t *testing.T, from, to uint64) map[digest.Digest][]byte {
	t.Helper()
	all := map[digest.Digest][]byte{}
	for n := from; n < to; n++ {
		data, _ := testBlob(3000, n)
		d := s.upload(t, data)
		if _, _, err := s.acknowledge(t.Context(), d, "kept/app", nil); err != nil {
			t.Fatal(err)
		}
		all[d] = data
	}
	return all
}

// TestDisksShare: blobs are on all disks, each on one, and are found there at the next start, whatever the disks are called then.
func TestDisksShare(t *testing.T) {
	dirs := diskDirs(t, 3)
	s, stop := mustLonely(t, dirs)
	all := s.pushes(t, 0, 30)
	inc := s.blobs.ledger.incarnation()
	stop()
	n := perDisk(t, dirs)
	if n[0]+n[1]+n[2] != 30 || slices.Min(n) < 5 {
		t.Errorf("the disks have %v blobs", n)
	}
	if err := os.Rename(dirs[0], dirs[0]+"x"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(dirs[1], dirs[0]), os.Rename(dirs[0]+"x", dirs[1])); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(dirs)
	s, _ = mustLonely(t, dirs)
	for d, data := range all {
		if err := s.has(t.Context(), d, data); err != nil {
			t.Error(err)
		}
	}
	if again := s.blobs.ledger.incarnation(); again != inc {
		t.Errorf("the member has a new disk: incarnation %x, was %x", again, inc)
	}
	if s.blobs.ledger.missing() {
		t.Error("a disk is missed")
	}
}

// TestDiskMissing has an origin start without one of its disks, or with one that is empty, after it was stopped or killed: what was there
// is unavailable, and not nowhere; and it is a new disk to the ring if the missing one may know more.
func TestDiskMissing(t *testing.T) {
	for _, tt := range []struct {
		name        string
		killed, new bool
		change      func(t *testing.T, dirs []string) []string
	}{
		{"not there", false, false, func(t *testing.T, dirs []string) []string { return append(dirs[:2:2], dirs[2]+"/nothing") }},
		{"not there after a crash", true, true, func(t *testing.T, dirs []string) []string {
			return append(dirs[:2:2], dirs[2]+"/nothing")
		}},
		{"taken out of the list", false, false, func(t *testing.T, dirs []string) []string { return dirs[:2] }},
		{"taken out, and one left", false, false, func(t *testing.T, dirs []string) []string { return dirs[1:2] }},
		{"empty", false, false, func(t *testing.T, dirs []string) []string {
			if err := errors.Join(os.RemoveAll(dirs[2]), os.Mkdir(dirs[2], 0o700)); err != nil {
				t.Fatal(err)
			}
			return dirs
		}},
		{"empty after a crash, the first", true, true, func(t *testing.T, dirs []string) []string {
			if err := errors.Join(os.RemoveAll(dirs[0]), os.Mkdir(dirs[0], 0o700)); err != nil {
				t.Fatal(err)
			}
			return dirs
		}},
		{"without what is kept", false, false, func(t *testing.T, dirs []string) []string {
			if err := os.RemoveAll(filepath.Join(dirs[0], "ring")); err != nil {
				t.Fatal(err)
			}
			return dirs
		}},
		{"crashed", true, false, func(t *testing.T, dirs []string) []string { return dirs }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dirs := diskDirs(t, 3)
			s, stop := mustLonely(t, dirs)
			all := s.pushes(t, 0, 12)
			inc := s.blobs.ledger.incarnation()
			if tt.killed {
				var copies []string
				for _, dir := range dirs {
					copies = append(copies, dir+"-copy")
					if err := os.CopyFS(dir+"-copy", os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
				}
				dirs = copies
			}
			stop()
			dirs = tt.change(t, dirs)
			s, stop = mustLonely(t, dirs)
			if again := s.blobs.ledger.incarnation(); (again != inc) != tt.new {
				t.Errorf("incarnation %x, was %x", again, inc)
			}
			away := 0
			for d, data := range all {
				if err := s.has(t.Context(), d, data); err == nil {
					continue
				}
				away++
				eventually(t, "it is said to be away", func() bool {
					_, err := s.locator.locate(t.Context(), origin.Ref{Digest: d}, false)
					if errdefs.IsNotFound(err) {
						t.Fatalf("%s is nowhere: %v", d, err)
					}
					return errdefs.IsUnavailable(err)
				})
				_, err := s.locator.locate(t.Context(), origin.Ref{Digest: d}, true)
				if !errdefs.IsUnavailable(err) {
					t.Fatalf("asked by another member: %v", err)
				}
			}
			lost := tt.name != "crashed" && tt.name != "without what is kept"
			if lost != (away > 0) {
				t.Errorf("%d blobs are away", away)
			}
			st, err := (ringAndStorages{s.member, s.storages, s.store}).status(t.Context())
			if err != nil || lost && (st.Whole || st.Under < away) {
				t.Errorf("%d are away, and %+v, %v", away, st, err)
			}
			more := s.pushes(t, 20, 24)
			stop()
			s, _ = mustLonely(t, dirs) // and again
			for d, data := range more {
				if err := s.has(t.Context(), d, data); err != nil {
					t.Error(err)
				}
			}
			for d, data := range all {
				if err := s.has(t.Context(), d, data); err == nil {
					continue
				}
				if _, err := s.locator.locate(t.Context(), origin.Ref{Digest: d}, false); errdefs.IsNotFound(err) {
					t.Errorf("after another start %s is nowhere: %v", d, err)
				}
			}
		})
	}
}

// TestDiskIsSomebodyElses: an origin does not start on what is another one's, or may be.
func TestDiskIsSomebodyElses(t *testing.T) {
	other := diskDirs(t, 2)
	s, stop := mustLonely(t, other)
	s.pushes(t, 0, 4)
	stop()
	alone := func(t *testing.T) string {
		dir := t.TempDir()
		cfg := testConfig(t, dir, nil)
		s, _ := newServer(t, cfg)
		s.pushes(t, 0, 2)
		copied := filepath.Join(t.TempDir(), "alone")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		return copied
	}
	for _, tt := range []struct {
		name   string
		dirs   func(t *testing.T) []string
		change func(*Config)
		want   string
	}{
		{
			"another member's", func(*testing.T) []string { return other }, func(c *Config) { c.Node = "b" },
			"is a disk of member origin of cluster",
		},
		{"another cluster's", func(*testing.T) []string { return other }, func(c *Config) { c.Cluster = "x" }, `and this is origin of "x"`},
		{"two members' only ones", func(t *testing.T) []string { return []string{alone(t), alone(t)} }, nil, "were never disks of one"},
		{"a disk, and what was one's only one", func(t *testing.T) []string {
			return append(other[:1:1], alone(t))
		}, nil, "were never disks of one"},
		{"somebody's blobs", func(t *testing.T) []string {
			dirs := diskDirs(t, 2)
			store, err := content.Open(t.Context(), content.Config{Root: dirs[1]})
			if err != nil {
				t.Fatal(err)
			}
			(&holdings{store: store}).keep(t, []byte("x"))
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			return dirs
		}, nil, "nothing says whose they are"},
		{"a later release's", func(t *testing.T) []string {
			dirs := diskDirs(t, 2)
			if err := os.WriteFile(filepath.Join(dirs[1], diskName), []byte(`{"format":2,"id":"00000000000000ff"}`), 0o600); err != nil {
				t.Fatal(err)
			}
			return dirs
		}, nil, "this release knows 1"},
		{"none there", func(t *testing.T) []string { return []string{"/nowhere/a", "/nowhere/b"} }, nil, "is the disk mounted?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := lonely(t, tt.dirs(t), tt.change); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// TestDiskComesBack: a disk that failed, and is back at a later start, has what was deleted meanwhile; that does not come back. Neither
// does what is forgotten altogether.
func TestDiskComesBack(t *testing.T) {
	dirs := diskDirs(t, 2)
	s, stop := mustLonely(t, dirs)
	all := s.pushes(t, 0, 12)
	bad := &breaking{}
	stopBad := disk.Intercept(dirs[0], bad)
	bad.with(syscall.EIO)
	s.store.suspect(s.store.all[0])
	eventually(t, "it is found out", func() bool { return len(s.store.inUse()) == 1 })
	more := s.pushes(t, 12, 16)
	for d := range more {
		if err := s.has(t.Context(), d, more[d]); err != nil {
			t.Error(err)
		}
	}
	var there, deleted, forgotten []digest.Digest
	for d, data := range all {
		if s.has(t.Context(), d, data) != nil {
			there = append(there, d)
		}
	}
	if len(there) < 3 {
		t.Fatalf("%d blobs were on the disk", len(there))
	}
	eventually(t, "they are missed", func() bool {
		st, err := s.member.status(t.Context())
		return err == nil && !st.Whole && st.Under >= len(there)
	})
	deleted, forgotten = there[:1], there[1:2]
	if err := s.delete(t.Context(), origin.Ref{Digest: deleted[0]}); err != nil {
		t.Fatal(err)
	}
	stop()
	stopBad()
	l, err := openLedgers(ledgerConfig{name: "origin", disks: []ledgerDisk{{dirs[1], mustDisk(t, dirs[1])}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.records.Remove(forgotten[0]), l.close()); err != nil { // as when its removal is retired
		t.Fatal(err)
	}
	s, _ = mustLonely(t, dirs)
	for _, d := range there[2:] {
		if err := s.has(t.Context(), d, all[d]); err != nil {
			t.Errorf("it was on the disk that is back: %v", err)
		}
	}
	for _, d := range append(deleted, forgotten...) {
		if _, p := s.store.Find(d); p != content.Absent {
			t.Errorf("%s is back: %v", d, p)
		}
	}
}

func mustDisk(t *testing.T, root string) uint64 {
	t.Helper()
	f, err := readDisk(root)
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	return uint64(f.ID)
}

// TestDiskFails has a disk of one of three members fail under pushes, in each of the ways in which disks do: no push fails, all that was
// there is copied to its other disks, and nothing was ever nowhere. Then all disks but one fail.
func TestDiskFails(t *testing.T) {
	for _, fail := range []error{syscall.EIO, syscall.EROFS, syscall.ENODEV} {
		t.Run(fail.Error(), func(t *testing.T) {
			dirs := diskDirs(t, 3)
			r := startRingWith(t, 3, false, func(i int, cfg *Config) {
				if cfg.Ring.Replicas, cfg.Ring.MinReplicas = 3, 2; i == 0 {
					cfg.Data = dirs
				}
			})
			var bad [3]breaking
			for i, dir := range dirs {
				defer disk.Intercept(dir, &bad[i])()
			}
			var all []digest.Digest
			push := func(n int) {
				t.Helper()
				for range n {
					data, d := testBlob(5000, uint64(len(all)))
					if err := pushTo(t.Context(), r.client, d, data); err != nil {
						t.Fatalf("a push: %v", err)
					}
					all = append(all, d)
				}
			}
			whole := func(used ...int) {
				t.Helper()
				eventually(t, "all is copied", func() bool {
					for _, d := range all {
						if _, err := r.client.Stat(t.Context(), origin.Ref{Digest: d}); errdefs.IsNotFound(err) {
							t.Fatalf("%s is nowhere: %v", d, err)
						}
					}
					n, on := 0, perDisk(t, dirs)
					for _, i := range used {
						n += on[i]
					}
					return n == len(all) && r.at(0, func(m *origin.Member) error {
						st, err := m.RingStatus(t.Context())
						if err == nil && (!st.Whole || slices.ContainsFunc(st.Disks, func(d origin.RingDisk) bool {
							return d.Up != slices.ContainsFunc(used, func(i int) bool { return dirs[i] == d.Path })
						})) {
							err = errdefs.ErrUnavailable
						}
						return err
					}) == nil
				})
			}
			push(30)
			whole(0, 1, 2)
			bad[1].with(fail)
			push(30)
			whole(0, 2)
			bad[0].with(fail)
			push(10)
			whole(2)
		})
	}
}

// Who meets a disk's failure hears what others can do about it: all but the one whose disk is the last.
func TestDiskFailureIsUnavailable(t *testing.T) {
	s, _ := mustLonely(t, diskDirs(t, 2))
	first, last := s.store.inUse()[0], s.store.inUse()[1]
	failure := &os.PathError{Op: "open", Path: filepath.Join(first.root, "blobs"), Err: syscall.EIO}
	for _, failure := range []error{failure, failure, errdefs.ErrNotFound} { // what was under way then, too
		err := s.store.after(first, failure)
		if !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), first.root+" has failed") {
			t.Errorf("%v: %v", failure, err)
		}
	}
	if err := s.store.after(last, failure); !errors.Is(err, syscall.EIO) || errdefs.IsUnavailable(err) {
		t.Errorf("of the last disk: %v", err)
	}
}

// pushTo pushes as clients do that begin again when an upload is gone.
func pushTo(ctx context.Context, c *origin.Client, d digest.Digest, data []byte) (err error) {
	for range 5 {
		var id string
		if id, err = c.StartUpload(ctx, "kept/app", ""); err != nil {
			continue
		}
		if _, err = c.Append(ctx, id, 0, bytes.NewReader(data)); err != nil {
			continue
		}
		if _, err = c.Commit(ctx, id, d); err == nil {
			return nil
		}
	}
	return err
}
