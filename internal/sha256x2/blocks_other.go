//go:build !amd64

package sha256x2

// Available: only x86-64 processors can.
const Available = false

func blocks(*State, *State, *byte, *byte, int) { panic("sha256x2: not available") }
