package ringstate

import (
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// An Ask is what a member asks another one. Answers may be lost, late, or of a member
// that has lost its disk since.
type Ask interface {
	// Digests are the blobs that it is about: what is here of them comes with it in
	// [EvAsked.Local].
	Digests() []digest.Digest
}

// An Answer is what an Ask is answered with. The same holds for its Digests, and [EvAnswered.Local].
type Answer interface{ Digests() []digest.Digest }

// Probe is asked of every member all the time.
type Probe struct{}

// Status answers a Probe: all that a member says of itself and of the others.
type Status struct {
	Name, Addr, Zone string
	Clock            record.Stamp
	Time             record.Stamp // of day, whatever others say; 0: it does not say
	Order            Order
	Replicas         int
	MinReplicas      int
	Mode             Mode
	ModeAt           Order // when it was last changed
	Starting         bool
	View             View
	LogHead          uint64 // the number of the last entry of its deletion log
	Members          []MemberView
	Removals         []Removal
	Lost             []Lost
	Whole            Whole
	Under            int   // pinned blobs that it cannot prove to be at all their owners
	Exchanged        Order // when it last compared with that owner with whom it did so least lately
	Full             bool
	Storages         []Storage // behind its backends, as far as it knows them
}

// Storage is the storage behind a backend.
type Storage struct {
	Backend string // its name in the member's configuration
	ID      string // of the storage, which has no other one
}

// MemberView is what a member says of another one, or of itself.
type MemberView struct {
	Name, Addr, Zone string
	Incarnation      uint64
	Mode             Mode
	ModeAt           Order
	Heard            bool   // it has itself heard of it lately
	Gone             bool   // nobody has for a long time
	Read             uint64 // how far whoever says so has read its log
	ReadBy           uint64 // and it theirs
}

// ReadLog asks for the entries of a deletion log after a number.
type ReadLog struct{ After uint64 }

// Deleted has a member take an entry into its log.
type Deleted struct {
	Entry record.Deletion
	Erase record.Place // if it has a key: the member is to erase what is there, too
}

// LogPage answers ReadLog. Whoever sends it reads the file.
type LogPage struct {
	First   uint64 // the number of the first entry that is still there; of the next one if there is none
	Next    uint64 // where to go on: the number of the last of Entries; without any, that before First at least
	Entries []record.Deletion
}

// Took answers Deleted: the entry is in the log, durably.
type Took struct {
	Seq    uint64         // its number in that log
	Record *record.Record // merged
	Heard  []string       // whom that member has heard lately
}

// Replica asks a member to have a blob pinned. The shell of whoever asks puts the blob's
// record in, as it is when it sends this.
type Replica struct {
	Digest  digest.Digest
	Record  *record.Record
	View    View
	Sources []string // who has it
	// Put: a client waits for it. Urgent: there are fewer than min_replicas. Either is no
	// matter of views and owners.
	Put, Urgent bool
}

// Replied answers Replica.
type Replied struct {
	Code   Code
	Owner  bool // in the view that was asked for, which is its own, too
	Record *record.Record
}

// Code says how a Replica is taken.
type Code uint8

const (
	CodeLater   Code = iota // not now: another view, starting, too much to do
	CodePinned              // it is pinned, durably, with Replied.Record
	CodeTaking              // it is being fetched, or is about to: ask again
	CodeWritten             // the backend has it: it looked itself, after the last push
	CodeRemoved             // it was removed; Replied.Record says when
	CodeFull                // there is no room
)

// Consult tells a member a record, and asks what it is doing about the backend. The shell
// puts the record in, as for Replica.
type Consult struct {
	Digest digest.Digest
	Record *record.Record
}

// Consulted answers Consult.
type Consulted struct {
	Record  *record.Record // merged
	Pending []record.Place // where it means the blob to be written
	Erasing bool           // it has something to erase, or erases it
}

// Have asks whether a blob can be read.
type Have struct{ Digest digest.Digest }

// Has answers Have.
type Has struct {
	Yes    bool
	Unsure bool // it is starting, or does not know what was deleted
}

// Compare asks for the sums of the blobs of which both are owners: without Buckets and
// Subs the 256 of all; of each of the Buckets the 256 of its second byte; or what is in
// each of the Subs.
type Compare struct {
	View    View
	Buckets []uint8
	Subs    []uint16
}

// Compared answers Compare. OK is false in another view.
type Compared struct {
	OK    bool
	Sums  []Sum    // 256, for each of the Buckets
	Items [][]Item // for each of the Subs
}

func (Probe) Digests() []digest.Digest      { return nil }
func (*Status) Digests() []digest.Digest    { return nil }
func (ReadLog) Digests() []digest.Digest    { return nil }
func (d Deleted) Digests() []digest.Digest  { return []digest.Digest{d.Entry.Digest} }
func (t *Took) Digests() []digest.Digest    { return digests(t.Record) }
func (r *Replica) Digests() []digest.Digest { return []digest.Digest{r.Digest} }
func (r *Replied) Digests() []digest.Digest { return digests(r.Record) }
func (c *Consult) Digests() []digest.Digest { return []digest.Digest{c.Digest} }
func (c *Consulted) Digests() []digest.Digest {
	return digests(c.Record)
}
func (h Have) Digests() []digest.Digest    { return []digest.Digest{h.Digest} }
func (Has) Digests() []digest.Digest       { return nil }
func (Compare) Digests() []digest.Digest   { return nil }
func (*Compared) Digests() []digest.Digest { return nil }
func (p *LogPage) Digests() []digest.Digest {
	all := make([]digest.Digest, len(p.Entries))
	for i, e := range p.Entries {
		all[i] = e.Digest
	}
	return all
}

func digests(r *record.Record) []digest.Digest {
	if r == nil {
		return nil
	}
	return []digest.Digest{r.Digest}
}
