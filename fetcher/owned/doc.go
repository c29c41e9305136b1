// Package owned has a storage know which cluster it belongs to, and who it is.
//
// [Storage] is a fetcher.Backend around another one, which has the object [Key]: the name of the cluster and an id. Whoever
// writes first creates it, by compare-and-swap. A storage of another cluster is refused: two clusters that write into one storage delete
// each other's blobs and overwrite each other's tags. The id is by chance: so members of a ring can compare whether they all
// have the same storage.
//
// A storage without compare-and-swap (HDFS) may be given two ids by two that are the first at the same time; one of them
// stays, and both find that out when they Check. Where the object may not be read, or not be created, the storage is used without it.
//
// A Storage may be used by any goroutine. It is not known here what a storage has beside that, nor who of a cluster uses it
// (fetcher/moving).
package owned
