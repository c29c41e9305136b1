// Package hdfs is a [fetcher.Backend] in a directory of a Hadoop file system, over the HTTP of its namenodes and datanodes
// (WebHDFS), or of an HttpFS before them. Requests are net/http's own: the API is small, and the one Go client for Hadoop's
// RPC (colinmarc/hdfs) cannot rename over a file. Tickets of Kerberos are gokrb5's.
//
// Start from [Open]. All methods may be called concurrently, by any number of processes too.
//
// # Namenodes
//
// One is active, others are in standby, gone or starting; requests go to the one that answered last, and on to
// the next when it does not answer, or says that it is in standby; after all of them there is a pause, and so on for Config.Retry. With
// Kerberos each has a delegation token, which is fetched with a ticket, and again if it is refused.
//
// # What is there
//
//	<path>/blobs/sha256/ab/abcd…   objects; see names.go for what becomes of other characters
//	<path>/_tmp/<random>           what is being written, or was when somebody died
//
// Only regular files are objects. Directories that have become empty stay.
//
// # A write
//
//	CREATE _tmp/X     at the namenode, which names a datanode; there the bytes go. A datanode that takes none is replaced by another
//	GETFILESTATUS     is all there? An answer that was lost is found out about here
//	RENAME OVERWRITE  in one step; if a directory is missing, MKDIRS, and again
//
// If the last answer is lost, the temporary file is looked for: when it is gone it was renamed. If there is no answer at all it is
// removed, after which it cannot be renamed any more, and what is at the object's path tells.
// Temporary files that are a day old by the namenode's clock are removed by the next write, every six hours.
//
// Datanodes sync a block when it ends, because the file is created with SYNC_BLOCK, and a namenode syncs its log before it answers.
// HttpFS passes SYNC_BLOCK on to nobody, and does not rename over a file: there, a write to a name that has other bytes is
// [errdefs.ErrFailedPrecondition].
//
// # A read
//
// GETFILESTATUS tells the number of the file's inode, which is never used again, and OPEN reads that inode: no reader gets bytes
// of two versions, and one whose connection breaks goes on where it was. Where there are no inodes (a router), the
// path is read, and looked at again after it was opened.
package hdfs
