// Command demo shows Capelin at work on one machine: three capelin servers (tracker,
// origin, index and gateway), whose origins are one ring, a registry behind a slow line, and three
// nodes, each with an unmodified containerd and a capelin agent, all of them with certificates.
// The nodes pull one image from the registry at the same time through the CRI API.
// Then one is pushed through the gateway, and pulled by its name there by all nodes,
// and by a Docker engine through an agent's shim. At last a server is killed in the middle of
// another push, and one in the middle of its pulls.
//
// With -cluster, there is no other registry: three servers keep tags and blobs in S3, one of them is killed while all nodes pull from
// it, and comes back with an empty disk.
//
// It ends with 0 only if everything that it says at the end is true.
package main
