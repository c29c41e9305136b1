// Package fetchertest holds storage backends to their contract, and has what tests
// of their users need.
//
// [Run] is the conformance suite. [RunFaults] is the one for storages that fail: it has a [Proxy] before the storage's
// HTTP server refuse, cut and lose requests and answers. [Memory] is a backend without a disk. [Slow], [Faulty] and [Counting] put
// limits, failures and counters around any other; they may be stacked in any order, and pass on a fetcher.Locator.
package fetchertest
