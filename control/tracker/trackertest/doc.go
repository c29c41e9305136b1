// Package trackertest has what tests of trackers and of their clients share: [Net], a
// network in memory that works in a bubble of testing/synctest. Its methods may be called
// by any number of goroutines. It has no trackers: tests run trackerd's, or one of their
// own.
package trackertest
