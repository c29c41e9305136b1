package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/plugin/unpack/treetest"
)

// childEnv makes this program the process of Options.Child.
const childEnv = "UNPACK_CHILD"

func childMain() {
	switch os.Getenv(childEnv) {
	case "decode":
		if err := DecodeZstd(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "die":
		os.Stdout.Write(make([]byte, 512))
		p, _ := os.FindProcess(os.Getpid())
		p.Kill()
		time.Sleep(time.Minute)
	case "hang":
		time.Sleep(time.Hour)
	}
	os.Exit(0)
}

func childThat(does string) Options {
	return Options{Child: []string{"/usr/bin/env", childEnv + "=" + does, os.Args[0]}}
}

// zstdFrame is a frame of raw blocks whose header says that it needs a window of 1<<log bytes.
func zstdFrame(log int, data []byte) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(log-10) << 3}
	for {
		n := min(len(data), 1<<17)
		h := n << 3
		if n == len(data) {
			h |= 1 // the last one
		}
		b = append(append(b, byte(h), byte(h>>8), byte(h>>16)), data[:n]...)
		if data = data[n:]; len(data) == 0 {
			return b
		}
	}
}

func TestLargeWindow(t *testing.T) {
	needRoot(t)
	plain := layer(t, directory("d"), reg("d/f", strings.Repeat("content", 50_000)), reg("g", "x"))
	half := len(plain) / 2
	for name, blob := range map[string][]byte{
		"one frame": zstdFrame(29, plain),
		"the first": append(zstdFrame(25, plain[:half]), zstdFrame(20, plain[half:])...),
		"the last":  append(zstdFrame(20, plain[:half]), zstdFrame(25, plain[half:])...),
		"none":      zstdFrame(24, plain),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			dir, stock := t.TempDir(), t.TempDir()
			runtime.ReadMemStats(&before)
			res, err := applyBytes(t.Context(), dir, blob, childThat("decode"))
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 60<<20 {
				t.Errorf("it took %d MiB in this process", n>>20)
			}
			if want, err := applyBytes(t.Context(), stock, plain, Options{}); err != nil || res.DiffID != want.DiffID || res.Format != "zstd" {
				t.Errorf("got %v, want %v, %v", res, want, err)
			}
			since := time.Now().Add(-time.Minute)
			if d := treetest.Diff(describe(t, stock, since), describe(t, dir, since)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestChildFails(t *testing.T) {
	needRoot(t)
	blob := zstdFrame(25, layer(t, reg("f", strings.Repeat("content", 50_000))))
	broken := errors.New("broken disk")
	for _, c := range []struct {
		name string
		blob []byte
		o    Options
		want error
		says string
	}{
		{"none", blob, Options{}, ErrTooLarge, "window of more than 16 MiB"},
		{"not there", blob, Options{Child: []string{"/nonexistent"}}, os.ErrNotExist, "/nonexistent"},
		{"cut", blob[:len(blob)-5], childThat("decode"), ErrInvalid, "unexpected EOF"},
		{"beyond containerd's bound", zstdFrame(30, nil), childThat("decode"), ErrInvalid, "window size exceeded"},
		{"killed", blob, childThat("die"), ErrTooLarge, "killed"},
	} {
		_, err := applyBytes(t.Context(), t.TempDir(), c.blob, c.o)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: got %v, want %v, saying %q", c.name, err, c.want, c.says)
		}
		if c.want == ErrTooLarge && !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v is not of containerd's class", c.name, err)
		}
	}
	half := failingReaderAt{blob[:len(blob)/2], broken}
	if _, err := Layer(t.Context(), half, int64(len(blob)), true, t.TempDir(), childThat("decode")); !errors.Is(err, broken) {
		t.Errorf("a broken disk: got %v", err)
	}

	// It ends with its layer, and the next one's turn comes.
	for range 2 {
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the client is gone")
		time.AfterFunc(10*time.Millisecond, func() { cancel(gone) })
		if _, err := applyBytes(ctx, t.TempDir(), blob, childThat("hang")); !errors.Is(err, gone) {
			t.Errorf("got %v, want %v", err, gone)
		}
	}
	// So it does if the tree fails first.
	noise := zstdFrame(25, bytes.Repeat([]byte("noise"), 1<<20))
	if _, err := applyBytes(t.Context(), t.TempDir(), noise, childThat("decode")); !errors.Is(err, ErrInvalid) {
		t.Errorf("noise: got %v", err)
	}
}
