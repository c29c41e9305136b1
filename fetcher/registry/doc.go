// Package registry is a [fetcher.Backend] on another OCI registry, read only: what
// is pulled through Capelin comes from there.
//
// Start from [Open]. The key of a blob is "<repository>@<digest>", which the
// backend makes itself of a namespace ([Backend.Locate]), because a registry does
// not find a blob by its digest alone. [Backend.ResolveTag] and [Backend.Manifest]
// are for the index.
//
// # Hosts and credentials
//
// Where a registry is asked follows containerd's own rules, by containerd's own
// code (core/remotes/docker/config): hosts_dir is a directory such as
// /etc/containerd/certs.d, with mirrors, capabilities, certificates, headers and
// override_path per host in hosts.toml, or certificates as Docker lays them out.
// Basic and bearer authentication are containerd's authorizer, its credentials
// from a Docker config.json: "auths", "credHelpers" and "credsStore", whose helper programs
// are run. All of it is read again every few minutes, and when the registry refuses what
// there is, so that rotated secrets need no restart.
//
// With auth = "ecr" the host itself is told AWS's token instead, which package ecr has, and
// which only that host is told.
//
// # Requests
//
// The requests themselves (HEAD and GET of a blob or manifest) are made here, on
// containerd's hosts, and not by containerd's fetcher or by cuelabs' ociclient:
//
//   - The contract says that errdefs.ErrNotFound is certain. containerd's fetcher
//     and resolver report the 404 of a mirror even if the registry behind it did
//     not answer. Here it is the last host's word (hosts.toml: server) that counts.
//   - Ranges have an end, and their answers vary: some registries ignore a range,
//     which is made up for by skipping, and some answer 416 to one without an end, which
//     is asked for again with one. The fetcher knows no end; the client takes the answer
//     200 for the range.
//   - 429 and 503 say when to come back.
//   - ociclient hashes each byte; origins do so anyway.
//
// A mirror that fails is passed over at once. The last host is asked again, with
// growing pauses or those that it demands, for as long as Config.Retry allows. A
// reader whose connection breaks goes on where it was. Redirects take no credentials
// and no configured headers to other hosts. Bytes are not verified against the
// digest: a range cannot be, and whoever stores a blob does.
package registry
