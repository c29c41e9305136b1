// Package benchkit is what the benchmarks of whole clusters have in common: medians
// and percentiles, how busy the machine was, the floors that need no swarm, and how
// results are printed.
//
// Start from [Figures], the named numbers of a run, and [Now], which says whether the
// machine had anything else to do meanwhile. A Figures is for one goroutine at a time;
// everything else may be called concurrently. It starts no processes: package harness does.
package benchkit
