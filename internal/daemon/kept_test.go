package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestKept(t *testing.T) {
	k := &Kept{Dir: filepath.Join(t.TempDir(), "a", "b"), Name: "role"}
	if _, _, err := k.Last(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing is kept: %v", err)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(k.Worked([]byte("one")))
	if text, since, err := k.Last(); string(text) != "one" || time.Since(since) > time.Hour || err != nil {
		t.Errorf("%q, %v, %v", text, since, err)
	}
	if fi, err := os.Stat(k.Files()[0]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("who may read it: %v, %v", fi.Mode(), err)
	}
	two := []byte("two")
	do(k.Begin(two))
	do(k.Begin(two))
	if s := k.Starts(two); s.Times != 2 || s.Error != "" || time.Since(s.Last) > time.Hour {
		t.Errorf("%+v", s)
	}
	do(k.Failed(two, errors.New("no")))
	if s := k.Starts(two); s.Times != 2 || s.Error != "no" {
		t.Errorf("%+v", s)
	}
	do(k.Begin(two))
	if s := k.Starts(two); s.Times != 3 || s.Error != "" {
		t.Errorf("an error of another start: %+v", s)
	}
	if s := k.Starts([]byte("three")); s.Times != 0 {
		t.Errorf("another text's: %+v", s)
	}
	if text, _, _ := k.Last(); string(text) != "one" {
		t.Errorf("%q is kept, which has not worked", text)
	}
	do(k.Worked(two))
	if s := k.Starts(two); s.Times != 0 {
		t.Errorf("after it has worked: %+v", s)
	}
	do(k.Forget())
	if text, _, err := k.Last(); string(text) != "two" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// A file that is refused is read again when it has changed and rests, without a signal.
func TestReloadMended(t *testing.T) {
	for _, tt := range []struct {
		name string
		next func(*testConfig)
		old  bool // it was refused at the start
		less bool
		anew bool
	}{
		{"refused at SIGHUP", func(c *testConfig) { c.Name = "x" }, false, false, false},
		{"refused at the start", func(c *testConfig) { c.Name = "x" }, true, false, true},
		{"refused at the start, and the same as before", func(*testConfig) {}, true, false, false},
		{"the same as before, but less was done", func(*testConfig) {}, true, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			write := func(text string, at time.Time) {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(path, at, at); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				write("bad", time.Now())
				anew := 0
				f := &File{Path: path, Less: tt.less, Anew: func() { anew++; cancel() }}
				f.Mark()
				f.Refuse(errors.New("bad"), "the last", tt.old)
				reads, err := 0, errors.New("still bad")
				done := make(chan struct{})
				go func() {
					defer close(done)
					Reload(ctx, nil, *newConfig(), func() (testConfig, error) {
						reads++
						c := *newConfig()
						tt.next(&c)
						return c, err
					}, nil, f)
				}()
				time.Sleep(time.Minute)
				if reads != 0 {
					t.Errorf("the file that did not change was read %d times", reads)
				}
				time.Sleep(time.Second) // never at the instant of a look
				write("worse", time.Now())
				time.Sleep(3 * fileEvery)
				if reads != 1 || f.State().Refused == nil || tt.old && f.State().Instead != "the last" {
					t.Errorf("read %d times, %+v", reads, f.State())
				}
				write("half a fi", time.Now())
				time.Sleep(fileEvery + time.Second) // seen once
				err = nil
				write("half a file", time.Now().Add(time.Second))
				if reads != 1 {
					t.Error("a file was read that is being written")
				}
				time.Sleep(3 * fileEvery)
				if reads != 2 || f.State().Refused != nil || (anew == 1) != tt.anew {
					t.Errorf("read %d times, %+v, started anew %d times", reads, f.State(), anew)
				}
				time.Sleep(time.Hour)
				if reads != 2 {
					t.Errorf("a good file was read %d times", reads)
				}
				cancel()
				<-done
			})
		})
	}
}
