// Command bench-tracker measures what a real tracker needs for a large cluster: its
// memory with as many live streams as there are agents, each of which has announced its
// blobs, and how long it takes until it knows all of them again after a kill -9, and of
// processor time.
//
// Half of an agent's blobs are everybody's, half those of one group out of twenty. The
// agents are in this process and on this machine, which the tracker has for itself in a
// cluster: they do as little as they can to send what an agent sends. The last line is
// all figures as key=value.
package main
