// Package content keeps blobs on disk in containerd's own layout, and takes
// them in piece by piece, in any order, each piece verified before it counts.
//
// Start from [Open] and [Store]. A Store is two things over one directory:
//
//   - containerd's content store. It implements containerd's content.Store with
//     the stock store's behaviour and format, so that a stock containerd can take
//     the directory over and give it back. What containerd calls under its own
//     locks (Info, Delete, Abort, Walk, ListStatuses) answers from memory, plus
//     at most a rename and a directory fsync; only while too little is free Delete
//     unlinks, as the stock store does.
//   - the swarm's disk. [Store.Blob] opens one digest for random access: peers'
//     pieces ([Blob.WritePiece]) and containerd's sequential downloads
//     ([Blob.Append]) share one state, so that the work of several pulls is done
//     once. [Blob.Complete] proves and syncs a blob, after which [Blob.Publish]
//     is a rename.
//
// FORMAT.md says what is on disk, what survives what, and how recovery goes.
//
// # Wrong bytes
//
// A piece that is found wrong ([Blob.Recheck], [Blob.ComputeSums], [Scan]) does not count any more. A whole blob is out of
// the swarm then; an origin, which has other copies to heal it from, goes on with the other pieces of what it has
// pinned ([Config].Wrong, [Blob.Heal]).
//
// # Concurrency
//
// Everything is safe for concurrent use, except one [Appender], which belongs
// to one goroutine at a time. Mutexes guard memory only. What is held over I/O is
// held per blob: by who completes it, by who replaces its map, by who renames or opens
// its files, and per piece by who hashes and writes it; Store says in which order.
// Open starts no goroutine; [Store.Run]
// does the work that nobody waits for: unlinking, eviction, checkpoints of
// have-maps, learning sizes. Without Run everything still works, but nothing is
// evicted except when the disk is full, or by a Delete below the free floor.
//
// # Room
//
// The cache and unfinished blobs may be evicted, unless somebody has them open with
// [Store.Blob]. Who opened a whole blob with [Store.Lend], to seed it, closes it when asked.
// They go when more is kept than [Config] says, when less is free, and on a full disk in the
// call that finds it full: first what nobody has open, the least recently used before
// others, then what is lent, and then what was fetched ahead. If that is not enough, the call
// waits for half a second while others have unfinished blobs open, and for some seconds while
// something is being given up. For a blob that is ([Blob.GiveUp]) nobody waits.
//
// # What it does not do
//
// It knows no peer, tracker, registry or ref syntax, decides nothing about what
// to fetch, and logs nothing: it returns errors and reports to an [Observer].
package content
