// Package identity is who is who in a cluster: certificates, the roles in them,
// and the mutual TLS that everything between nodes and servers runs over once
// identity is configured.
//
// Start from [Config], which a role's configuration embeds, and [Load], which
// makes a [Source] of it: TLS configurations for servers ([Source.ServerTLS]),
// clients ([Source.ClientTLS]) and peers ([Source.PeerTLS]). [PeerID] says who is
// at the other end of a connection.
//
// # Certificates
//
// A certificate names its owner by URIs (subject alternative names), one per
// role:
//
//	spiffe://<cluster>/capelin/<role>/<name>
//
// All of them name the same cluster and the same owner; other URIs are ignored.
// Names are 1 to 253 of A-Z a-z 0-9 . _ -, and so are clusters, with at most 64.
// The certificate must chain to the cluster's CA and allow client authentication,
// and server authentication unless its only role is admin. Common names and DNS
// names play no part between Capelin's own programs; a gateway has them for
// Docker's and containerd's sake.
//
// [InitCA] and [CA.Issue] make such certificates, and `capelin ca` calls them. They
// may come from elsewhere as well: cert-manager (uris in a Certificate), or SPIFFE
// (X.509-SVIDs in files, if the SPIFFE IDs have the form above).
//
// # Concurrency
//
// A Source is safe for concurrent use. [Source.Run] reads the files again when they
// change; connections made from then on use what is in them. If the new files do
// not belong together, those read before stay in use. Sessions are resumed only by
// who would be accepted anew.
package identity
