// Package tracker is the agent's side of the control stream: it tells trackers
// what a node has and wants, and hands on what they answer.
//
// Start from [Client] and [Handler]. A Client keeps one stream to every tracker
// and remembers what the node announced, so that a tracker that was away hears
// it all again; each blob concerns two of them (package ring). What is
// remembered is bounded by what the node announces and wants.
//
// [Control] is the other client of a tracker: an operator's, which lists nodes and
// preheats them.
//
// The methods of a Client may be called at any time by anybody, before Run too;
// none blocks, and none calls the Handler. Run starts all goroutines and returns
// when they have ended. The protocol is in control/PROTOCOL.md.
package tracker
