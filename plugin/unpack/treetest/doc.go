// Package treetest compares trees of files, for tests of whoever makes them:
// [Describe] tells everything about a tree that a container could notice, and [Diff]
// what two of them do not have in common. It only reads, and keeps nothing.
package treetest
