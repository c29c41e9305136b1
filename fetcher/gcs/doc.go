// Package gcs is a [fetcher.Backend] in a bucket of Google Cloud Storage.
//
// Start from [Open]. An object's name is its key, after the configured prefix. All methods may be
// called concurrently, by any number of processes.
//
// # Library
//
// google.golang.org/api/storage/v1, generated from the JSON API: it makes a capelin 3.0 MB larger and its
// start-up memory 2.7 MB, and cloud.google.com/go/storage, which brings gRPC's storage client and OpenTelemetry's
// exporters, 18.4 MB and 13.7 MB. It has no reader that goes on after a break (internal/httpobject does), and repeats no
// request by itself. Credentials are cloud.google.com/go/auth's: the application default credentials,
// workload identity included, or a file; tokens go to the endpoint only.
//
// # Requests
//
//	Stat             1
//	Open             1, and 1 more for an empty range
//	Write, ≤ 8 MiB   2: which generation is there; the object
//	Write, larger    1, and 1 for each 8 MiB, one after the other
//	WriteIf          1
//	List             1 for each 1,000 objects
//	Delete           2
//	Check            2
//
// All writes together hold in memory what the key memory says. A request that failed is sent up to 6 times, with
// growing pauses.
//
// # Versions
//
// A version is the object's generation, which is a new one at each write. Writes and deletions are conditional on it, so
// that a request that is repeated because its answer was lost does not undo what others did meanwhile; only
// an upload in chunks is not, whose session cannot be carried out twice. Each write puts a nonce into the object's
// metadata (capelin-write): whether an object is its own after an answer was lost, it reads there. If somebody else's
// is there then, a compare-and-swap was lost, though it may have been done before that.
//
// The storage takes one write of a name per second, and answers 429 to more: those are repeated with
// growing pauses.
//
// # Crashes
//
// An object is there when its last byte is, never before. An upload in chunks whose process ends, or whose
// source fails, leaves nothing that can be seen; the storage removes it after a week.
package gcs
