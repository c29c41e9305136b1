// Package shim speaks the OCI distribution API to clients that are no part of
// Capelin, such as Docker.
//
// There are two servers. A [Mirror] is the node agent's: on loopback, pull only.
// It relays everything to the registry that the client means, credentials and
// challenges included, and keeps none of them; blobs alone come from the swarm,
// once the registry has said that this client may have them. A [Gateway] is a
// server's: push and pull, blobs in the origins and tags in the index, for users
// it authenticates itself. Start from [NewMirror] or [RunGateway].
//
// What a client sends is checked against the distribution API's grammar before
// anything follows from it. Everything is safe for concurrent use.
package shim
