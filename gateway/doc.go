// Package gateway is the registry that is pushed to: it speaks the OCI distribution
// API, and keeps blobs in the origins and tags in the index, for users it
// authenticates itself. Start from [Run], or [New] for the http.Handler alone.
//
// A request is read by ociapi.Parse and done by one of endpoints: blobs.go, manifests.go, uploads.go and lists.go have
// what HTTP is about, store.go what may be done to repositories. What a client sends is checked against the
// distribution API's grammar before anything follows from it. Nothing of an upload is kept here: origins know where it stands, and
// whose it is. Everything is safe for concurrent use.
//
// # Who asks
//
// A caller is found out (who.go) from a user's password (users.go, which guesses.go lets through in turn), a token of a
// file's, one of an OIDC issuer's (oidc.go), one that a gateway of the cluster has given (tokens.go: the token service, with a
// key that the index keeps), or a certificate; rules (access.go) say what it may do. docs/access.md says it for operators.
package gateway
