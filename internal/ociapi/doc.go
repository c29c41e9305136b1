// Package ociapi is what both servers of OCI's distribution API need, the gateway
// and the node's shim: errors with a status of their own, and patience with
// bodies that have no size a timeout could be made for. Start from [Patient] and
// [WithStatus]; both are safe for concurrent use.
package ociapi
