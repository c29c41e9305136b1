// Package sha256x2 hashes two streams with SHA-256 at once, which takes an x86-64
// processor with the SHA extensions little more time than one: its rounds wait for each
// other, so half of them can belong to somebody else.
//
// It is crypto/sha256's compression function ([Blocks]), for whoever has chaining states
// and whole blocks in the hand. Whoever has not, or runs where it is not [Available],
// uses crypto/sha256. Calls keep no state and may run concurrently.
package sha256x2
