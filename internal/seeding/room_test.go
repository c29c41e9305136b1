package seeding

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// A blob that was seeded a moment ago makes room for another on a full disk, although the
// swarm has it open still.
func TestSeededBlobMakesRoom(t *testing.T) {
	root := t.TempDir()
	var s *Seeder
	store, err := content.Open(t.Context(), content.Config{
		Root: root, FreeFloor: -1, Unlend: func(ctx context.Context, ids []piece.ID, need int64) { s.Unlend(ctx, ids, need) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	data := make([]byte, 1_000_000)
	rand.NewChaCha8([32]byte{}).Read(data)
	id, err := piece.ParseID(digest.FromBytes(data).String(), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	sums := piece.NewSums(id)
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		t.Fatal(err)
	}
	pushed := filepath.Join(root, "pushed")
	if err := os.WriteFile(pushed, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Import(t.Context(), pushed, sums); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), digest.FromBytes(data)); err != nil { // into the cache
		t.Fatal(err)
	}

	node, err := NewNode(swarm.NodeConfig{Cluster: "default", Node: "node", Store: Store{store}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s = New(Config{
		Store:    Store{store},
		Announce: func(context.Context, piece.ID, int) {}, Gone: func(piece.ID) {}, Busy: func(piece.ID) bool { return false },
		Find: func(_ context.Context, id piece.ID) (bool, error) { return true, nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- node.Run(ctx) }()
	go func() { s.Run(ctx, node); ended <- nil }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		<-ended
	}()
	s.Wanted(id)
	for s.Len() == 0 {
		if t.Context().Err() != nil {
			t.Fatal("never opened")
		}
		node.Snapshot() // the node has time to join it
	}
	b, err := store.Blob(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("reading what is seeded: %v", err)
	}
	if freed := store.MakeRoom(t.Context(), 1); freed != 0 {
		t.Errorf("%d bytes were freed although somebody reads them", freed)
	}
	b.Close()
	if freed := store.MakeRoom(t.Context(), 1); freed != id.Size {
		t.Errorf("%d bytes were freed, want the blob's", freed)
	}
	if p := store.Presence(id); p != content.Absent {
		t.Errorf("the blob is %v", p)
	}
}
