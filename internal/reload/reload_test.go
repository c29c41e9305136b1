package reload

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errEmpty = errors.New("empty")

// open returns the content of two files, the second of which may not be there, and
// what was reported.
func open(t *testing.T) (a, b string, f *Files[string], told func() []error) {
	t.Helper()
	dir := t.TempDir()
	a, b = filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "1")
	var all []error
	f, err := Open(func() (string, error) {
		one, err := os.ReadFile(a)
		if len(one) == 0 {
			return "", errors.Join(err, errEmpty)
		}
		two, _ := os.ReadFile(b)
		return string(one) + string(two), nil
	}, func(err error) { all = append(all, err) }, a, b)
	if err != nil {
		t.Fatal(err)
	}
	return a, b, f, func() []error {
		was := all
		all = nil
		return was
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, f, told := open(t)
		step := func(what, want string, reports int, failed bool) {
			t.Helper()
			if got := f.Now(); got != f.Get() {
				t.Errorf("%s: %q was read before it was time", what, f.Now())
			}
			time.Sleep(Every)
			if got := f.Get(); got != want || f.Now() != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
			got := told()
			if len(got) != reports || reports > 0 && (got[0] != nil) != failed {
				t.Errorf("%s: told %v", what, got)
			}
		}
		step("as it was", "1", 0, false)
		write(t, a, "22")
		step("another size", "22", 1, false)
		write(t, b, "3")
		step("another file", "223", 1, false)
		write(t, a, "")
		step("nonsense", "223", 1, true)
		step("the same nonsense", "223", 0, false)
		write(t, a, "4")
		step("sense again", "43", 1, false)
		if err := os.Remove(b); err != nil {
			t.Fatal(err)
		}
		step("a file that went away", "4", 1, false)
		// As Kubernetes does it: another file of the same size and age.
		info, err := os.Stat(a)
		if err != nil {
			t.Fatal(err)
		}
		write(t, a+".new", "5")
		if err := errors.Join(os.Chtimes(a+".new", time.Time{}, info.ModTime()), os.Rename(a+".new", a)); err != nil {
			t.Fatal(err)
		}
		step("a rename", "5", 1, false)
	})
}

func TestOpenFails(t *testing.T) {
	if f, err := Open(func() (int, error) { return 0, errEmpty }, nil, "x"); f != nil || !errors.Is(err, errEmpty) {
		t.Errorf("%v, %v", f, err)
	}
}

// Whoever asks while somebody looks gets the former value, and does not wait.
func TestGetDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a")
		var n int
		hold := make(chan struct{})
		f, err := Open(func() (int, error) {
			if n++; n > 1 {
				<-hold
			}
			return n, nil
		}, nil, path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, "x")
		var wg sync.WaitGroup
		wg.Go(f.Look)
		synctest.Wait()
		time.Sleep(Every)
		if got := f.Get(); got != 1 {
			t.Errorf("%d", got)
		}
		close(hold)
		wg.Wait()
		if got := f.Now(); got != 2 {
			t.Errorf("%d", got)
		}
	})
}
