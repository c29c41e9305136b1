package ring

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Score returns how much key belongs to node: the first 8 bytes, big endian, of
// SHA-256(node || 0x00 || key). It is part of the protocol (control/PROTOCOL.md,
// "Which trackers"), because all agents must agree on it.
func Score(node, key string) uint64 {
	b := make([]byte, 0, 128)
	b = append(b, node...)
	b = append(b, 0)
	b = append(b, key...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}

// Top returns the n nodes with the highest scores for key, best first; fewer if
// there are fewer. Equal scores are ordered by name. Names must be distinct;
// their order does not matter.
func Top(nodes []string, key string, n int) []string {
	type scored struct {
		node  string
		score uint64
	}
	all := make([]scored, len(nodes))
	for i, node := range nodes {
		all[i] = scored{node, Score(node, key)}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.node, b.node))
	})
	top := make([]string, 0, min(n, len(all)))
	for _, s := range all[:min(n, len(all))] {
		top = append(top, s.node)
	}
	return top
}
