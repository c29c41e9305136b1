// Package backends makes storage backends of their configuration, and finds the one
// that a namespace belongs to.
//
// A [Storage] is one, whoever uses it; an [IndexStorage] one that can keep an index. An
// origin's configuration has a list of [Config], as [[backend]] tables; [Check] validates it,
// [OpenSet] opens all of it, and [Set.Match] finds the first whose patterns match a namespace.
// [Open] opens one.
//
// A [Set] does not change, and may be used by any goroutine; it closes its backends when
// it is closed. What a backend does is not known here: that is fetcher.Backend's contract.
package backends
