// Package plugin is the node agent: containerd's content store with a swarm
// behind it.
//
// Start from [Config] and [Run]. Inside, the content service (service.go,
// write.go) speaks containerd's gRPC API; a session (write.go) is one Write
// stream on a ref that belongs to the swarm. What happens to a blob while sessions wait
// for it or write it is package fetch's; blobs.go has the sessions of the registry shim, which
// download themselves. prefetch.go remembers the order of an image's layers, seed.go
// offers what the node has, and admin.go tells people about it.
//
// # What containerd may rely on
//
// Opening a writer, Info, COMMIT, Delete, Abort, List and ListStatuses run under
// containerd's locks and answer from memory, or after one rename and directory
// fsync. The one call that waits is the STAT between a session's opening and its
// first WRITE or COMMIT, and its answer is final. Refs that do not belong to the
// swarm ([parseRef]) are served by containerd's own contentserver.
//
// # The beginning and the end
//
// containerd gives a connection a second to stand, and fails calls at once when it does not. So
// the socket is answered first (door.go), before the store is open, and calls wait for
// that; and it is answered until nothing is under way that takes long, since neither a download nor an
// unpacking can be handed to the next agent. A restart fails no call, and a kill only those that
// it cut off.
//
// Everything runs below [Run], which returns when all of it has ended.
package plugin
