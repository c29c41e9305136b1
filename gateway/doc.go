// Package gateway is the registry that is pushed to: it speaks the OCI distribution
// API, and keeps blobs in the origins and tags in the index, for users it
// authenticates itself. Start from [Run], or [New] for the http.Handler alone.
//
// What a client sends is checked against the distribution API's grammar before
// anything follows from it. Everything is safe for concurrent use.
package gateway
