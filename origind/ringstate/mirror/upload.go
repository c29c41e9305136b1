package mirror

import (
	"errors"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/ring"
)

// How long, and how much.
const (
	Chunk   = 8 << 20          // bytes of one append to a mirror, and what has arrived by its end
	stall   = 2 * time.Second  // without a byte, after which a mirror is replaced
	wait    = 20 * time.Second // of a commit; then the answer says who is missing
	confirm = wait + stall     // a mirror says "later" after wait itself
	idle    = 10 * time.Minute // without a word of the leader, after which it is asked
	linger  = 10 * time.Minute // after a commit, for clients that missed the answer
)

// Why requests fail.
var (
	errTaken      = errors.New("another member leads this upload")
	errTakenOver  = errors.New("another request took the upload over")
	errWriting    = errors.New("another request writes to the upload")
	errCommitting = errors.New("the upload is being committed")
	errBlob       = errors.New("the upload became a blob")
	errOther      = errors.New("the upload became another blob, or is about to")
	errGoesOn     = errors.New("the upload goes on")
	errBroken     = errors.New("the body broke off")
	errDeleted    = errors.New("the upload was deleted")
	errOld        = errors.New("nothing was added to the upload for too long (uploads.expire)")
	errRoom       = errors.New("nobody had come back to the upload, and others needed its room")
	errElsewhere  = errors.New("its leader feeds another mirror")
	errNotLeaders = errors.New("its bytes are not the blob's")
	errDown       = errors.New("it is down")
	errLong       = errors.New("it has more bytes than the blob")
)

// Config says where an upload is and what is wanted of it.
type Config struct {
	Self        ring.Member
	Replicas    int           // owners of a blob
	MinReplicas int           // copies before a commit is acknowledged, this member's included
	Expire      time.Duration // to which nothing was added is removed
	// Key places the mirrors: the blob's digest, if the client has said what it will be, else
	// the upload's id.
	Key string
}

// Upload is one upload at one member; see the package comment.
type Upload struct {
	cfg     Config
	members []Member
	now     time.Time
	used    time.Time // when something last was added or asked for
	asked   time.Time // when the leader last was asked, or was heard of

	size    int64 // of the file
	vouched bool  // a client, not a leader, said that it is at size
	gone    bool  // after ActForget

	term   Term
	leader string // Self's name, or whom this member obeys; "": whoever comes

	writing *Request // the append under way
	stopped bool     // and it was told to stop,
	waiting *Request // because of this

	commits

	feeders []*feeder // at most MinReplicas - 1
	number  uint64    // of the latest feeder
	failed  map[string]failure
	left    map[string]bool // members that may have some of it, and are not fed any more

	actions []Action
}

// New returns an upload of which size bytes are on this member's disk: none, if it begins. A
// file that an earlier boot of the machine wrote counts for nothing, as it was not synced: the
// upload goes on at another member then, which New is not to hide.
func New(cfg Config, size int64, now time.Time) *Upload {
	return &Upload{cfg: cfg, size: size, now: now, used: now, asked: now, failed: map[string]failure{}, left: map[string]bool{}}
}

// Step takes an event in and returns what is to be done, valid until the next Step. Time
// never goes back: an earlier now counts as the last one.
func (u *Upload) Step(now time.Time, ev Event) []Action {
	if now.After(u.now) {
		u.now = now
	}
	clear(u.actions)
	u.actions = u.actions[:0]
	switch ev := ev.(type) {
	case EvMembers:
		u.members = ev.Members
	case EvRequest:
		u.request(ev.Request)
	case EvWrote:
		u.size, u.used = ev.Size, u.now
	case EvAppended:
		u.appended(ev)
	case EvVerified:
		u.verified(ev.Result)
	case EvCommitted:
		u.commitEnded(ev.Result)
	case EvMoved:
		if f := u.feeder(ev.Feeder); f != nil {
			f.moved = u.now
		}
	case EvAnswer:
		if f := u.feeder(ev.Feeder); f != nil {
			u.answered(f, ev.Answer)
		}
	case EvMakeRoom:
		if _, idle := u.Idle(); idle {
			u.abandon(errRoom)
		}
	case EvStands:
		u.heard(ev)
	}
	u.settle()
	return u.actions
}

// settle does what is due.
func (u *Upload) settle() {
	if !u.gone {
		u.age()
	}
	if u.gone {
		return
	}
	u.work()
	if u.leads() {
		u.feed()
	}
	u.judge()
}

// Deadline returns when the next EvTick is due, or the zero time.
func (u *Upload) Deadline() time.Time {
	var at time.Time
	if u.gone {
		return at
	}
	earlier := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if !u.busy() {
		earlier(u.used.Add(u.lifetime()))
		if u.asks() {
			earlier(u.asked.Add(idle))
		}
	}
	if len(u.puts) > 0 {
		earlier(u.puts[0].deadline)
	}
	for _, f := range u.feeders {
		if f.doing != resting {
			earlier(f.deadline())
		}
	}
	if u.leads() && len(u.feeders) < u.mirrors() {
		for _, f := range u.failed {
			if f.until.After(u.now) {
				earlier(f.until)
			}
		}
	}
	return at
}

// Stands returns how the upload stands here, for a member that asks.
func (u *Upload) Stands(asker string) Stands {
	s := Stands{Known: !u.gone, Offset: u.size, Term: u.term, Leads: u.leads(), Committed: u.committed}
	for _, f := range u.feeders {
		s.Feeds = s.Feeds || f.member == asker
	}
	return s
}

func (u *Upload) act(a Action) { u.actions = append(u.actions, a) }

func (u *Upload) reply(r *Request, code Code, err error) {
	u.act(ActReply{r.ID, Answer{Code: code, Offset: u.size, Term: u.term, Err: err}})
}

func (u *Upload) leads() bool { return u.leader == u.cfg.Self.Name }

// request takes in what somebody asks for.
func (u *Upload) request(r Request) {
	switch {
	case u.gone:
		u.reply(&r, Unknown, nil)
		return
	case r.From == "":
		u.lead()
	case !u.obeys(&r):
		u.reply(&r, Conflict, errTaken)
		return
	}
	u.asked = u.now
	switch {
	case r.Kind == Start:
		u.reply(&r, Done, nil)
	case r.Kind == Delete:
		u.erase(r)
	case u.writing == nil:
		u.begin(r)
	default:
		u.await(r)
	}
}

// await has a request wait until the append under way has ended. A client's is ended only by
// whoever has a higher term (follow did that), a leader's by what comes after it.
func (u *Upload) await(r Request) {
	if u.writing.From != "" {
		u.stop()
	}
	if !u.stopped || u.waiting != nil {
		u.reply(&r, Conflict, errWriting)
		return
	}
	u.waiting = &r
}

// lead makes this member the one that a client is at.
func (u *Upload) lead() {
	if u.leads() {
		return
	}
	u.term++
	u.leader = u.cfg.Self.Name
	u.refuseWaiting()
}

// refuseWaiting answers the request of a leader that is none any more.
func (u *Upload) refuseWaiting() {
	if u.waiting != nil {
		u.reply(u.waiting, Conflict, errTaken)
		u.waiting = nil
	}
}

// obeys reports whether a leader's request counts. A higher term than any before takes the
// upload over.
func (u *Upload) obeys(r *Request) bool {
	if r.Term > u.term {
		u.follow(r.Term, r.From)
	}
	if r.Term == u.term && u.leader == "" {
		u.leader = r.From
	}
	return r.Term == u.term && r.From == u.leader
}

// follow lets go of the upload: another member leads, or did.
func (u *Upload) follow(term Term, leader string) {
	u.drop()
	u.endPuts(Unavailable, errTaken)
	u.refuseWaiting()
	u.stop()
	u.term, u.leader = term, leader
}

// stop ends the append under way.
func (u *Upload) stop() {
	if u.writing != nil && !u.stopped {
		u.stopped = true
		u.act(ActStop{u.writing.ID})
	}
}

// begin does what a request asks for; nobody writes.
func (u *Upload) begin(r Request) {
	u.used = u.now
	switch {
	case r.Kind == Put:
		u.beginPut(r)
	case u.committed != "":
		u.reply(&r, Unknown, errBlob)
	case u.working != "":
		u.reply(&r, Conflict, errCommitting)
	case r.Off != u.size:
		u.reply(&r, OutOfRange, nil)
	default:
		u.endPuts(Unavailable, errGoesOn)
		u.proved = ""
		u.writing, u.vouched = &r, r.From == ""
		u.act(ActAccept{r.ID})
	}
}

// appended ends the append under way.
func (u *Upload) appended(ev EvAppended) {
	r := u.writing
	if r == nil || u.gone {
		return
	}
	u.size, u.used = ev.Size, u.now
	switch {
	case u.stopped:
		u.reply(r, Conflict, errTakenOver)
	case ev.Broken:
		u.reply(r, Unavailable, errBroken)
	default:
		u.reply(r, Done, nil)
	}
	next := u.waiting
	u.writing, u.stopped, u.waiting = nil, false, nil
	if next != nil {
		u.begin(*next)
	}
}

// erase ends an upload that a client, or its leader, gave up. A client may be anywhere:
// whoever it is at tells all others.
func (u *Upload) erase(r Request) {
	if u.working != "" {
		u.reply(&r, Conflict, errCommitting)
		return
	}
	if r.From == "" {
		for _, m := range u.members {
			if m.Up && m.Name != u.cfg.Self.Name {
				u.act(ActErase{m.Name, u.term})
			}
		}
	}
	u.reply(&r, Done, nil)
	if u.committed == "" {
		u.forget(errDeleted, Unknown)
	}
}

// drop leaves all mirrors alone.
func (u *Upload) drop() {
	for _, f := range u.feeders {
		u.act(ActDrop{f.id})
	}
	u.feeders = nil
}

// forget ends the upload here.
func (u *Upload) forget(why error, code Code) {
	u.drop()
	u.endPuts(code, why)
	u.refuseWaiting()
	if u.writing != nil {
		u.stop()
		u.reply(u.writing, Unknown, why)
	}
	u.gone = true
	u.act(ActForget{why})
}

// lifetime is how long an upload stays to which nothing happens.
func (u *Upload) lifetime() time.Duration {
	if u.committed != "" {
		return linger
	}
	return u.cfg.Expire
}

// asks reports whether this is a mirror that its leader may have left behind.
func (u *Upload) asks() bool { return !u.leads() && u.leader != "" && u.committed == "" }

func (u *Upload) busy() bool { return u.writing != nil || u.working != "" || len(u.puts) > 0 }

// age removes what nobody comes back to, and asks after what may be such.
func (u *Upload) age() {
	switch {
	case u.busy():
	case u.now.Sub(u.used) < u.lifetime():
		if u.asks() && u.now.Sub(u.asked) >= idle {
			u.asked = u.now
			u.act(ActAsk{u.leader})
		}
	case u.committed != "":
		u.forget(errBlob, Unknown)
	default:
		u.abandon(errOld)
	}
}

// Idle returns since when nothing has happened to the upload. ok: nobody is at it here, it is no blob, and no other member that is up
// leads it, so that it may make room for others.
func (u *Upload) Idle() (since time.Time, ok bool) {
	led := !u.leads() && slices.ContainsFunc(u.members, func(m Member) bool { return m.Name == u.leader && m.Up })
	return u.used, !u.gone && !u.busy() && u.committed == "" && !led
}

// abandon ends an upload to which nobody has come for long. Its mirrors need not find that out by themselves.
func (u *Upload) abandon(why error) {
	if u.leads() {
		for _, f := range u.feeders {
			u.left[f.member] = true
		}
		u.drop()
		u.clean()
	}
	u.forget(why, Unknown)
}

// heard takes in what the leader says of an upload that rests. If it does not know it any
// more, this may be the only copy, and the client may still come.
func (u *Upload) heard(ev EvStands) {
	over := ev.Leads || ev.Committed != "" || !ev.Known && u.size == 0
	switch {
	case !u.asks() || ev.Member != u.leader || ev.Feeds || u.busy():
	case over:
		u.forget(errElsewhere, Unknown)
	case !ev.Known:
		u.leader = ""
	}
}
