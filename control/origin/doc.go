// Package origin is the vocabulary and the client of origins: what a blob and an
// upload are to them, and the HTTP API that control/ORIGIN.md specifies.
//
// Start from [Client]; package origind is the other side.
//
// # Errors
//
// Errors are containerd's errdefs classes, the same on both sides of the API
// ([Class], [ClassOf]), with a text that names the origin and the blob or upload.
//
//   - [errdefs.ErrNotFound]: the blob is certainly nowhere; or there is no such upload.
//   - [errdefs.ErrUnavailable]: no origin could say; try again.
//   - [errdefs.ErrFailedPrecondition]: no backend takes the namespace.
//   - [errdefs.ErrInvalidArgument]: it can never be accepted; the bytes have another digest.
//   - [errdefs.ErrOutOfRange]: an offset that is not the upload's, or is beyond the blob.
//   - [errdefs.ErrConflict]: somebody else writes to the upload at this moment.
//   - [errdefs.ErrResourceExhausted]: the disk is full; if it is [ErrBusy], too, there are too many uploads just now.
//   - [errdefs.ErrDataLoss]: what the backend has under the blob's name are other bytes.
//
// # Concurrency
//
// A Client is safe for concurrent use. Each call, and each Read of what Open returns,
// ends soon after its context. While it is being used, a Client asks origins now and then
// who they are, in a goroutine that ends within seconds, or with Close.
package origin
