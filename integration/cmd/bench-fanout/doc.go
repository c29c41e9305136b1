// Command bench-fanout measures how long it takes until N nodes have a blob that one
// origin has: real agents, each on a host with a network namespace of its own, over links
// whose rate is limited both ways. The ideal is one plain HTTP download of the same bytes,
// alone, over the same link, in the same run.
//
// The floor is what the machine makes of the same bytes over the same links without a
// swarm: every node at once downloads the blob from its neighbour, with nothing but what any
// program has to do (benchkit.SendFile, benchkit.ReceiveFile), in one process.
//
// The last line is all figures as key=value. A run in which the machine was busy for more
// than 80 % of the time measures the machine: it is void, and the command fails.
package main
