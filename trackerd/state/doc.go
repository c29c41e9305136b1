// Package state is a tracker without its sockets: who has and who wants which
// blob, whom to tell, and who may fetch from upstream (the protocol is
// control/PROTOCOL.md).
//
// Start from [Tracker]. It is a plain value with one method that changes it:
// [Tracker.Step] takes the time and an event and returns what to send and which
// streams to close. There is no clock, no I/O, no goroutine and no lock in
// here, and equal events with equal seeds give equal actions, so the same code
// runs under trackerd's gRPC server and in virtual time. A Tracker is for one
// goroutine at a time.
//
// Everything is soft state of bounded size ([Config], the Max fields): what an
// agent announced lives as long as its stream, and what the tracker does not
// keep it says so, with Enough.
package state
