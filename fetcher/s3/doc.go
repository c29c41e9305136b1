// Package s3 is a [fetcher.Backend] in a bucket of AWS S3, or of a storage with the same API: Ceph, SeaweedFS, MinIO, R2,
// versitygw.
//
// Start from [Open]. All methods may be called concurrently, by any number of processes.
//
// Requests are AWS's library's (aws-sdk-go-v2): signatures, credentials from all the places where AWS's tools look for them,
// and the same request again after an error that may pass, five times in all. Objects are cut into parts by
// package parts rather than by the library's transfer manager, because one budget of memory is for all uploads, and because
// of what happens at the end of a failed one (below).
//
// # How objects lie
//
// An object's name is the prefix and its key. Its metadata capelin-write is a random name of the write that it is from; objects that
// were put there by other means have none, and are objects like any. What has more than 16 MiB is a multipart upload: in parts of one
// size (some storages want that), 16 MiB or as much as makes 9,000 parts of it.
//
// # Requests
//
//	Stat     GET of the first byte                                        1; 2 of an empty object
//	Open     GET                                                          1; and 1 each time that the connection breaks
//	Write    PUT, up to 16 MiB                                            1
//	         POST, a PUT for each part, POST                              2 and the number of parts
//	WriteIf  PUT with If-Match or If-None-Match                           1
//	List     GET                                                          1
//	Delete   DELETE                                                       1
//	Check    a list of one object, and GET of an object that is not there 2
//
// Stat asks for a byte and not by HEAD, whose answer has no text: a bucket that is not there, or whose server has lost its
// file system, would be taken for an object that is not there.
//
// # Answers that are lost
//
// A PUT with a condition that was not answered, or by a 5xx, may have been done: then the next try is refused by the condition (412).
// So is the end of a multipart upload (404, there is no such upload). What is there says which write it is from.
// A condition that met another request (409) is tried again.
//
// # Reading
//
// A reader gives bytes of one version: it reads on, where a connection broke, under the condition that the ETag is the same (If-Match).
//
// # Versions
//
// A version is an ETag. It comes back with its bytes (Capabilities.Generations is false).
//
// # What a crash leaves
//
// An upload that has not ended is not visible, but costs space. Who fails to write aborts it, also after the end of the context;
// after a crash it stays. Once a day, when a large object is written, uploads of blobs are aborted that are
// older than 24 hours by the storage's clock. Buckets can have a rule for the same (AbortIncompleteMultipartUpload).
//
// # Bounds
//
// A request by which nothing moves for a minute is given up; the end of an upload may take 15, because some storages copy all
// of it. An answer that is not an object is read up to 16 MiB, a refusal up to 64 KiB.
package s3
