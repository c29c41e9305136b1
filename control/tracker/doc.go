// Package tracker is the agent's side of the control stream: it tells trackers
// what a node has and wants, and hands on what they answer. The protocol is in
// control/PROTOCOL.md.
//
// Start from [Client] and [Handler]. A Client keeps one stream to every tracker
// and remembers what the node announced, so that a tracker that was away hears
// it all again; each blob concerns two of them (package ring). What is
// remembered is bounded by what the node announces and wants.
//
// # How it is made
//
// [Machine] is a value that decides everything: Step(now, event) → actions. It has
// sub-states of one concern each: want (what two trackers' answers come to), peers (who
// named whom), outbox (what a tracker has not heard yet), calls (what the Handler has
// not taken yet), schedule (deadlines). Client is the shell around it: streams, pauses
// between them, look-ups of names, one timer. Simulators and tests drive a Machine in
// virtual time.
//
// The stream to a tracker is away, being connected with, or up:
//
//	         EvConnected
//	away ─────────────────► up      the Machine tells all it has, and asks for all it wants
//	  ▲                     │
//	  └─────────────────────┘       it forgets what the tracker said, and who it named
//	       EvDisconnected
//
// Each of the two answers to a wanted blob is in one of these states (see answerState):
//
//	unasked ── the stream is up ──► pending ── Verdict of the same seq ──► given
//	                                  │                                      ▲
//	                                  └─ late, and the second is asked ─► abandoned
//
// # Concurrency
//
// The methods of a Client may be called at any time by anybody, before Run too;
// none blocks, and none calls the Handler: each is one Step under a mutex, under which
// nothing waits. Run starts all goroutines and returns when they have ended; one of them
// calls the Handler, whose methods may call the Client. Messages and calls are made
// when they can be taken, one at a time, so that what has come together meanwhile goes
// together, and a verdict that is out of date is never told.
//
// # What it does not do
//
// It keeps nothing on disk, moves no bytes of blobs, and believes nothing of what it is
// told: that is the swarm's business. [Control] is the other client of a tracker, an
// operator's, which lists nodes and preheats them.
package tracker
