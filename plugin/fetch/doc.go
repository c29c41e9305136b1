// Package fetch is what happens to blobs while containerd waits for them: the swarm is
// joined, trackers are asked, and each session that waits is answered, with all of the
// blob or with the offset from which its client has to download itself.
//
// Start from [Machine], which decides: a value, Step(now, event) → actions, for all blobs
// of an agent. There is no goroutine, clock, lock or I/O in it, so that internal/sim/fetchsim runs
// many of them in virtual time. policy.go has the rules by which a session is
// answered, as a pure function. [Fetches] is the shell: one goroutine owns the Machine,
// and one for each open blob does what may block, in the order in which it was decided.
//
// # A fetch
//
// There is one for each blob that a session has open or that is fetched ahead. It is
//
//   - opening: its blob is opened on disk. Nothing is decided before.
//   - under way: sessions wait or write. It takes part in the swarm, to take while
//     somebody waits or a prefetch is under way, or only to give while a session
//     writes; and it wants the blob of the trackers, as one that waits or one that
//     would take what there is.
//   - whole: the disk says that it has all of the blob. Nothing else says so: not the
//     swarm, which stored it, nor a session, which wrote it. Their word is a reason to look.
//   - failed: the disk cannot take the blob. Every session is told so.
//   - over: no session has it open, and there is nothing (more) to be fetched ahead. A whole
//     blob is left to whoever seeds; what is of no more use is given back: the part of a blob that
//     failed, or that came by another way. If the blob is opened again, it is a new
//     fetch, and the shell opens its blob after it has closed the old one.
//
// The lease to fetch it upstream is none of this node's, granted (a tracker said so and no
// session has taken it), or taken by one session. It ends in one place, once: when its
// session has ended its writing, when nobody waits who could take it, or at once if there
// is no fetch.
//
// # A session
//
// It is one client that has the blob open: a Write stream of containerd's, or a reader of
// the registry shim. It is
//
//   - idle: it was opened and has not asked, or it was told that all is there, or its writing
//     has ended;
//   - waiting: it asked, and has no answer. An answer is final: the offset from which it
//     writes, or the blob's size. It waits while somebody could deliver, bytes keep
//     coming, and the registry would not be done sooner (see policy.go), never without a
//     deadline;
//   - writing: it was told an offset below the size, and maybe that it has the lease, and
//     has not ended.
//
// Ending ends waiting or writing, whichever it is by then: an answer and its client's
// going away may cross. Closing ends it as well.
//
// # Doubt
//
// While somebody has sent a piece that does not verify, and nobody has sent it right, what
// the swarm has stored may be false. It is of use as long as the swarm goes on. A session that
// would have to continue behind it is answered when it is forgotten (ActEmpty): containerd reads
// what it stores only when the whole blob is there, so the pull would fail at its end.
//
// The same holds where trackers tell of holders of leases with another registry than the
// session's, as long as nothing is proven: whoever may name a registry may name one that lies. A
// session waits for what these bring no longer than for nothing at all (policy.go), and goes on from the
// beginning. And when a holder finds that its registry sent something else, what has come
// is forgotten at once, and taken anew from others.
//
// # Answers to other questions
//
// What comes back names what it answers. Each Want has a number, and only a verdict with the
// last one counts: «nobody has it», said of a prefetch, is no answer to a session that has
// begun to wait. Each ActJoin has one, too, and only the end of the last one counts: an end
// that crosses with a join, which begins anew, is nothing to that. What disk and swarm say
// besides names the opening of the blob (a fetch's number); and what the swarm said of its
// peers before news that it had to hear first (other peers, a verdict) decides nothing: it is
// asked again.
//
// # Concurrency
//
// The methods of Fetches and [Session] may be called at any time. None but [Session.Wait]
// and [Session.Blob] blocks: they leave a note for the goroutine of [Fetches.Run], or read
// what it published, so that what runs under containerd's locks does not wait for anybody. Run returns
// when everything that it started has ended.
//
// What this package does not do: it knows no containerd and no registry (sessions write),
// stores nothing, and connects to nobody; it says what it needs of those who do ([Blobs],
// [Peers], [Finder]).
package fetch
