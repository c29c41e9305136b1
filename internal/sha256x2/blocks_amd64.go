package sha256x2

// Available reports whether the processor has the SHA extensions, and SSSE3 and SSE4.1.
var Available = func() bool {
	const ssse3, sse41, sha = 1 << 9, 1 << 19, 1 << 29
	if leaves, _, _, _ := cpuid(0, 0); leaves < 7 {
		return false
	}
	_, _, cx, _ := cpuid(1, 0)
	_, bx, _, _ := cpuid(7, 0)
	return cx&ssse3 != 0 && cx&sse41 != 0 && bx&sha != 0
}()

func cpuid(leaf, sub uint32) (ax, bx, cx, dx uint32)

// blocks hashes n blocks of each stream, at least one.
//
//go:noescape
func blocks(a, b *State, p, q *byte, n int)
