// Package image moves, lists and inspects images for people: it is what the
// "capelin image" commands do.
//
// Start from [New] and [Client]. A [Place] says where an image is: in a registry, an
// OCI layout directory, or an archive of one or of docker save; [Client.Copy]
// brings it from one place to another, [Client.Inspect] returns its [Manifest]
// tree, [Client.Repositories] and [Client.Tags] list a registry, and [Preheat] has
// a cluster's nodes fetch the blobs of such a tree. [Client.Tag], [Client.Remove] and
// [Client.Tree] change names and show what refers to an image; [Client.Login] keeps a login.
//
// Registries are spoken to with the credentials of Docker's configuration
// (~/.docker/config.json and its helpers), and with a client certificate if one is
// given. A Client may be used by any number of goroutines at once; what it returns
// belongs to the caller. Everything ends with its context. Nothing is retried that
// go-containerregistry does not retry.
package image
