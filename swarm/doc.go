// Package swarm is the data plane: it moves the pieces of blobs between peers.
//
// Start from [Peer], the state machine that decides everything and does
// nothing (no goroutine, socket or clock: Step takes the time and an event and
// returns actions), and [Node], the thin shell that performs the actions with
// sockets and a disk. Package internal/sim performs them in virtual time instead.
//
// The Peer's methods are in peer_*.go, one concern a file: message (what others say), conn,
// dial and link (whom to be connected with), known (whom the tracker names), blob (joining and
// leaving), pieces and announce (what is had, and who is told), sums, down (what to ask from
// whom), attempt (pieces on their way), pace (stalls), endgame, blame, seats, zone, failures
// (sources that do not deliver), up (whom to send what).
//
// What they decide by are small values, each with its fields, its rules and its tests, which
// know no Peer. A blob is made of sumList (which list of sums counts), knownPeers, seats (who
// is downloaded from) and a picker (rarest first), zoneShare (what comes in from other zones),
// flight, blame (who sent a wrong piece), endgame, announcing (who is told of new pieces when),
// sendCounts, arrivals and rechecks; a conn of pipe (what is asked of its peer), outbox (what it
// is sent), swarms (handles), keepalive and sumsAllowance; a link has news, sumsQuery and
// sumsFeed. What all share is in downlink (windows, memory, patience), uplink (admission,
// order) and failures (which nodes have failed as sources, beyond blobs and
// connections). The comment on each type says to whom it belongs and who changes it.
//
// testdata/*.txt are conversations between Peers, to be read. The Node's files are node*.go,
// handshake.go, sender*.go, receiver*.go and sockets*.go.
//
// The package knows no registry, no containerd and no daemon. It logs nothing:
// it returns errors and reports events.
package swarm
