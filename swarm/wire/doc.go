// Package wire is the swarm's protocol between two peers: its messages, their
// encoding, and its limits. PROTOCOL.md beside this file is the specification.
//
// Start from [Message] and its types, [Append], which encodes one, and
// [Reader], which decodes a stream of them. A Block's data need not pass through
// either: [AppendBlockHeader] writes what precedes it, and a Reader reads it
// straight into memory of the caller's choice.
//
// Decoding never panics and never allocates beyond the stated limits, whatever
// the bytes. The package does no I/O of its own beyond the reader or writer it
// is given, and knows no state: which message may follow which is swarm's
// business.
package wire
