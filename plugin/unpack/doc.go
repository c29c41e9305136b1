// Package unpack writes image layers into snapshots: containerd's differ, fast.
//
// Start from [Layer], which applies one layer to one directory, and from
// [Applier], containerd's diff.Applier, which decides what Layer may do and leaves
// all else to containerd's own applier; [NewService] offers it over gRPC.
//
// # The tree
//
// The result is the tree that containerd's archive.Apply makes of the same
// bytes, oddities included: the tests compare the two. That holds for layers
// that fail as well, as far as anybody can see: they fail. What is in the
// directory after a failure is not defined, as there, and containerd throws the
// snapshot away.
//
// # How
//
//	blob ─► inflate ─► chunks ─┬─► SHA-256, the diff ID
//	                           └─► tar reader ─► directories, links, devices, large files
//	                                 (planner)  └─► small files, on workers
//
// Each box is a goroutine. Chunks are pooled, counted and bounded; contents are
// written to files straight from them. The planner keeps the order: before it touches a
// path it waits for the file that is being made there, and before it removes a
// directory for all files.
//
// # Confinement
//
// Nothing outside the directory is written or removed, whatever the layer
// says. Names are resolved by containerd's rules and then opened with
// openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS (see dirs). Linux 5.6 or
// later; where the call is missing, or in a user namespace, Applier leaves
// everything to containerd's applier. As there, a name that climbs out ("../x",
// "/x", or through a symlink) is not an error but means the place that it
// would mean if the directory were the root of the file system.
//
// # Panics
//
// The process that unpacks is also the content store of every container on the
// node, so a panic must not end it. All of the above runs below a recover, and a panic
// becomes a [PanicError]. The same holds for containerd's applier, except for the
// goroutines that its zstd decoder starts.
//
// # Memory
//
// A layer takes 6 MiB of chunks and its decoder, whatever the layer says: zstd with
// windows of more than 16 MiB is decoded in a process of its own, one at a time, which
// dies first if memory is short, and costs only that pull. (Where containerd's applier does
// the work it decodes here, with windows of up to 512 MiB.)
//
// # Concurrency and cancellation
//
// All functions may be called concurrently, for different directories. They
// return when every goroutine that they started has ended. Cancelling the
// context stops an apply within one chunk or one file, whichever is longer.
package unpack
