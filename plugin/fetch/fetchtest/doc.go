// Package fetchtest has what stands around fetches in tests: a disk in memory ([Blobs]), a
// swarm ([Peers]) and trackers ([Finder]) that do as a test says and note what they are
// told, and a [World] of all three in a synctest bubble.
//
// All methods may be called at any time, by anybody.
package fetchtest
