package plugin

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm/piece"
)

// told is the trackers, of a test: what they are told, in order. announcing is called
// before they are told of a whole blob.
type told struct {
	announcing func()
	all        []string
}

func (t *told) Complete(piece.ID, *[32]byte) {
	t.announcing()
	t.all = append(t.all, "complete")
}

func (t *told) Gone(piece.ID) { t.all = append(t.all, "gone") }

// cachedDisk returns a disk with one blob, which may be evicted.
func cachedDisk(t *testing.T) (*disk, piece.ID) {
	t.Helper()
	root := t.TempDir()
	store, err := content.Open(t.Context(), content.Config{Root: root, FreeFloor: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	data := make([]byte, 1000)
	rand.NewChaCha8([32]byte{}).Read(data)
	id, err := piece.ParseID(digest.FromBytes(data).String(), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	sums := piece.NewSums(id)
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "imported")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Import(t.Context(), file, sums); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), digest.FromBytes(data)); err != nil { // into the cache
		t.Fatal(err)
	}
	return &disk{store}, id
}

// A blob that goes before or while its addition is announced does not stay announced.
func TestGoneBeforeAnnounced(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, while bool // it goes
		want          []string
	}{
		{"it stays", false, false, []string{"complete"}},
		{"it went before", true, false, []string{"gone"}},
		{"it goes meanwhile", false, true, []string{"gone", "complete", "gone"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, id := cachedDisk(t)
			trackers := &told{}
			lose := func() {
				if d.MakeRoom(t.Context(), 1) == 0 {
					t.Error("the blob was not evicted")
				}
				trackers.Gone(id) // as the store's observer does
			}
			trackers.announcing = func() {
				if tt.while {
					lose()
				}
			}
			if tt.before {
				lose()
			}
			announce(t.Context(), trackers, seeding.Store{Blobs: d.Store}, id, 1)
			if !slices.Equal(trackers.all, tt.want) {
				t.Errorf("told %q, want %q", trackers.all, tt.want)
			}
		})
	}
}
