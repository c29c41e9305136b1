// Command bench-sources measures what a pull costs when those who are said to have an image
// do not deliver it: unreachable, slow, limited, lost or lying peers, and registries that
// cannot continue. Each scenario is measured with a stock containerd, with the tree's
// binary and, with -against, with another one, in turn, each in a cluster of its own.
//
// It prints one table with the goal of each row, most of them relative to stock, and
// whether the tree's binary meets it. The last line is all of it as key=value.
package main
