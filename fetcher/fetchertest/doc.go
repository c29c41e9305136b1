// Package fetchertest holds storage backends to their contract, and has what tests
// of their users need.
//
// [Run] is the conformance suite. [Memory] is a backend without a disk. [Slow],
// [Faulty] and [Counting] put limits, failures and counters around any other; they
// may be stacked in any order, and pass on a fetcher.Locator.
package fetchertest
