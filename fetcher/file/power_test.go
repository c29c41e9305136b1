package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/internal/durable/disktest"
)

// powerStory writes, swaps and deletes objects, and promises what each holds.
func powerStory(dir string, d *disktest.Disk) error {
	b, err := Open(Config{Path: dir})
	if err != nil {
		return err
	}
	defer b.Close()
	ctx := context.Background()
	// Until it is acknowledged a key may have either. What comes after a promise's
	// bar may be there instead.
	write := func(key, was, data string) error {
		d.Say(key, was+"|"+data)
		if _, err := b.Write(ctx, key, int64(len(data)), strings.NewReader(data)); err != nil {
			return err
		}
		d.Say(key, data)
		return nil
	}
	swap := func(key, was, data string) error {
		version := ""
		if info, err := b.Stat(ctx, key); err == nil {
			version = info.Version
		}
		d.Say(key, was+"|"+data)
		info, err := b.WriteIf(ctx, key, []byte(data), version)
		if err != nil {
			return err
		}
		d.Say(key, data)
		d.Say("version of "+key, info.Version)
		return nil
	}
	remove := func(key, was string) error {
		d.Say("version of "+key, "")
		d.Say(key, was+"|-")
		if err := b.Delete(ctx, key); err != nil {
			return err
		}
		d.Say(key, "-")
		return nil
	}
	for _, step := range []func() error{
		func() error { return write("blobs/sha256/ab/abc", "-", strings.Repeat("blob", 3000)) },
		func() error { return write("blobs/sha256/ab/abc", strings.Repeat("blob", 3000), "shorter") },
		func() error { return write("blobs/sha256/ac/acd", "-", "another") },
		func() error { return swap("index/tags/v1", "-", "first") },
		func() error { return swap("index/tags/v1", "first", "second") },
		func() error { return remove("blobs/sha256/ab/abc", "shorter") },
		func() error { return remove("index/tags/v1", "second") },
		func() error { return swap("index/tags/v1", "-", "third") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	d.Stop() // so that Close is not part of it
	return nil
}

// checkPower opens what a power cut has left, and checks that what was promised is
// there, and nothing half.
func checkPower(t testing.TB, dir string, said map[string]string) {
	b, err := Open(Config{Path: dir})
	if err != nil {
		t.Errorf("opening: %v", err)
		return
	}
	defer b.Close()
	for key, promise := range said {
		if key, ok := strings.CutPrefix(key, "version of "); ok {
			info, err := b.Stat(t.Context(), key)
			if now, _, _ := strings.Cut(said[key], "|"); promise != "" && now == said[key] &&
				(err != nil || info.Modified.UnixNano() != timeOf(promise)) {
				t.Errorf("the version of %s is %q, %v, want the time of %q", key, info.Version, err, promise)
			}
			continue
		}
		got := "-"
		if r, _, err := b.Open(t.Context(), key, 0, -1); err == nil {
			data := make([]byte, 1<<16)
			n, _ := r.Read(data)
			r.Close()
			got = string(data[:n])
		} else if !errdefs.IsNotFound(err) {
			t.Errorf("reading %s: %v", key, err)
		}
		if was, now, begun := strings.Cut(promise, "|"); got != was && !(begun && got == now) {
			t.Errorf("%s is %.20q, %d bytes, want %.20q", key, got, len(got), promise)
		}
	}
	if names, err := os.ReadDir(filepath.Join(dir, tmpDir)); err != nil || len(names) != 1 {
		t.Errorf("temporary files are left: %v, %v", names, err)
	}
	if _, err := b.Write(t.Context(), "blobs/sha256/ab/abc", 1, strings.NewReader("x")); err != nil {
		t.Errorf("writing again: %v", err)
	}
}

// timeOf returns the modification time in a version. The inode is another in a copy.
func timeOf(version string) (n int64) {
	hex, _, _ := strings.Cut(version, "-")
	fmt.Sscanf(hex, "%x", &n)
	return n
}

var ways = []disktest.Survival{disktest.Nothing, disktest.Names, disktest.Everything, disktest.Anything(1), disktest.Anything(2)}

// newDisk returns a directory of its own.
func newDisk(t testing.TB) string {
	top := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	return top
}

// The power goes after each operation. Acknowledged objects are there, with the
// version that was told; others are the old or the new one, whole.
func TestPowerCut(t *testing.T) {
	top := newDisk(t)
	dir := filepath.Join(top, "a", "b")
	d := disktest.Watch(t, top)
	if err := powerStory(dir, d); err != nil {
		t.Fatal(err)
	}
	n := d.Cuts(ways, func(t testing.TB, cut string, said map[string]string) {
		checkPower(t, filepath.Join(cut, "a", "b"), said)
	})
	t.Logf("%d operations, %d different disks", len(d.Ops())-1, n)
}

// Each operation fails once, in each way. The error names the object or the file,
// and nothing is acknowledged that is not so.
func TestFailingDisk(t *testing.T) {
	var dir string
	story := func(t testing.TB, failAt int, fail error) (*disktest.Disk, error) {
		top := newDisk(t)
		dir = filepath.Join(top, "a", "b")
		d := disktest.Watch(t, top)
		d.FailAt(failAt, fail)
		return d, powerStory(dir, d)
	}
	disktest.FailEach(t, story, func(f *disktest.Failure) {
		if f.Err == nil && f.Op.Kind != disk.OpRemove {
			t.Errorf("%sno error", f.What)
		}
		named := func(path string) bool { return strings.Contains(f.Err.Error(), path) }
		if f.Err != nil && (!errors.Is(f.Err, f.Fail) || !named(dir) && !named(f.Op.Path)) {
			t.Errorf("%sthe error names no file, or not why: %v", f.What, f.Err)
		}
		if f.Err != nil && errdefs.IsResourceExhausted(f.Err) != f.Full() {
			t.Errorf("%sa full disk: %t, want %t: %v", f.What, !f.Full(), f.Full(), f.Err)
		}
		f.Disk.LastCut(ways[:1], func(t testing.TB, cut string, said map[string]string) {
			if _, err := os.Stat(filepath.Join(cut, "a", "b")); errors.Is(err, fs.ErrNotExist) && len(said) == 0 {
				return // it could not even be opened
			}
			checkPower(t, filepath.Join(cut, "a", "b"), said)
		})
	})
}
