// Command mutate breaks the module in one place at a time, and says which test notices.
//
// There are two lists of places. The first is every call that syncs, found by the syntax
// tree and its types: fsync and fdatasync, what of ours is named so, and package
// durable's sequences, which become the same without their syncs. The second is
// decisions.txt: decisions that somebody named, with the text that undoes each.
//
// The tree is never touched: what is changed is an overlay of the compiler's. Each place
// is tried with the tests of its package, and a sync with those of all packages above
// that play power cuts (package disktest), until one fails. A place that no test notices
// is a decision without a test, or one without a reason: it is printed as SURVIVED, and
// the command fails.
//
// Start from main.go; sites.go finds the first list, decisions.go reads the second,
// try.go runs the tests. Places are tried at the same time, -j of them, each in a
// process of its own with a time limit.
//
//	make mutate                       # all of it, some minutes
//	make mutate ARGS='-run content/'  # some places
//	make mutate ARGS=-list
package main
