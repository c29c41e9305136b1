// Command bench-swarm measures the swarm at the machine's speed: one agent that has a
// blob and 1 to 32 agents that want it, all real processes that speak over one loopback
// interface without any limit, plain or with TLS, with their blobs in memory or on a disk.
// Beside it stands what the machine does at most, in the same run: the floor.
//
// The last line is all figures as key=value.
package main
