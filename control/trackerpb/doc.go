// Package trackerpb is the generated code of tracker.proto, the stream between
// agents and trackers, and of control.proto, what operators ask of a tracker. Their
// meaning is in control/PROTOCOL.md; the clients are package control/tracker, the
// other side is package trackerd. [FromID] and [Blob.ID] convert names of blobs;
// [CheckHello], [CheckBatch], [CheckBlobs] and [CheckSelection] are the limits that
// a tracker enforces before it looks at a message.
package trackerpb

//go:generate sh generate.sh
