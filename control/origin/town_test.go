package origin

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/internal/httpclient/memnet"
)

// town is origins in a network in memory, at their names and port 1, for bubbles in which time is virtual.
type town struct {
	t   *testing.T
	net *memnet.Network

	mu     sync.Mutex
	ring   string // what each of them says after its name, see status; "": it does not know the question
	asked  map[string][]string
	counts map[string]int // of questions about the ring
	stops  map[string]func()
}

func newTown(t *testing.T, ring string) *town {
	o := &town{t: t, net: memnet.New(), ring: ring, asked: map[string][]string{}, counts: map[string]int{}, stops: map[string]func(){}}
	return o
}

// inTown runs a test in a bubble with a town of the ring, which ends with it.
func inTown(t *testing.T, ring string, f func(t *testing.T, o *town)) {
	synctest.Test(t, func(t *testing.T) {
		o := newTown(t, ring)
		defer func() {
			for _, name := range slices.Sorted(maps.Keys(o.stops)) {
				o.stop(name)
			}
		}()
		f(t, o)
	})
}

// serve starts an origin; a nil h does nothing but tell of its ring.
func (o *town) serve(name string, h http.HandlerFunc) {
	o.stops[name] = o.net.Serve(name+":1", func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		if r.URL.Path == PathRing {
			o.counts[name]++
		} else {
			o.asked[name] = append(o.asked[name], r.Method+" "+strings.TrimPrefix(r.URL.RequestURI(), PathBlobs+"/"+string(ref.Digest)))
		}
		ring := o.ring
		o.mu.Unlock()
		switch {
		case r.URL.Path != PathRing:
			h(w, r)
		case ring == "":
			refuse(errdefs.ErrNotImplemented)(w, r)
		default:
			writeStatus(w, status(name+": "+ring))
		}
	})
}

func (o *town) stop(name string) {
	o.stops[name]()
	delete(o.stops, name)
}

// setRing changes what all say from now on.
func (o *town) setRing(ring string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ring = ring
}

// client returns a client of the origins of these names, which has asked them who they are if known.
func (o *town) client(known bool, names ...string) *Client {
	o.t.Helper()
	cfg := Config{Dial: o.net.Dial}
	for _, n := range names {
		cfg.Origins = append(cfg.Origins, n+":1")
	}
	c, err := New(cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	if known {
		<-c.members.learn()
	}
	return c
}

// server returns the server of an origin.
func (o *town) server(c *Client, name string) *httpclient.Server {
	s, err := c.http.Server(name + ":1")
	if err != nil {
		o.t.Fatal(err)
	}
	return s
}

// ordered returns names in the order in which c asks them for the blob.
func ordered(c *Client) (names []string) {
	for _, s := range c.order(string(ref.Digest)) {
		names = append(names, strings.TrimSuffix(strings.TrimPrefix(s.Base, "http://"), ":1"))
	}
	return names
}

// took returns what each origin was asked for since the last time, "a: GET …; b: …".
func (o *town) took() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(o.asked)) {
		all = append(all, name+": "+strings.Join(o.asked[name], ", "))
	}
	o.asked = map[string][]string{}
	return strings.Join(all, "; ")
}

// questions returns how often each was asked for its ring since the last time.
func (o *town) questions() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprint(o.counts), "map["), "]")
	o.counts = map[string]int{}
	return s
}

// sendTo redirects to another origin, as one that asks no further.
func sendTo(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		u := *r.URL
		q := u.Query()
		q.Set(ParamHop, "1")
		u.RawQuery = q.Encode()
		http.Redirect(w, r, "http://"+name+":1"+u.RequestURI(), http.StatusTemporaryRedirect)
	}
}
