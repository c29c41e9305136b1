// Package swarmtest helps to test what moves blobs: a [Store] in memory or in
// files, blobs with known bytes ([Bytes]), a peer that speaks exactly what a
// test tells it to ([Conn]), and an in-memory network ([Network]).
package swarmtest
