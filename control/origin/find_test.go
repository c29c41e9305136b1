package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// In a ring one member's "not found" is that of all. Of origins that are alone, and of a ring of which it is
// not known any more, it is not.
func TestMisses(t *testing.T) {
	notFound := refuse(fmt.Errorf("it is nowhere: %w", errdefs.ErrNotFound))
	down := refuse(fmt.Errorf("b, c do not answer: %w", errdefs.ErrUnavailable))
	for _, tt := range []struct {
		what, ring string
		later      time.Duration
		answers    map[string]http.HandlerFunc // by who is asked first, second, third
		asked      int
		want       error
	}{
		{"a ring", three, 0, map[string]http.HandlerFunc{}, 1, errdefs.ErrNotFound},
		{"origins of which nobody knows", "", 0, nil, 3, errdefs.ErrNotFound},
		{"what was a ring long ago", three, learnValid, nil, 3, errdefs.ErrNotFound},
		{"one cannot say, and another one can", three, 0, map[string]http.HandlerFunc{"1": down}, 2, errdefs.ErrNotFound},
		{"nobody can say", three, 0, map[string]http.HandlerFunc{"1": down, "2": down, "3": down}, 3, errdefs.ErrUnavailable},
		{"one has other bytes", three, 0, map[string]http.HandlerFunc{"1": refuse(errdefs.ErrDataLoss)}, 2, errdefs.ErrDataLoss},
		{"of many one cannot say", "", 0, map[string]http.HandlerFunc{"2": down}, 3, errdefs.ErrUnavailable},
		{"one refuses", three, 0, map[string]http.HandlerFunc{"1": refuse(errdefs.ErrPermissionDenied)}, 1, errdefs.ErrPermissionDenied},
	} {
		inTown(t, tt.ring, func(t *testing.T, o *town) {
			var c *Client
			for _, name := range []string{"a", "b", "c"} {
				o.serve(name, func(w http.ResponseWriter, r *http.Request) {
					for i, who := range ordered(c) {
						if h := tt.answers[fmt.Sprint(i+1)]; who == name && h != nil {
							h(w, r)
							return
						}
					}
					notFound(w, r)
				})
			}
			c = o.client(true, "a", "b", "c")
			defer c.Close()
			if tt.later > 0 {
				c.members.due.Store(1 << 62)
				time.Sleep(tt.later)
			}
			_, err := c.Stat(t.Context(), ref)
			if !errors.Is(err, tt.want) || errdefs.IsUnavailable(tt.want) && !strings.Contains(err.Error(), "b, c do not answer") {
				t.Errorf("%s: %v, want %v", tt.what, err, tt.want)
			}
			if got := o.took(); strings.Count(got, "HEAD") != tt.asked {
				t.Errorf("%s: asked are %s, want %d", tt.what, got, tt.asked)
			}
		})
	}
}

// A ring's "not found" is not that of an origin that is alone, nor of another ring.
func TestMissesOfSeveralRings(t *testing.T) {
	inTown(t, "", func(t *testing.T, o *town) {
		rings := map[string]string{"a": "a up, b up", "b": "a up, b up", "x": "x up, y up", "y": "x up, y up", "z": "z up"}
		holder := ""
		for name, ring := range rings {
			o.stops[name] = o.net.Serve(name+":1", func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == PathRing:
					writeStatus(w, status(name+": "+ring))
				case name == holder:
					serve(blob, nil)(w, r)
				default:
					o.mu.Lock()
					o.asked[name] = append(o.asked[name], "HEAD")
					o.mu.Unlock()
					refuse(errdefs.ErrNotFound)(w, r)
				}
			})
		}
		c := o.client(true, "a", "x", "z")
		defer c.Close()
		if _, err := c.Stat(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		if got := o.took(); strings.Count(got, "HEAD") != 3 || !strings.Contains(got, "z: HEAD") {
			t.Errorf("asked are %s, want one of each ring", got)
		}
		holder = "z"
		if _, err := c.Stat(t.Context(), ref); err != nil {
			t.Errorf("it is at the one that is alone: %v", err)
		}
	})
}

// If nobody is there, all are asked again, and the error names each of them once.
func TestNobodyIsThere(t *testing.T) {
	inTown(t, "", func(t *testing.T, o *town) {
		c := o.client(false, "a", "b")
		defer c.Close()
		_, err := c.Stat(t.Context(), ref)
		if !errdefs.IsUnavailable(err) || strings.Count(err.Error(), "http://a:1") != 1 || strings.Count(err.Error(), "http://b:1") != 1 {
			t.Errorf("got %v", err)
		}
	})
}

// Who gives up while origins are asked does not learn that a blob is nowhere.
func TestGivingUpIsNoMiss(t *testing.T) {
	inTown(t, "", func(t *testing.T, o *town) {
		ctx, cancel := context.WithCancel(t.Context())
		for _, name := range []string{"a", "b"} {
			o.serve(name, func(w http.ResponseWriter, r *http.Request) {
				refuse(errdefs.ErrNotFound)(w, r)
			})
		}
		c := o.client(true, "a", "b")
		defer c.Close()
		err := c.find(ctx, ref, func(*httpclient.Server, string) error {
			cancel()
			return errdefs.ErrNotFound
		})
		if err == nil || errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	})
}

// One member of a ring that acknowledges a deletion has done it for all; of origins that are alone each
// has to.
func TestDelete(t *testing.T) {
	done := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	cannot := refuse(fmt.Errorf("b has not acknowledged it: %w", errdefs.ErrUnavailable))
	never := refuse(fmt.Errorf("the backend cannot: %w", errdefs.ErrNotImplemented))
	missing := refuse(errdefs.ErrNotFound)
	for _, tt := range []struct {
		what, ring           string
		first, second, third http.HandlerFunc // nil: it does not answer
		asked                int
		want                 string // in the error; "": none
		class                error
	}{
		{"a ring", three, done, done, done, 1, "", nil},
		{"a ring where it is not", three, missing, done, done, 1, "", nil},
		{"a ring in which one cannot", three, cannot, done, done, 2, "", nil},
		{"a ring in which one is away", three, nil, done, done, 1, "", nil},
		{"a ring in which nobody can", three, cannot, nil, cannot, 2, "b has not acknowledged it", errdefs.ErrUnavailable},
		{"a ring whose backend cannot", three, never, done, done, 1, "the backend cannot", errdefs.ErrNotImplemented},
		{"alone", "", done, done, done, 3, "", nil},
		{"alone, and it is not there", "", missing, missing, done, 3, "", nil},
		{"alone, and one cannot", "", done, cannot, done, 3, "b has not acknowledged it", errdefs.ErrUnavailable},
		{"alone, and one is away", "", done, nil, done, 2, "origin http://", errdefs.ErrUnavailable},
		{"alone, and one never can", "", never, done, done, 3, "the backend cannot", errdefs.ErrNotImplemented},
	} {
		inTown(t, tt.ring, func(t *testing.T, o *town) {
			for _, name := range []string{"a", "b", "c"} {
				o.serve(name, missing)
			}
			c := o.client(true, "a", "b", "c")
			defer c.Close()
			for i, h := range []http.HandlerFunc{tt.first, tt.second, tt.third} {
				name := ordered(c)[i]
				o.stop(name)
				if h != nil {
					o.serve(name, h)
				}
			}
			c.http.Close()
			err := c.Delete(t.Context(), Ref{Namespace: "team/app", Digest: ref.Digest})
			if (err == nil) != (tt.want == "") || tt.want != "" && (!strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.class)) {
				t.Errorf("%s: %v, want %q", tt.what, err, tt.want)
			}
			if got := o.took(); strings.Count(got, "DELETE ?namespace=team%2Fapp") != tt.asked {
				t.Errorf("%s: asked are %s, want %d", tt.what, got, tt.asked)
			}
		})
	}
}

// Who deletes without having asked who the origins are finds it out first.
func TestDeleteKnowsTheRing(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		for _, name := range []string{"a", "b", "c"} {
			o.serve(name, refuse(errdefs.ErrNotFound))
		}
		c := o.client(false, "a", "b", "c")
		defer c.Close()
		if err := c.Delete(t.Context(), ref); err != nil {
			t.Error(err)
		}
		if got := o.took(); strings.Count(got, "DELETE") != 1 {
			t.Errorf("asked are %s", got)
		}
	})
}

// A member may send a read on to another one, as one that is to ask no further.
func TestSentOn(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		names := []string{"a", "b", "c"}
		for _, name := range names {
			o.serve(name, serve(blob, nil))
		}
		c := o.client(true, names...)
		defer c.Close()
		first, second, third := ordered(c)[0], ordered(c)[1], ordered(c)[2]
		restart := func(name string, h http.HandlerFunc) {
			o.stop(name)
			o.serve(name, h)
			c.http.Close()
		}
		reads := func(when, asked string) {
			t.Helper()
			o.took()
			got, err := read(c, 10, 10)
			if err != nil || !bytes.Equal(got, blob[10:20]) {
				t.Errorf("%s: %q, %v", when, got, err)
			}
			if got := o.took(); got != asked {
				t.Errorf("%s: asked are %s, want %s", when, got, asked)
			}
			if info, err := c.Stat(t.Context(), ref); err != nil || info.Size != int64(len(blob)) {
				t.Errorf("%s: %+v, %v", when, info, err)
			}
			o.took()
		}
		line := func(who ...string) string { // "name what"
			all := map[string]string{}
			for _, w := range who {
				name, what, _ := strings.Cut(w, " ")
				all[name] = name + ": GET " + what
			}
			var s []string
			for _, name := range names {
				if all[name] != "" {
					s = append(s, all[name])
				}
			}
			return strings.Join(s, "; ")
		}
		restart(first, sendTo(third))
		reads("sent on", line(first, third+" ?hop=1"))

		o.stop(third)
		c.http.Close()
		reads("sent on to one that is away", line(first, second+" ?hop=1"))

		// All send on to the one that is away. Asked for what it has itself, one of them has it.
		restart(second, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get(ParamHop) == "1" {
				serve(blob, nil)(w, r)
			} else {
				sendTo(third)(w, r)
			}
		})
		reads("all send on to one that is away", line(first, second+" ?hop=1"))

		// That one does not have it itself says nothing.
		restart(second, refuse(errdefs.ErrNotFound))
		if got, err := read(c, 10, 10); !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), third) {
			t.Errorf("%q, %v, want that %s is missing", got, err, third)
		}
		o.took()

		// But that it is no longer than that does.
		restart(second, refuse(errdefs.ErrOutOfRange))
		if _, err := read(c, 10, 10); !errdefs.IsOutOfRange(err) {
			t.Errorf("%v, want that it is out of range", err)
		}
		restart(second, refuse(errdefs.ErrNotFound))
		o.took()

		// Nor that the one that it was sent on to does not have it.
		o.serve(third, refuse(errdefs.ErrNotFound))
		time.Sleep(time.Minute)
		<-c.members.learn()
		c.http.Close()
		if got, err := read(c, 10, 10); !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
			t.Errorf("%q, %v, want that it is not known", got, err)
		}
	})
}

// A read that is sent on and breaks off goes on; who broke it off is to blame, not who sent it on.
func TestSentOnAndBrokenOff(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		names := []string{"a", "b", "c"}
		for _, name := range names {
			o.serve(name, serve(blob, nil))
		}
		c := o.client(true, names...)
		defer c.Close()
		first, second, third := ordered(c)[0], ordered(c)[1], ordered(c)[2]
		o.stop(first)
		o.serve(first, sendTo(third))
		stopping := false
		o.stop(third)
		o.serve(third, func(w http.ResponseWriter, r *http.Request) {
			if stopping = !stopping; stopping {
				serve(blob, func() int { return 30_000 })(w, r)
			} else {
				panic(http.ErrAbortHandler)
			}
		})
		c.http.Close()
		if got, err := read(c, 0, -1); err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		asked := o.took()
		if !strings.Contains(asked, second+": GET ?hop=1") {
			t.Errorf("asked are %s, want that %s goes on with it", asked, second)
		}
		for o := range c.http.Turns(t.Context(), c.order(string(ref.Digest)), false) {
			if !strings.Contains(o.Base, first) {
				t.Errorf("asked first is %s, want %s: it is not to blame", o.Base, first)
			}
			break
		}
	})
}
