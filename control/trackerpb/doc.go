// Package trackerpb is the generated code of tracker.proto, the stream between
// agents and trackers. Its meaning is in control/PROTOCOL.md; the agent's side
// is package control/tracker, the other is package trackerd. [FromID] and
// [Blob.ID] convert names of blobs; [CheckHello] and [CheckBatch] are the
// limits that a tracker enforces before it looks at a message.
package trackerpb

//go:generate sh generate.sh
