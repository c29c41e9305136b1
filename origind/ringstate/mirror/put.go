package mirror

import (
	"fmt"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// put is a commit that somebody waits for. What is confirmed counts for those that came
// before it was asked for, so that clients that ask again and again do not hold each other up.
type put struct {
	Request
	round    uint64
	deadline time.Time
}

const maxPuts = 8 // that wait at once; beyond, the first one is to ask again

// beginPut begins to commit.
func (u *Upload) beginPut(r Request) {
	other := u.working != "" && u.working != r.Digest || len(u.puts) > 0 && u.puts[0].Digest != r.Digest
	switch {
	case u.committed != "" && u.committed != r.Digest:
		u.reply(&r, Unknown, errOther)
		return
	case other:
		u.reply(&r, Conflict, errOther)
		return
	case r.Off >= 0 && r.Off != u.size:
		u.reply(&r, OutOfRange, nil)
		return
	}
	if len(u.puts) == maxPuts {
		u.endPut(u.puts[0], Later, nil)
	}
	u.round++
	u.puts = append(u.puts, &put{r, u.round, u.now.Add(wait)})
}

// endPut answers one that waits.
func (u *Upload) endPut(p *put, code Code, err error) {
	a := Answer{Code: code, Offset: u.size, Term: u.term, Err: err}
	if code == Done {
		a.Mirrors = u.mirrored(p)
	}
	u.act(ActReply{p.ID, a})
	u.puts = slices.DeleteFunc(u.puts, func(o *put) bool { return o == p })
}

// endPuts answers all that wait.
func (u *Upload) endPuts(code Code, err error) {
	for len(u.puts) > 0 {
		u.endPut(u.puts[0], code, err)
	}
}

// final reports whether somebody has said that these are all bytes, and they are.
func (u *Upload) final() bool { return len(u.puts) > 0 && u.proved == u.puts[0].Digest }

// work has the own disk do what a commit lacks.
func (u *Upload) work() {
	if u.working != "" || len(u.puts) == 0 || u.own >= u.round {
		return
	}
	u.working = u.puts[0].Digest
	u.act(ActVerify{u.working})
}

// verified takes in what the own bytes are. Nobody else is asked to commit before: what the
// client has sent wrongly is not a mirror's fault.
func (u *Upload) verified(r Result) {
	if r.Code == Done && len(u.puts) > 0 {
		u.proved = r.Digest
		u.act(ActCommit{r.Digest})
		return
	}
	u.working = ""
	if r.Code != WrongDigest {
		u.endPuts(r.Code, r.Err)
	}
	for len(u.puts) > 0 {
		switch p := u.puts[0]; {
		case p.From != "": // and its leader has the right ones
			u.forget(errNotLeaders, WrongDigest)
		case u.vouched || p.Off >= 0:
			u.endPut(p, WrongDigest, r.Err)
		default: // a mirror that the client comes to may lack some
			u.endPut(p, OutOfRange, r.Err)
		}
	}
}

// commitEnded takes in whether the own copy is one.
func (u *Upload) commitEnded(r Result) {
	u.working = ""
	u.used = u.now
	switch {
	case r.Code == Unknown:
		u.forget(r.Err, Unavailable)
		return
	case r.Code != Done:
		u.endPuts(r.Code, r.Err)
		return
	}
	u.committed, u.own = r.Digest, u.round
}

// judge answers commits that are done, or have taken too long.
func (u *Upload) judge() {
	for _, p := range slices.Clone(u.puts) {
		own := u.own >= p.round
		switch late := !u.now.Before(p.deadline); {
		case own && (p.From != "" || u.copies(p) >= u.cfg.MinReplicas):
			u.endPut(p, Done, nil)
			if u.leads() {
				u.clean()
			}
		case late && (!own || u.moving()):
			u.endPut(p, Later, nil)
		case late:
			u.endPut(p, Unavailable, u.missing(p))
		}
	}
}

// copies returns how many members have confirmed p.
func (u *Upload) copies(p *put) int {
	n := len(u.mirrored(p))
	if u.own >= p.round {
		n++
	}
	return n
}

// mirrored returns the mirrors that have confirmed p.
func (u *Upload) mirrored(p *put) (names []string) {
	for _, f := range u.feeders {
		if f.confirmed >= p.round {
			names = append(names, f.member)
		}
	}
	return names
}

// moving reports whether the mirrors are all there and at it, so that it is worth while to
// ask again.
func (u *Upload) moving() bool {
	return len(u.feeders) == u.mirrors() && !slices.ContainsFunc(u.feeders, func(f *feeder) bool { return f.doing == starting })
}

// missing says who does not have the blob yet, and why, as far as is known.
func (u *Upload) missing(p *put) error {
	var who []string
	for _, f := range u.feeders {
		if f.confirmed < p.round {
			who = append(who, fmt.Sprintf("%s %s", f.member, f.doing))
		}
	}
	for _, m := range u.members {
		switch f, ok := u.failed[m.Name]; {
		case m.Name == u.cfg.Self.Name || u.feeds(m.Name):
		case !m.Up:
			who = append(who, m.Name+" is down")
		case ok:
			who = append(who, fmt.Sprintf("%s failed (%v)", m.Name, f.err))
		}
	}
	if len(who) == 0 {
		who = append(who, "there is no other member")
	}
	return fmt.Errorf("%d of %d copies (min_replicas): %s", u.copies(p), u.cfg.MinReplicas, strings.Join(who, ", "))
}

// clean removes the upload from members that were mirrors for a while.
func (u *Upload) clean() {
	for _, m := range u.members {
		if u.left[m.Name] && m.Up && !u.feeds(m.Name) {
			u.act(ActErase{m.Name, u.term})
			delete(u.left, m.Name)
		}
	}
}

// commits is what an upload knows of its end.
type commits struct {
	puts      []*put        // in the order in which they came, of one digest
	round     uint64        // of the latest
	own       uint64        // the latest when the own disk confirmed
	working   digest.Digest // what the disk verifies and commits; "": nothing
	proved    digest.Digest // what the bytes are
	committed digest.Digest // what they became
}
