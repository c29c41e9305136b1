package state

import (
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Stream names an agent's stream for as long as it lives. The driver numbers
// them; numbers are never reused.
type Stream uint64

// Event is one of the Ev types.
type Event interface{ event() }

type (
	// EvTick: the deadline that the last Step left has passed. It may come at
	// any time.
	EvTick struct{}

	// EvOpen: a stream began and its Hello was checked (trackerpb.CheckHello,
	// version, cluster). An older stream of the same node is closed.
	//
	// Its addresses are those that anybody is told. Machine names the machine that the
	// stream comes from; those on the same one are told Near instead, if there are any. From says
	// to people elsewhere where that is.
	EvOpen struct {
		Stream  Stream
		Hello   *trackerpb.Hello
		Machine string
		Near    []string
		From    string
	}
	// EvClosed: a stream ended. After ActClose it is not needed, and ignored.
	EvClosed struct{ Stream Stream }
	// EvBatch: an agent sent a batch, which was checked (trackerpb.CheckBatch).
	EvBatch struct {
		Stream Stream
		Batch  *trackerpb.FromAgent
	}
	// EvCommand: an operator has a command for a node.
	EvCommand struct {
		Node    string
		Command *trackerpb.Command
	}
)

// Action is one of the Act types. The driver performs them in order.
type Action interface{ action() }

type (
	// ActSend: send a message. The driver may append further messages for the
	// same stream to it, but parts of it (Peer) are shared with other messages
	// and must not be changed.
	ActSend struct {
		Stream  Stream
		Message *trackerpb.ToAgent
	}
	// ActClose: another stream of the same node took this one's place; end it.
	ActClose struct{ Stream Stream }
	// ActReport: something for logs.
	ActReport struct{ Report Report }
)

// Report is an event for logs. What is counted is in [Stats].
type Report struct {
	Kind ReportKind
	Node string
	ID   piece.ID
	Text string // an error's, or more detail
}

// ReportKind says what a Report is about.
type ReportKind uint8

// The kinds of reports.
const (
	ReportReplaced     ReportKind = iota + 1 // Node connected anew while its older stream still lived
	ReportGranted                            // Node got the lease of ID
	ReportMoved                              // Node lost the lease of ID because of Text
	ReportDone                               // Node has fetched ID from upstream
	ReportFailed                             // upstream failed Node on ID: Text
	ReportNobody                             // upstream failed too often on ID: Node, or every node if it is empty, is on its own for a while
	ReportMismatch                           // upstream sent Node something else than ID
	ReportHashConflict                       // Node claims other sums for ID than those pinned
	ReportHashReplaced                       // Node disproved the sums pinned for ID
	ReportNamesake                           // two machines have the name Node: Text says where; reported once an hour
	ReportFull                               // a limit (Text) was reached; reported once until it is no longer
)

func (k ReportKind) String() string {
	switch k {
	case ReportReplaced:
		return "node connected anew"
	case ReportGranted:
		return "lease granted"
	case ReportMoved:
		return "lease taken back"
	case ReportDone:
		return "lease done"
	case ReportFailed:
		return "lease failed upstream"
	case ReportNobody:
		return "upstream failed too often"
	case ReportMismatch:
		return "upstream sent something else"
	case ReportHashConflict:
		return "different sums claimed"
	case ReportHashReplaced:
		return "sums disproved"
	case ReportNamesake:
		return "two machines have one name"
	case ReportFull:
		return "limit reached"
	}
	return "unknown report"
}

// Stats are counters since the start, and gauges.
type Stats struct {
	Streams int // gauge
	Swarms  int // gauge: blobs known
	Entries int // gauge: pairs of agent and blob
	Wants   int // gauge
	Leases  int // gauge

	Announces     uint64 // announcements taken in, those answered by Enough included
	EnoughSent    uint64
	FullRefused   uint64 // announcements and wants refused because of a limit
	WantsSeen     uint64
	HashConflicts uint64
	HashReplaced  uint64
	Replaced      uint64 // streams replaced by a newer one of the same node
	Namesakes     uint64 // of those, by one whose place that had taken before: two machines have one name
	PeersTold     uint64

	Lookups       uint64 // blobs that origins were asked for
	LookupsFound  uint64 // an origin has it
	LookupsMissed uint64 // all said that they do not, or left
	LookupsLate   uint64 // some did not answer in time

	LeasesGranted    uint64
	LeasesAdded      uint64 // of those, beside a slow holder
	LeasesSelf       uint64 // downloads reported by agents that had no lease
	LeasesCompleted  uint64
	LeasesFailed     uint64
	LeasesCancelled  uint64
	LeasesUnstarted  uint64 // taken back, not started in time
	LeasesStalled    uint64 // taken back, no progress
	LeasesGone       uint64 // the holder's stream broke
	VerdictsSources  uint64
	VerdictsLease    uint64
	VerdictsNobody   uint64
	VerdictsWait     uint64
	UpstreamReported int64 // bytes that holders reported
}

func (EvTick) event()    {}
func (EvOpen) event()    {}
func (EvClosed) event()  {}
func (EvBatch) event()   {}
func (EvCommand) event() {}

func (ActSend) action()   {}
func (ActClose) action()  {}
func (ActReport) action() {}
