package origind

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// failing fails some operations, so many times.
type failing struct {
	kind disk.Kind
	of   string // part of the path
	with error

	mu   sync.Mutex
	left int
}

func (f *failing) Do(op disk.Op, do func(int) error) error {
	f.mu.Lock()
	fails := op.Kind == f.kind && strings.Contains(op.Path, f.of) && f.left > 0
	if fails {
		f.left--
	}
	f.mu.Unlock()
	if fails {
		return &os.PathError{Op: string(op.Kind), Path: op.Path, Err: f.with}
	}
	return do(op.Bytes)
}

// A blob that is to be kept cannot be pinned. If that is because of its own file, the origin goes on, and heals it when that is possible;
// what passes is waited for; a disk that keeps nothing ends it.
func TestPinFails(t *testing.T) {
	const ever = 1 << 30
	for _, tt := range []struct {
		name  string
		kind  disk.Kind
		of    string // "": the blob's file
		with  error
		times int
		spoil func(root string) error
		ends  bool
		later content.Presence // when nothing fails any more
	}{
		{name: "its file cannot be read", kind: disk.OpRename, with: syscall.EIO, times: ever, later: content.Pinned},
		{name: "its file is damaged", kind: disk.OpChtimes, with: syscall.EUCLEAN, times: ever, later: content.Pinned},
		{name: "its file is gone", spoil: func(root string) error { return os.RemoveAll(filepath.Join(root, "cache/sha256")) }},
		{name: "there are no more files for a moment", kind: disk.OpRename, with: syscall.EMFILE, times: 3, later: content.Pinned},
		{name: "the name is not synced for a moment", kind: disk.OpSync, of: "blobs/sha256", with: syscall.ENOSPC, times: 3,
			later: content.Pinned},
		{name: "the name is not synced", kind: disk.OpSync, of: "blobs/sha256", with: syscall.EIO, times: ever, ends: true},
		{name: "it can only be read", kind: disk.OpRename, with: syscall.EROFS, times: ever, ends: true},
		{name: "the directory is gone", ends: true, spoil: func(root string) error { return os.RemoveAll(filepath.Join(root, "blobs/sha256")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, ctx := newServer(t, testConfig(t, t.TempDir(), nil))
			data, _ := testBlob(100_000, 1)
			d := s.upload(t, data)
			if _, _, err := s.acknowledge(ctx, d, "any/app", nil); err != nil {
				t.Fatal(err)
			}
			if err := s.store.Unpin(ctx, d); err != nil { // behind the ring's back
				t.Fatal(err)
			}
			f := &failing{kind: tt.kind, of: tt.of, with: tt.with, left: tt.times}
			if f.of == "" {
				f.of = d.Encoded()
			}
			defer disk.Intercept(s.cfg.Root, f)()
			if tt.spoil != nil {
				if err := tt.spoil(s.cfg.Root); err != nil {
					t.Fatal(err)
				}
			}
			s.member.do(func(b *batch) { b.pins = append(b.pins, d) })
			if tt.ends {
				<-s.member.ended
				if s.member.err == nil || !strings.Contains(s.member.err.Error(), d.Encoded()) {
					t.Errorf("it ended with %v", s.member.err)
				}
				return
			}
			if want := tt.times == ever || tt.spoil != nil; want != s.heals(t, d) {
				t.Errorf("it is to be healed: %t", !want)
			}
			f.mu.Lock()
			f.left = 0
			f.mu.Unlock()
			if tt.later != content.Absent {
				eventually(t, "it is kept again", func() bool { return !s.heals(t, d) && s.store.PresenceOf(d) == tt.later })
			}
		})
	}
}

// heals reports whether a blob is to be healed, after all turns so far, and what they have happen.
func (s *server) heals(t *testing.T, d digest.Digest) (is bool) {
	t.Helper()
	for range 2 {
		if err := s.member.look(t.Context(), func(*ringstate.Ring) {}); err != nil {
			t.Fatal(err)
		}
	}
	s.member.do(func(b *batch) { is = s.member.healing[d] != nil })
	if err := s.member.look(t.Context(), func(*ringstate.Ring) {}); err != nil {
		t.Fatal(err)
	}
	return is
}
