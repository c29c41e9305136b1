// Package ociapi is what both servers of OCI's distribution API need, the gateway
// and the node's shim: which request is for what, errors with a status of their own, an answer
// whose header waits for its body, and patience with
// bodies that have no size a timeout could be made for. Start from [Parse], [WriteError], [Late] and
// [Patient]. All but a Late is safe for concurrent use.
package ociapi
