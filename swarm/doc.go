// Package swarm is the data plane: it moves the pieces of blobs between peers.
//
// Start from [Peer], the state machine that decides everything and does
// nothing (no goroutine, socket or clock: Step takes the time and an event and
// returns actions), and [Node], the thin shell that performs the actions with
// sockets and a disk. Package internal/sim performs them in virtual time instead.
//
// The Peer's files: peer.go (time, limits), peer_conn.go (whom to be connected
// with), peer_blob.go (joining, what is had and announced), peer_down.go (what to
// ask from whom, stalls, the end game, who is to blame), picker.go (rarest
// first), peer_zone.go (what comes in from other zones), peer_sums.go (which list of
// sums counts), peer_up.go (whom to send what). testdata/*.txt are conversations between Peers, to be read.
//
// The package knows no registry, no containerd and no daemon. It logs nothing:
// it returns errors and reports events.
package swarm
