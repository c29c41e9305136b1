package content

import (
	"context"
	"slices"
	"testing"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// loggedWriter is a stock writer that says what is asked of it.
type loggedWriter struct {
	ctrdcontent.Writer
	asked []string
}

func (w *loggedWriter) Sync() error {
	w.asked = append(w.asked, "sync")
	return w.Writer.(ctrdcontent.Syncer).Sync()
}

func (w *loggedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...ctrdcontent.Opt) error {
	w.asked = append(w.asked, "commit")
	return w.Writer.Commit(ctx, size, expected, opts...)
}

// A writer has its data synced before it takes the digest's lock to commit, and when
// containerd asks for it: Commit itself comes under containerd's locks, and syncs again.
func TestWriterSyncsBeforeCommit(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	w, err := s.Writer(t.Context(), ctrdcontent.WithRef("r"))
	if err != nil {
		t.Fatal(err)
	}
	seq := w.(*seqWriter)
	log := &loggedWriter{Writer: seq.Writer}
	seq.Writer = log
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), 1, ""); err != nil {
		t.Fatal(err)
	}
	if want := []string{"sync", "commit"}; !slices.Equal(log.asked, want) {
		t.Errorf("asked for %q, want %q", log.asked, want)
	}
}
