package origin

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/internal/httpclient"
)

// view is who the origins are, as far as they have said it. It does not change.
type view struct {
	classes [][]ring.Member               // who is asked, class by class
	at      map[string]*httpclient.Server // by the names in classes
	last    []*httpclient.Server          // asked after all of these
	rings   map[*httpclient.Server]*group
	tags    map[string]*httpclient.Server // by what ids of uploads begin with
	n       int                           // of all that are asked
	changes bool                          // some are not up, and may be soon
	all     map[*httpclient.Server]bool   // those that are not, too
}

// group is a ring of several origins, in which each answers for all.
type group struct{ heard time.Time }

// said is what one server has said.
type said struct {
	name   string      // who it is; "": it has not said yet
	old    bool        // it does not know the question
	door   bool        // several have answered there, such as behind a balancer
	status *RingStatus // the last one
	at     time.Time   // when it was
	silent bool        // it has been asked since, and has not answered
}

// hear takes in what the server has said: st, or nil if it does not know the question.
func (d *said) hear(st *RingStatus, now time.Time) {
	d.old, d.status, d.at, d.silent = st == nil, st, now, false
	if st != nil {
		d.door = d.door || d.name != "" && d.name != st.Name
		d.name = st.Name
	}
}

// Classes of members: those of a later one are asked after all others.
const (
	classUp   = iota
	classSoon // or not for long: starting, joining, draining
	classDown
	classGone
	classRemoved // not asked
)

// classOf returns the class of a member's state. What is not known is no reason to ask it first.
func classOf(state RingState) int {
	switch state {
	case RingUp:
		return classUp
	case RingStarting, RingJoining, RingDraining:
		return classSoon
	case RingDown:
		return classDown
	case RingRemoved:
		return classRemoved
	}
	return classGone
}

// order returns the origins in the order in which they are asked for key: as trackers do, and as the
// members of a ring place it, by names and zones.
func (v *view) order(key string) []*httpclient.Server {
	all := make([]*httpclient.Server, 0, v.n)
	for _, class := range v.classes {
		if len(class) > 1 {
			class = ring.Place(class, key, len(class))
		}
		for _, m := range class {
			all = append(all, v.at[m.Name])
		}
	}
	return append(all, v.last...)
}

func (v *view) has(s *httpclient.Server) bool { return v.all[s] }

// ring returns the ring for which a server answers, or nil: it answers for itself alone, or it is too
// long ago that somebody said otherwise.
func (v *view) ring(s *httpclient.Server) *group {
	if g := v.rings[s]; g != nil && time.Since(g.heard) < learnValid {
		return g
	}
	return nil
}

// member is what is known of a member of some ring, or of an origin that is alone.
type member struct {
	ring.Member
	class int
	addr  string
	by    *httpclient.Server // who says so
	own   bool               // it does itself
	group *group             // nil: it is alone
}

// sketch is a view that is being made.
type sketch struct {
	http       *httpclient.Client
	configured []*httpclient.Server
	said       map[*httpclient.Server]*said

	members map[string]*member
	used    map[*httpclient.Server]bool
	classes [classRemoved][]ring.Member
	view    *view
}

// newView makes a view of what servers have said.
func newView(h *httpclient.Client, told map[*httpclient.Server]*said) *view {
	k := &sketch{
		http: h, configured: h.Servers(), said: told, members: map[string]*member{}, used: map[*httpclient.Server]bool{},
		view: &view{at: map[string]*httpclient.Server{}, rings: map[*httpclient.Server]*group{}, tags: map[string]*httpclient.Server{}},
	}
	tellers := k.tellers()
	for _, s := range tellers {
		k.hear(s)
	}
	for _, name := range slices.Sorted(maps.Keys(k.members)) {
		k.place(k.members[name])
	}
	for _, s := range k.configured {
		k.rest(s, len(tellers) > 0)
	}
	v := k.view
	if len(v.at)+len(v.last) == 0 { // all of them were removed
		k.used = map[*httpclient.Server]bool{}
		for _, s := range k.configured {
			k.rest(s, false)
		}
	}
	for _, class := range k.classes {
		if len(class) > 0 {
			v.classes = append(v.classes, class)
			v.n += len(class)
		}
	}
	v.n += len(v.last)
	v.changes = len(k.classes[classSoon])+len(k.classes[classDown]) > 0
	v.all = k.used
	for s := range k.used {
		tag := tagOf(s)
		if v.tags[tag] == nil || slices.Contains(k.configured, s) {
			v.tags[tag] = s
		}
	}
	return v
}

// tellers returns who has said lately who is there, the latest first. What is old, or of somebody who does
// not answer any more, counts only as long as nobody has said anything since.
func (k *sketch) tellers() (all []*httpclient.Server) {
	var latest time.Time
	silent := true
	for s, d := range k.said {
		if d.status != nil {
			all = append(all, s)
			silent = silent && d.silent
			if d.at.After(latest) {
				latest = d.at
			}
		}
	}
	all = slices.DeleteFunc(all, func(s *httpclient.Server) bool {
		return latest.Sub(k.said[s].at) >= learnValid || k.said[s].silent && !silent
	})
	slices.SortFunc(all, func(a, b *httpclient.Server) int {
		return cmp.Or(k.said[b].at.Compare(k.said[a].at), strings.Compare(a.Base, b.Base))
	})
	return all
}

// hear takes in what a server says. Of itself a member knows best, of others the one who sees it in the
// best state: who sees it down may be the one with the broken link.
func (k *sketch) hear(s *httpclient.Server) {
	d := k.said[s]
	var g *group
	listed := 0
	for _, m := range d.status.Members {
		if classOf(m.State) != classRemoved {
			listed++
		}
		if old := k.members[m.Name]; old != nil && old.group != nil && g == nil {
			g = old.group
		}
	}
	if listed < 2 {
		g = nil
	} else if g == nil {
		g = &group{}
	}
	if g != nil && d.at.After(g.heard) {
		g.heard = d.at
	}
	for _, m := range d.status.Members {
		own := m.Name == d.status.Name
		if g == nil && !own && classOf(m.State) != classRemoved {
			continue
		}
		now := &member{ring.Member{Name: m.Name, Zone: m.Zone}, classOf(m.State), m.Address, s, own, g}
		old := k.members[m.Name]
		if old != nil && old.group != g && old.group != nil && g != nil {
			k.join(old.group, g)
		}
		switch {
		case old == nil || own && !old.own:
		case own || old.own:
			continue
		case now.class >= old.class:
			continue
		}
		k.members[m.Name] = now
	}
}

// join makes one ring of two, of which somebody says that they are one.
func (k *sketch) join(from, to *group) {
	for _, m := range k.members {
		if m.group == from {
			m.group = to
		}
	}
	if from.heard.After(to.heard) {
		to.heard = from.heard
	}
}

// place finds the server of a member: the one that is configured and is it, or else the one at the address
// that the member has among its own.
func (k *sketch) place(m *member) {
	var at *httpclient.Server
	for _, s := range k.configured {
		if d := k.said[s]; d == nil || d.name != m.Name || d.door {
			continue
		}
		k.used[s] = true
		if m.class == classRemoved {
			continue
		}
		if m.group != nil {
			k.view.rings[s] = m.group
		}
		if at == nil {
			at = s
		} else {
			k.view.last = append(k.view.last, s)
		}
	}
	if m.class == classRemoved {
		if s := k.advertised(m); s != nil {
			k.used[s] = true
		}
		return
	}
	if at == nil && m.group == nil {
		at = m.by // it has answered there, and nobody else calls it
	}
	if at == nil {
		if at = k.advertised(m); at == nil {
			return
		}
	}
	k.used[at] = true
	if m.group != nil {
		k.view.rings[at] = m.group
	}
	k.view.at[m.Name] = at
	k.classes[m.class] = append(k.classes[m.class], m.Member)
}

// advertised returns the server at a member's address, or nil if it cannot be asked there: it has to be
// of the same scheme as the one who says so, must not lead to this machine from another one, and nobody
// else may have answered there.
func (k *sketch) advertised(m *member) *httpclient.Server {
	scheme, host, _ := strings.Cut(m.by.Base, "://")
	addr := m.addr
	if !strings.Contains(addr, "://") {
		addr = scheme + "://" + addr
	}
	s, err := k.http.Server(addr)
	if err != nil || !strings.HasPrefix(s.Base, scheme+"://") || k.used[s] {
		return nil
	}
	if d := k.said[s]; d != nil && d.name != m.Name {
		return nil
	}
	if near, _, _ := net.SplitHostPort(host); local(hostOf(s)) && !local(near) {
		return nil
	}
	return s
}

// local reports whether a host is this machine, whoever asks.
func local(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && (ip.IsLoopback() || ip.IsUnspecified())
}

func hostOf(s *httpclient.Server) string {
	_, hostport, _ := strings.Cut(s.Base, "://")
	host, _, _ := net.SplitHostPort(hostport)
	return host
}

// rest places a configured server that is not there by its name: as its base says if all clients do so
// because it is old, or because nobody has said anything; else last.
func (k *sketch) rest(s *httpclient.Server, named bool) {
	if k.used[s] {
		return
	}
	k.used[s] = true
	d := k.said[s]
	if d != nil && d.name != "" {
		if m := k.members[d.name]; m != nil && m.group != nil {
			k.view.rings[s] = m.group
		}
	}
	if d != nil && d.old || !named {
		k.view.at[s.Base] = s
		k.classes[classUp] = append(k.classes[classUp], ring.Member{Name: s.Base})
		return
	}
	k.view.last = append(k.view.last, s)
}
