// Package swarm is the data plane: it moves the pieces of blobs between peers.
//
// Start from [Peer], the state machine that decides everything and does
// nothing (no goroutine, socket or clock: Step takes the time and an event and
// returns actions), and [Node], the thin shell that performs the actions with
// sockets and a disk. Package internal/sim performs them in virtual time instead.
//
// The Peer's methods are in peer_*.go, one concern a file: message (what others say), conn,
// dial and link (whom to be connected with), known (whom the tracker names), blob (joining and
// leaving), pieces and announce (what is had, and who is told), sums (which list of sums
// counts), down (what to ask from whom), attempt (pieces on their way), pace (how much at
// once, and stalls), endgame, blame, seats and zone (what comes in from other zones), up (whom
// to send what). What they decide by are small values with rules and tests of their own:
// keepalive.go, picker.go (rarest first), rate.go. testdata/*.txt are conversations between
// Peers, to be read.
//
// The package knows no registry, no containerd and no daemon. It logs nothing:
// it returns errors and reports events.
package swarm
