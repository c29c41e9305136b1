// Package httpclient is what the clients of HTTP servers have in common: which of
// several servers is asked, when one is asked again, when a transfer has stalled, and
// errors that name the server and what it was asked for. What a request is, and what
// an answer means, each client knows itself.
//
// Start from [Client], for those who talk to Capelin's own servers; [Stall] is for
// everybody who moves large bodies.
//
// # Asking again
//
// [Client.Turns] hands out the servers in the caller's order, but those that have just
// failed to answer after all others: for a second first, twice as long with each
// failure, half a minute at most. If no server is there at all (it refuses the connection,
// or breaks it off), it hands them out again after a pause, three times within a second or
// so, for servers that are being restarted; but only to a caller whose request may be
// carried out twice. A server that answers "unavailable" is there, and so is one that is
// slow or refuses a certificate.
//
// # Time
//
// A request without a large body has a time in which it must be over ([Within]). A
// transfer may take as long as it likes, but not stand still: [Stall].
//
// A connection to a machine that has vanished (its power, its cable) ends within about 5 s, be it used or idle, as nobody
// acknowledges what is sent; one to a server that is slow does not.
//
// # Concurrency
//
// A Client is safe for concurrent use and starts no goroutine of its own.
package httpclient
