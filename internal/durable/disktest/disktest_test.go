package disktest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// tree returns a directory's files with what is in them.
func tree(t testing.TB, dir string) string {
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			var b []byte
			b, err = os.ReadFile(p)
			m[strings.TrimPrefix(p, dir+"/")] = string(b)
		} else if p != dir {
			m[strings.TrimPrefix(p, dir+"/")+"/"] = ""
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(" " + k)
		if m[k] != "" {
			b.WriteString("=" + strings.ReplaceAll(m[k], "\x00", "0"))
		}
	}
	return strings.TrimSpace(b.String())
}

// What is left when nothing survives that need not.
func TestWhatMustSurvive(t *testing.T) {
	create := func(t *testing.T, p, data string) *os.File {
		f, err := disk.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			_, err = disk.Write(f, []byte(data))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	ok := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, at func(string) string)
		want string
	}{
		{"nothing is synced", func(t *testing.T, at func(string) string) { create(t, at("a"), "1") }, "d/ old=0"},
		{"data without a name", func(t *testing.T, at func(string) string) {
			ok(t, disk.Sync(create(t, at("a"), "1")))
		}, "d/ old=0"},
		{"a name without data", func(t *testing.T, at func(string) string) {
			create(t, at("a"), "1")
			ok(t, durable.SyncDir(at("")))
		}, "a d/ old=0"},
		{"both", func(t *testing.T, at func(string) string) {
			f := create(t, at("a"), "1")
			ok(t, disk.Datasync(f))
			ok(t, durable.SyncDir(at("")))
			_, err := disk.Write(f, []byte("2"))
			ok(t, err)
		}, "a=1 d/ old=0"},
		{"written over", func(t *testing.T, at func(string) string) {
			_, err := disk.WriteAt(create(t, at("old"), ""), []byte("1"), 0)
			ok(t, err)
		}, "d/ old=0"},
		{"renamed over, as it should", func(t *testing.T, at func(string) string) {
			ok(t, durable.WriteFile(at("old"), []byte("1"), 0o600))
		}, "d/ old=1"},
		{"renamed into another directory, which is synced", func(t *testing.T, at func(string) string) {
			ok(t, durable.Rename(at("old"), at("d/new")))
		}, "d/ d/new=0 old=0"},
		{"which the old one is", func(t *testing.T, at func(string) string) {
			ok(t, disk.Rename(at("old"), at("d/new")))
			ok(t, durable.SyncDir(at("")))
		}, "d/ d/new=0"},
		{"removed", func(t *testing.T, at func(string) string) { ok(t, disk.Remove(at("old"))) }, "d/ old=0"},
		{"removed durably", func(t *testing.T, at func(string) string) { ok(t, durable.Remove(at("old"))) }, "d/"},
		{"in a directory that has no durable name", func(t *testing.T, at func(string) string) {
			ok(t, disk.Mkdir(at("e"), 0o700))
			ok(t, durable.WriteFile(at("e/a"), []byte("1"), 0o600))
		}, "d/ old=0"},
		{"in one that has", func(t *testing.T, at func(string) string) {
			ok(t, durable.MkdirAll(at("e/f"), 0o700))
			ok(t, durable.WriteFile(at("e/f/a"), []byte("1"), 0o600))
		}, "d/ e/ e/f/ e/f/a=1 old=0"},
		{"renamed into another directory, and both are synced", func(t *testing.T, at func(string) string) {
			ok(t, disk.Rename(at("old"), at("d/new")))
			ok(t, durable.SyncDir(at("d")))
			ok(t, durable.SyncDir(at("")))
		}, "d/ d/new=0"},
		{"renamed and renamed over while it is open", func(t *testing.T, at func(string) string) {
			f := create(t, at("a"), "1")
			ok(t, disk.Rename(at("a"), at("d/new")))
			create(t, at("a"), "2")
			ok(t, disk.Sync(f))
			ok(t, durable.SyncDir(at("d")))
			ok(t, durable.SyncDir(at("")))
		}, "a d/ d/new=1 old=0"},
		{"behind its back", func(t *testing.T, at func(string) string) {
			ok(t, os.WriteFile(at("a"), []byte("1"), 0o600))
		}, "d/ old=0"},
	} {
		for _, failing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/failing=%t", tt.name, failing), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "x")
				ok(t, os.MkdirAll(filepath.Join(dir, "d"), 0o700))
				ok(t, os.WriteFile(filepath.Join(dir, "old"), []byte("0"), 0o600))
				d := Watch(t, dir)
				if failing {
					d.FailAt(math.MaxInt, syscall.EIO)
				}
				tt.do(t, func(name string) string { return filepath.Join(dir, name) })
				now := tree(t, dir)
				d.LastCut([]Survival{Nothing}, func(t testing.TB, dir string, _ map[string]string) {
					if got := tree(t, dir); got != tt.want {
						t.Errorf("left is %q, want %q", got, tt.want)
					}
				})
				d.LastCut([]Survival{Everything}, func(t testing.TB, dir string, _ map[string]string) {
					if got := tree(t, dir); got != now {
						t.Errorf("left is %q, want all, %q", got, now)
					}
				})
			})
		}
	}
}

// Of what may survive anything does, but a rename never loses its file.
func TestWhatMaySurvive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	if err := errors.Join(os.MkdirAll(dir+"/d", 0o700), os.WriteFile(dir+"/old", []byte("0"), 0o600)); err != nil {
		t.Fatal(err)
	}
	d := Watch(t, dir)
	if err := errors.Join(disk.Rename(dir+"/old", dir+"/d/new"), os.WriteFile(dir+"/a", []byte("1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var ways []Survival
	for seed := range uint64(200) {
		ways = append(ways, Anything(seed))
	}
	seen := map[string]bool{}
	d.LastCut(ways, func(t testing.TB, dir string, _ map[string]string) { seen[tree(t, dir)] = true })
	for _, want := range []string{"d/ old=0", "d/ d/new=0", "d/ d/new=0 old=0", "a d/ old=0", "a=0 d/ old=0", "a=1 d/ old=0"} {
		if !seen[want] {
			t.Errorf("never left: %q", want)
		}
		delete(seen, want)
	}
	for got := range seen {
		if !strings.Contains(got, "=0") {
			t.Errorf("left is %q", got)
		}
	}
}

// An operation that fails, at the power cut after it and before.
func TestFailAt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, "a")
	d := Watch(t, dir)
	d.FailAt(1, syscall.EIO) // the first write
	f, err := disk.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := disk.WriteAt(f, []byte("1234"), 0); n != 2 || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), p) {
		t.Errorf("wrote %d, %v; want 2 and an I/O error that names the file", n, err)
	}
	d.FailAt(2, syscall.EIO)
	if err := disk.Datasync(f); !errors.Is(err, syscall.EIO) {
		t.Errorf("fdatasync: %v", err)
	}
	if err := errors.Join(disk.Sync(f), durable.SyncDir(dir)); err != nil {
		t.Fatal(err)
	}
	d.LastCut([]Survival{Nothing}, func(t testing.TB, dir string, _ map[string]string) {
		if got := tree(t, dir); got != "a=00" {
			t.Errorf("left is %q: a sync after one that failed has brought what that one lost", got)
		}
	})
}

// A time is durable after fsync, not after fdatasync.
func TestTimes(t *testing.T) {
	for _, sync := range []func(*os.File) error{disk.Sync, disk.Datasync} {
		dir := filepath.Join(t.TempDir(), "x")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(dir+"/a", nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		d := Watch(t, dir)
		at := time.Unix(2e9, 0)
		f, err := os.Open(dir + "/a")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := errors.Join(disk.Chtimes(dir+"/a", at, at), sync(f)); err != nil {
			t.Fatal(err)
		}
		d.LastCut([]Survival{Nothing}, func(t testing.TB, dir string, _ map[string]string) {
			fi, err := os.Stat(dir + "/a")
			if err != nil || fi.ModTime().Equal(at) != (d.Ops()[0] != "" && strings.HasPrefix(d.Ops()[1], "fsync")) {
				t.Errorf("after %v the time is %v, %v", d.Ops(), fi.ModTime(), err)
			}
		})
	}
}
