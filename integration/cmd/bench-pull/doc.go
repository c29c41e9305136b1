// Command bench-pull measures how long a node takes to pull an image: one with a stock
// containerd from an ordinary registry, and one with Capelin from a warm swarm of four
// nodes, in turn, each on a fresh node with cold caches, over links of the same rate.
//
// It prints medians and ratios, and beside them the floors of the same run: the
// download alone, and the unpacking of files that are there alone, by the agent's code.
// With many small images that nobody has there is no swarm to help; the floor there is a
// plugin that passes containerd's calls on to containerd's own content store.
// The last line is all of them as key=value.
package main
