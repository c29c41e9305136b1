// Package piece is the geometry of a swarm: how a blob is cut into pieces and
// how each piece is proven, in any order, with one SHA-256 (or SHA-512) pass
// over the whole blob.
//
// Start from [ID], which names a swarm by digest and size and answers every
// question about its pieces, and [Sums], the list of chaining states against
// which pieces are verified. [Bits] is a set of pieces.
//
// # Chained sums
//
// The sum of piece i is the hash's chaining state after the last byte of piece
// i. Piece lengths are multiples of the hash's block, so a state at a boundary
// is 32 bytes for sha256 and 64 for sha512, with nothing buffered. Piece i is
// verified by restoring state i, hashing the piece, and comparing the result
// with state i+1. State 0 is the hash's fixed initial state. The last piece
// must finish as the blob's digest. When every link has verified, the chain
// runs from the initial state to the digest, so the digest is proven and no
// second pass is needed. A [Claim] says that data is a piece; two of them are
// verified together in little more than the time of one ([VerifyBoth]).
//
// All types are values or are safe only for one goroutine at a time; nothing
// here blocks, logs, or does I/O.
package piece
