// Package seeding bounds how many whole blobs a node keeps open for the swarm, and for
// how long: what is open cannot be evicted, and takes a file descriptor. Agents and
// origins open a blob when a peer first wants it, so leaving one too early costs no
// more than opening it again.
package seeding
