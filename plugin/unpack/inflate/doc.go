// Package inflate reads gzip streams (RFC 1951, RFC 1952), faster than
// compress/gzip does: an image layer's bytes go through it once per node, and on
// most nodes that is the larger half of a pull.
//
// What makes it faster: 64 bits of input at a time and no check per bit; tables
// of 2^11 entries of which one may stand for two literals; copies in steps of 8
// bytes; and all checks for space once per symbol, because input and output
// buffers have slack behind them. There is no unsafe code: an index that a
// hostile stream could bend would panic, not read or write elsewhere, and the
// fuzz test compares with compress/gzip.
//
// A [Reader] accepts what gzip.Reader of the standard library accepts, concatenated
// members included, but for reserved flags in a header, which containerd's decoder refuses.
package inflate
