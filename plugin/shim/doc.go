// Package shim speaks the OCI distribution API to clients on the node that are no
// part of Capelin, such as Docker: on loopback, pull only. A [Mirror] relays
// everything to the registry that the client means, credentials and challenges
// included, and keeps none of them, nor the tokens that a gateway gives for them; blobs alone come from the swarm, once the
// registry has said that this client may have them, or, if each blob has to be
// authorized, has sent the end of each. Start from [NewMirror].
//
// What a client sends is checked against the distribution API's grammar before
// anything follows from it. Everything is safe for concurrent use.
package shim
