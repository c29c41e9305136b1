// Package limit bounds how many bytes per second move between a process and a storage.
//
// [Rates] puts the limits around any fetcher.Backend, and is all there is. What it returns may be used by any goroutine, as the
// backend may.
package limit
