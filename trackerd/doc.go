// Package trackerd is the tracker: a gRPC server that tells agents who has the
// blobs they want, and which one of them may fetch from upstream.
//
// Start from [Run] and [Config]. All decisions are made by package
// trackerd/state; this package is its sockets, clock and metrics. Run starts
// everything, and returns when all of it has ended: when its context is
// cancelled, or when a listener fails. Nothing is kept on disk; a restarted
// tracker is full again once agents have announced anew (control/PROTOCOL.md).
//
// With identity (internal/daemon/identity) the port is mutual TLS, and a node can announce
// only itself. Without, everybody who can connect takes part, so that it listens
// on loopback unless the configuration says that this is meant.
package trackerd
