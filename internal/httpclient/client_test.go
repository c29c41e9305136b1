package httpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient/memnet"
)

// network is servers in memory, by host:port, so that time in a bubble is virtual.
type network struct {
	*memnet.Network
	t *testing.T
}

func newNetwork(t *testing.T) *network { return &network{memnet.New(), t} }

func (n *network) client(servers ...string) *Client {
	n.t.Helper()
	c, err := New(Options{What: "shop", Servers: servers, Bulk: true, Dial: n.Dial})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

var get = &Request{Method: "GET", Path: "/x?y=1"}

// ask asks in turns until somebody answers, and returns who was asked, and by whom what.
func ask(ctx context.Context, c *Client, twice bool) (asked []string, answer string, errs []error) {
	for s := range c.Turns(ctx, c.Servers(), twice) {
		asked = append(asked, strings.TrimPrefix(s.Base, "http://"))
		resp, err := c.Do(ctx, s, get)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return asked, string(b), errs
	}
	return asked, "", errs
}

func TestAddresses(t *testing.T) {
	for addr, want := range map[string]string{
		"h:1": "http://h:1", "http://h:1": "http://h:1", "https://h:1/": "https://h:1", "[::1]:1": "http://[::1]:1",
		"": "", "h": "", ":1": "", "h:": "", "ftp://h:1": "", "http://h": "", "http://h:1/x": "", "h:1?x": "", "u@h:1": "",
	} {
		got, err := baseURL(addr, false)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", addr, got, err)
		}
	}
	if got, err := baseURL("h:1", true); got != "https://h:1" || err != nil {
		t.Errorf("with TLS: %q, %v", got, err)
	}
	for _, bad := range [][]string{nil, {"h:1", "u@h:1"}} {
		if _, err := New(Options{What: "shop", Servers: bad}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "shop") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	c, err := New(Options{Servers: []string{"a:1", "http://a:1/", "https://b:2"}})
	if err != nil || len(c.Servers()) != 2 {
		t.Errorf("%v, %v: want a server that is named twice once", c.Servers(), err)
	}
}

// A server that does not answer is asked last from then on: for a second, then for two,
// up to half a minute; one answer ends that.
func TestDownServersAreAskedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.Serve("b:1", says("b"))()
		c := n.client("a:1", "b:1")
		defer c.Close()
		want := func(when string, want ...string) {
			t.Helper()
			if asked, answer, _ := ask(t.Context(), c, false); !slices.Equal(asked, want) || answer == "" {
				t.Errorf("%s: asked %q, answer %q, want %q", when, asked, answer, want)
			}
		}
		both, second := []string{"a:1", "b:1"}, []string{"b:1"}
		want("at first", both...)
		for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30} {
			time.Sleep(time.Duration(seconds)*time.Second - time.Nanosecond)
			want("just before", second...)
			time.Sleep(time.Nanosecond)
			want("when it is over", both...)
		}
		stop := n.Serve("a:1", says("a"))
		time.Sleep(downMax)
		want("when it is back", "a:1")
		stop()
		c.Close()
		want("when it is away again", both...)
		time.Sleep(time.Second)
		want("a second later", both...)
	})
}

// Who gives up does not blame the server; a server that is too slow is to blame.
func TestBlame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.Serve("a:1", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })()
		c := n.client("a:1")
		defer c.Close()
		a := c.Servers()[0]
		type bound func() (context.Context, context.CancelFunc)
		for _, tt := range []struct {
			what   string
			ctx    bound
			blamed bool
			text   string
		}{
			{"the caller gives up", func() (context.Context, context.CancelFunc) {
				return context.WithTimeout(t.Context(), time.Minute)
			}, false, "deadline exceeded"},
			{"no answer in time", func() (context.Context, context.CancelFunc) {
				return Within(t.Context(), time.Minute)
			}, true, "no answer in time (1m0s)"},
			{"no byte in time", func() (context.Context, context.CancelFunc) {
				s := NewStall(t.Context(), time.Hour)
				s.Start(time.Minute)
				return s.Context(), s.End
			}, true, "not a byte for 1m0s"},
		} {
			ctx, cancel := tt.ctx()
			a.answered()
			start := time.Now()
			_, err := c.Do(ctx, a, get)
			cancel()
			if took := time.Since(start); took != time.Minute || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), tt.text) ||
				!strings.Contains(err.Error(), "shop http://a:1: GET /x?y=1: ") {
				t.Errorf("%s: %v after %v", tt.what, err, took)
			}
			if blamed := a.down(time.Now()); blamed != tt.blamed {
				t.Errorf("%s: the server was blamed: %t", tt.what, blamed)
			}
		}
	})
}

// If nobody answers, all are asked again after a pause, if that is safe: who restarts is
// back within a second.
func TestAskingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.client("a:1", "b:1")
		defer c.Close()
		asked, _, errs := ask(t.Context(), c, false)
		if len(asked) != 2 || len(errs) != 2 || !errors.Is(errs[0], memnet.ErrRefused) {
			t.Errorf("what must not be done twice was asked of %q: %v", asked, errs)
		}
		start := time.Now()
		asked, _, errs = ask(t.Context(), c, true)
		if took := time.Since(start); len(asked) != 2*maxRounds || took < pauseMin || took > retryFor {
			t.Errorf("asked %q in %v, want %d rounds", asked, took, maxRounds)
		}
		joined := c.LastRound(errs).Error()
		if strings.Count(joined, "a:1") != 1 || strings.Count(joined, "b:1") != 1 {
			t.Errorf("the error tells more than the last round: %s", joined)
		}
		time.Sleep(downMax)
		restarted := make(chan func(), 1) // what stops it
		time.AfterFunc(pauseMin/3, func() { restarted <- n.Serve("a:1", says("a")) })
		asked, answer, _ := ask(t.Context(), c, true)
		if len(asked) != 3 || answer != "a" {
			t.Errorf("asked %q, answer %q, want the one that has restarted", asked, answer)
		}
		(<-restarted)()
		ctx, cancel := context.WithTimeout(t.Context(), pauseMin/3)
		defer cancel()
		c.Close()
		if asked, _, _ = ask(ctx, c, true); len(asked) != 2 {
			t.Errorf("asked %q after the caller has gone", asked)
		}
	})
}

// One that answers "not now" has answered: nobody is asked again.
func TestAnswerEndsTheRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.Serve("b:1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })()
		c := n.client("a:1", "b:1")
		defer c.Close()
		var asked int
		for s := range c.Turns(t.Context(), c.Servers(), true) {
			asked++
			if resp, err := c.Do(t.Context(), s, get); err == nil {
				resp.Body.Close()
			}
		}
		if asked != 2 {
			t.Errorf("asked %d times, want each once", asked)
		}
	})
}

// Servers that are there but do not answer are not asked again: those that swallow what they
// are sent cost their time-out once, and those that let nobody in say so again.
func TestOnlyAbsentServersAreAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.Serve("slow:1", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })()
		defer n.Serve("broken:1", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })()
		defer n.Serve("plain:1", says("plain"))()
		for addr, want := range map[string]int{"slow:1": 1, "broken:1": maxRounds, "nobody:1": maxRounds, "https://plain:1": 1} {
			c := n.client(addr)
			asked := 0
			for s := range c.Turns(t.Context(), c.Servers(), true) {
				ctx, cancel := Within(t.Context(), retryFor/4)
				if _, err := c.Do(ctx, s, get); !errdefs.IsUnavailable(err) {
					t.Errorf("%s: got %v", addr, err)
				}
				cancel()
				asked++
			}
			if asked != want {
				t.Errorf("%s was asked %d times, want %d", addr, asked, want)
			}
			c.Close()
		}
	})
}

func TestRedirects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		to := map[string]string{"/one": "http://b:1/", "/tls": "https://b:1/", "/loop": "http://a:1/loop"}
		defer n.Serve("a:1", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, to[r.URL.Path], http.StatusTemporaryRedirect)
		})()
		defer n.Serve("b:1", says("b"))()
		for _, tt := range []struct {
			path   string
			most   int
			status int // 0: an error
		}{{"/one", 0, 307}, {"/one", 1, 200}, {"/tls", 1, 0}, {"/loop", 3, 0}} {
			c, err := New(Options{What: "shop", Servers: []string{"a:1"}, Redirects: tt.most, Dial: n.Dial})
			if err != nil {
				t.Fatal(err)
			}
			status := 0
			resp, err := c.Do(t.Context(), c.Servers()[0], &Request{Method: "GET", Path: tt.path})
			if err == nil {
				status = resp.StatusCode
				resp.Body.Close()
			}
			if status != tt.status {
				t.Errorf("%s with %d redirects: status %d, %v, want %d", tt.path, tt.most, status, err, tt.status)
			}
			c.Close()
		}
	})
}

// A server that sends requests on to one that does not answer is not to blame. The one that does not
// answer is, and is asked last, in the round that runs, too.
func TestSentOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.Serve("a:1", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://dead:1"+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		})()
		defer n.Serve("b:1", says("b"))()
		c, err := New(Options{What: "shop", Servers: []string{"a:1", "dead:1", "b:1"}, Redirects: 3, Dial: n.Dial})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			asked, answer, errs := ask(t.Context(), c, true)
			if !slices.Equal(asked, []string{"a:1", "b:1"}) || answer != "b" {
				t.Errorf("asked %q, got %q", asked, answer)
			}
			sent, ok := errors.AsType[*SentOnError](errs[0])
			if !ok || sent.To != "http://dead:1" || !errdefs.IsUnavailable(errs[0]) || !errors.Is(errs[0], memnet.ErrRefused) {
				t.Errorf("sent on: %v", errs[0])
			}
		}
		// One that is not configured is remembered, too, as long as somebody wants it.
		far, err := c.Server("far:1")
		if err != nil || far.Base != "http://far:1" {
			t.Fatal(far, err)
		}
		far.Failed()
		if again, _ := c.Server("http://far:1/"); again != far {
			t.Error("a server is another one when it is asked for again")
		}
		c.Keep(func(s *Server) bool { return s == far })
		if again, _ := c.Server("far:1"); again != far {
			t.Error("a server that is wanted is forgotten")
		}
		c.Keep(func(*Server) bool { return false })
		if again, _ := c.Server("far:1"); again == far {
			t.Error("a server that nobody wants is remembered")
		}
		if same, _ := c.Server("b:1"); same != c.Servers()[2] {
			t.Error("a server that is configured is another one")
		}
		if _, err := c.Server("far"); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

// What is sent is what was asked for; errors of a server keep its text and class.
func TestRequestsAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		got := ""
		defer n.Serve("a:1", func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got = r.Method + " " + r.RequestURI + " " + r.Header.Get("X-Y") + " " + string(b)
		})()
		c := n.client("a:1")
		defer c.Close()
		a := c.Servers()[0]
		r := &Request{Method: "PUT", Path: "/p?q=1", Header: http.Header{"X-Y": {"z"}}, Body: strings.NewReader("body")}
		resp, err := c.Do(t.Context(), a, r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := "PUT /p?q=1 z body"; got != want {
			t.Errorf("sent %q, want %q", got, want)
		}
		err = Refused("shop "+a.Base, "sold out", errdefs.ErrNotFound)
		if !errdefs.IsNotFound(err) || err.Error() != "shop http://a:1: sold out" {
			t.Errorf("refused: %v", err)
		}
		if !Answered(fmt.Errorf("x: %w", err)) {
			t.Errorf("it was answered: %v", err)
		}
		err = c.Stranger(a, r, "status 404 without a shop's answer")
		if !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "shop http://a:1: PUT /p?q=1: status 404") {
			t.Errorf("a stranger: %v", err)
		}
		if !maps.EqualFunc(r.Header, http.Header{"X-Y": {"z"}}, slices.Equal) {
			t.Errorf("the request's header was changed: %v", r.Header)
		}
	})
}
