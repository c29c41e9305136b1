//go:build !amd64

package sha256x2

const available = false

func blocks(*State, *State, *byte, *byte, int) { panic("sha256x2: not available") }
