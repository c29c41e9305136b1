// Package indexdtest has a test of indexes that are processes of their own, for whichever storage they share. Start from [Several],
// which runs once at a time in a test. It knows no storage, and starts no process itself.
package indexdtest
