package swarm

import (
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// A piece may be asked for twice, or one byte in 250.
func TestEndgameAffords(t *testing.T) {
	for _, tt := range []struct {
		size        int64
		spent, more int
		want        bool
	}{
		{1000, 0, 1000, true},
		{1000, piece.MinLength - 999, 1000, false},
		{10 * piece.MinLength, 0, piece.MinLength, true},
		{10 * piece.MinLength, 1, piece.MinLength, false},
		{1000 * piece.MinLength, 3 * piece.MinLength, piece.MinLength, true},
		{1000 * piece.MinLength, 4 * piece.MinLength, 1, false},
		{250 << 20, 1<<20 - 5, 5, true},
		{250 << 20, 1<<20 - 5, 6, false},
	} {
		g := endgame{spent: tt.spent}
		if got := g.affords(piece.ID{Alg: piece.SHA256, Size: tt.size}, tt.more); got != tt.want {
			t.Errorf("a blob of %d bytes, of which %d were asked for twice, affords %d more: %v", tt.size, tt.spent, tt.more, got)
		}
	}
}
