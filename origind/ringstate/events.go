package ringstate

import (
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// Instant is a point in time as a member's own clocks show it.
type Instant struct {
	Mono time.Duration // of a clock that never goes back; any zero
	Wall time.Time     // may be wrong, and jump
}

// Event is what happens to a member. Those that are about blobs bring what is here of
// them: the shell holds the digest's lock from reading that until the Step's actions are done.
type Event interface{ event() }

// Local is what is here of a blob.
type Local struct {
	Record *record.Record // nil: none
	Have   bool           // all its bytes are here, whether pinned or not
	Wrote  bool           // as ActSave last said
}

// EvTick happens when Deadline says so.
type EvTick struct{}

// EvListed: the list of members, or what DNS says. It only adds.
type EvListed struct{ Names []string }

// EvHeld happens at the start, before all others, for each blob that is pinned or has Wrote.
type EvHeld struct {
	Local  Local
	Pinned bool
}

// EvAsked: another member asks. One ActReply or ActReplyLog answers it, of this Step or of a later one.
type EvAsked struct {
	From        string
	Incarnation uint64 // of whoever asks
	ID          uint64
	Ask         Ask
	Local       []Local // of Ask.Digests
}

// EvAnswered: an answer to an ActAsk, or that there will be none (Answer is nil).
type EvAnswered struct {
	ID          uint64
	Incarnation uint64 // of whoever answers
	Answer      Answer
	Local       []Local // of Answer.Digests
}

// EvPut: a client has all bytes of a blob committed here. They are durable, and pinned.
type EvPut struct {
	ID        uint64
	Digest    digest.Digest
	Size      int64
	Place     record.Place
	Namespace string
	Mirrors   []string // who should have the bytes, too
	Local     Local
}

// EvDelete: a client removes a blob from a namespace ("": from all).
type EvDelete struct {
	ID        uint64
	Digest    digest.Digest
	Namespace string
	Place     record.Place // where blobs of the namespace live
	Local     Local
}

// EvLookup: somebody wants to read a blob.
type EvLookup struct {
	ID     uint64
	Digest digest.Digest
	Local  Local
	Hop    bool // another member asks: it is not looked for any further
}

// EvTaken: an ActTake has ended. If it has not failed, the bytes are durable.
type EvTaken struct {
	Digest digest.Digest
	Local  Local
	Failed bool
	Full   bool // because there is no room
}

// EvBackend: an ActBackend has ended.
type EvBackend struct {
	ID     uint64
	Local  Local
	OK     bool
	Found  bool           // of a Stat or Write that is OK: the object is there
	Beside *record.Record // what is beside the object then; nil: nothing
}

// EvBad: pieces of a pinned blob have wrong bytes; none, if all are right again.
type EvBad struct {
	Digest digest.Digest
	Pieces []int
}

// EvDrain: this member is to be left by all that it has, or not any more.
type EvDrain struct {
	ID uint64
	On bool
}

// EvMember: an operator says something of a member.
type EvMember struct {
	ID   uint64
	Name string
	Do   MemberDo
}

// MemberDo is what is to become of a member.
type MemberDo uint8

const (
	Remove  MemberDo = iota // it is no member any more, whatever lists say
	Forget                  // the same, if it is not alive; and nobody waits for what only its lost disks had
	Readmit                 // it may be one again; what it has counts
)

// EvFull: there is, or is not, room for pushes.
type EvFull struct{ Full bool }

// EvStorages: these are the storages behind this member's backends, as far as they are known.
type EvStorages struct{ Storages []Storage }

func (EvTick) event()      {}
func (EvListed) event()    {}
func (EvHeld) event()      {}
func (*EvAsked) event()    {}
func (*EvAnswered) event() {}
func (*EvPut) event()      {}
func (*EvDelete) event()   {}
func (*EvLookup) event()   {}
func (*EvTaken) event()    {}
func (*EvBackend) event()  {}
func (EvBad) event()       {}
func (EvDrain) event()     {}
func (EvMember) event()    {}
func (EvFull) event()      {}
func (EvStorages) event()  {}

// Action is something to do. They are done in their order, and each of ActRing, ActSave,
// ActLog and ActTrim is durable before the next is begun. A member whose disk fails one of
// these must stop.
type Action interface{ action() }

// ActRing keeps what is to survive a restart.
type ActRing struct{ Saved *Saved }

// ActSave keeps a record, pins its blob or lets it be evicted (not before a minute has passed).
type ActSave struct {
	Record *record.Record
	Pinned bool
	Wrote  bool // comes back in Local: this member may have written it to a backend, or is to erase it there
}

// ActUnpin lets a blob be evicted; its record stays as it is.
type ActUnpin struct{ Digest digest.Digest }

// ActLog appends to the deletion log; the first entry of all is number 1.
type ActLog struct{ Entry record.Deletion }

// ActTrim removes the entries of the log before a number. With an entry that has the latest
// removal of a record goes the record, if it has no home any more and not Wrote.
type ActTrim struct{ First uint64 }

// ActAsk asks a member, in time: EvAnswered, if any.
type ActAsk struct {
	To  string
	ID  uint64
	Ask Ask
}

// ActReply answers an EvAsked; with nil if there is no answer.
type ActReply struct {
	To     string
	ID     uint64
	Answer Answer
}

// ActReplyLog answers a ReadLog from the log's file, with at most LogPageMax entries.
type ActReplyLog struct {
	To    string
	ID    uint64
	After uint64
}

// LogPageMax is how many entries a LogPage has at most.
const LogPageMax = 1000

// ActDone answers EvPut, EvDelete, EvDrain or EvMember.
type ActDone struct {
	ID      uint64
	OK      bool
	Missing []string // who has not confirmed in time
	Why     string   // if it is refused
	Copies  int
}

// ActFound answers EvLookup.
type ActFound struct {
	ID     uint64
	Where  Where
	Member string // for Elsewhere; for Backend whoever is to read it, "" for this one
	// Missing: for Backend, and a hop, what to say if it is not there, either: nothing for
	// 404, else the names of those because of whom it is 503.
	Missing []string
	Unread  bool // what was deleted lately is not known: it may be served all the same
}

// Where a blob can be read.
type Where uint8

const (
	Unavailable Where = iota // 503
	Here
	Elsewhere // at a member
	Backend   // there, or nowhere
)

// ActTake fetches a blob's bytes from members: EvTaken.
type ActTake struct {
	Digest  digest.Digest
	Size    int64
	Sources []string
}

// ActBackend does something with an object, and with the record that lies beside it, so
// that who lost all that members know of a blob loses no namespace: EvBackend.
type ActBackend struct {
	ID     uint64
	Do     BackendDo
	Digest digest.Digest
	Place  record.Place
}

// BackendDo is what to do with an object. The record here is the one that is on disk when it
// begins, with the one home that it is about (Record.Only).
type BackendDo uint8

const (
	// Stat looks whether the object is there, and reads what is beside it.
	Stat BackendDo = iota
	// Write writes the object, then Note. Before that, Local.Wrote is kept.
	Write
	// Note merges the record here into the one beside the object.
	Note
	// Erase removes the object and the record beside it, unless the object still has a home
	// once that and the record here are merged: then it is Note.
	Erase
)

// ActHeal replaces bad pieces by those of the first member whose verify: EvBad.
type ActHeal struct {
	Digest digest.Digest
	Pieces []int
	From   []string
}

func (ActRing) action()     {}
func (ActSave) action()     {}
func (ActUnpin) action()    {}
func (ActLog) action()      {}
func (ActTrim) action()     {}
func (ActAsk) action()      {}
func (ActReply) action()    {}
func (ActReplyLog) action() {}
func (ActDone) action()     {}
func (ActFound) action()    {}
func (ActTake) action()     {}
func (ActBackend) action()  {}
func (ActHeal) action()     {}
