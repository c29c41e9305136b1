// Package memnet is a network in memory, for tests of HTTP clients in bubbles of
// testing/synctest, in which time is virtual.
//
// Start from [New]. A Network is safe for concurrent use. It has no delays and loses
// nothing; nobody listens at an address that nobody serves.
package memnet
