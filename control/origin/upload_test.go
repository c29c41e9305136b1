package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

var uploadID = strings.Repeat("ab", 16)

// begins answers a POST.
func begins(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(HeaderUpload, uploadID)
	w.WriteHeader(http.StatusCreated)
}

// at answers for an upload that has 5 bytes, and becomes a blob of 7.
func at(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(HeaderOffset, "5")
	w.Header().Set(HeaderSize, "7")
}

// Uploads are begun at those that are up, in the order of owners, and at another one if one has no room.
func TestWhereUploadsBegin(t *testing.T) {
	full := refuse(fmt.Errorf("the disk is full: %w", errdefs.ErrResourceExhausted))
	inTown(t, "a draining, b down, c gone, d up, e removed, f joining", func(t *testing.T, o *town) {
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			o.serve(name, begins)
		}
		c := o.client(true, "a", "b", "c", "d", "e", "f")
		defer c.Close()
		for range 10 {
			if _, err := c.StartUpload(t.Context(), "team/app", ""); err != nil {
				t.Error(err)
			}
		}
		if got := o.took(); strings.Count(got, "POST") != 10 || !strings.HasPrefix(got, "d: ") {
			t.Errorf("asked are %s, want the one that is up", got)
		}
		o.stop("d")
		o.serve("d", full)
		c.http.Close()
		if _, err := c.StartUpload(t.Context(), "team/app", ref.Digest); err != nil {
			t.Error(err)
		}
		if got := o.took(); strings.Count(got, "POST") != 2 || !strings.Contains(got, "d: ") {
			t.Errorf("asked are %s, want another one as well", got)
		}
		for _, name := range []string{"a", "b", "c", "e", "f"} {
			o.stop(name)
			o.serve(name, full)
		}
		c.http.Close()
		if _, err := c.StartUpload(t.Context(), "team/app", ref.Digest); !errdefs.IsResourceExhausted(err) {
			t.Errorf("all are full: %v", err)
		}
		if got := o.took(); strings.Count(got, "POST") != 5 || strings.Contains(got, "e: ") {
			t.Errorf("asked are %s, want all that were not removed", got)
		}
	})
}

// Ids are those of addresses. Of an address that is not there any more, or that only another client knows,
// any member of the ring finds the upload.
func TestUploadsAreFound(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		knows := "c"
		for _, name := range []string{"a", "b", "c", "new"} {
			o.serve(name, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case name == knows:
					at(w, r)
				case knows == "":
					refuse(errdefs.ErrNotFound)(w, r)
				case r.Method == "HEAD" || r.Method == "PUT":
					http.Redirect(w, r, "http://"+knows+":1"+r.URL.RequestURI(), http.StatusTemporaryRedirect)
				default:
					w.Header().Set("Location", "http://"+knows+":1"+r.URL.RequestURI())
					w.WriteHeader(http.StatusTemporaryRedirect)
				}
			})
		}
		old := o.client(false, "was")
		defer old.Close()
		before := tagOf(old.http.Servers()[0]) + "-" + uploadID
		tests := map[string]func(*Client, string) error{
			"HEAD": func(c *Client, id string) error { n, err := c.UploadOffset(t.Context(), id); return want(n, 5, err) },
			"PATCH": func(c *Client, id string) error {
				n, err := c.Append(t.Context(), id, 5, bytes.NewReader([]byte("nt")))
				return want(n, 5, err)
			},
			"PUT": func(c *Client, id string) error {
				info, err := c.Commit(t.Context(), id, ref.Digest)
				return want(info.Size, 7, err)
			},
			"DELETE": func(c *Client, id string) error { return c.Cancel(t.Context(), id) },
		}
		for method, do := range tests {
			c := o.client(false, "b")
			o.took()
			if err := do(c, before); err != nil {
				t.Errorf("%s of an upload of an address that is not there any more: %v", method, err)
			}
			if got := o.took(); !strings.Contains(got, "c: HEAD") || method != "HEAD" && !strings.Contains(got, method) {
				t.Errorf("%s: asked are %s", method, got)
			}
			if err := do(c, before); err != nil {
				t.Error(err)
			}
			if got := o.took(); !strings.HasPrefix(got, "c: "+method) || strings.Contains(got, ",") {
				t.Errorf("%s again: asked are %s", method, got)
			}
			// One that another gateway has begun, at a member that this one has not been told of.
			far := tagOf(o.server(c, "c")) + "-" + uploadID
			c.Close()
			c = o.client(false, "b")
			if err := do(c, far); err != nil {
				t.Errorf("%s of an upload at another member: %v", method, err)
			}
			if got := o.took(); !strings.HasPrefix(got, "c: ") || strings.Contains(got, ";") {
				t.Errorf("%s of an upload at another member: asked are %s", method, got)
			}
			c.Close()
		}
		// It has moved to a member that nobody has named yet.
		knows = "new"
		c := o.client(true, "b")
		if err := tests["HEAD"](c, before); err != nil {
			t.Error(err)
		}
		o.took()
		if err := tests["PATCH"](c, before); err != nil {
			t.Error(err)
		}
		if got := o.took(); !strings.HasPrefix(got, "new: PATCH") {
			t.Errorf("asked are %s", got)
		}
		// And back to the one that its id names.
		own := tagOf(o.server(c, "a")) + "-" + uploadID
		for _, knows = range []string{"c", "a"} {
			if err := tests["HEAD"](c, own); err != nil {
				t.Error(err)
			}
			o.took()
			if err := tests["PATCH"](c, own); err != nil {
				t.Error(err)
			}
			if got := o.took(); !strings.HasPrefix(got, knows+": PATCH") {
				t.Errorf("asked are %s, want %s", got, knows)
			}
		}
		knows = ""
		nowhere := tagOf(old.http.Servers()[0]) + "-" + strings.Repeat("cd", 16)
		if _, err := c.UploadOffset(t.Context(), nowhere); !errdefs.IsNotFound(err) {
			t.Errorf("an upload that is nowhere: %v", err)
		}
		if got := o.took(); strings.Count(got, "HEAD") != 1 {
			t.Errorf("asked are %s, want one: it has asked the others", got)
		}
		if err := c.Cancel(t.Context(), nowhere); err != nil {
			t.Errorf("cancelling it: %v", err)
		}
		if _, err := c.Append(t.Context(), nowhere, 0, nil); !errdefs.IsNotFound(err) {
			t.Errorf("appending to it: %v", err)
		}
		c.Close()
	})
}

func want(got, want int64, err error) error {
	if err == nil && got != want {
		err = fmt.Errorf("got %d, want %d", got, want)
	}
	return err
}

// A commit that is not done yet, or of which the origin says who is missing, is asked for again, as long as
// that makes sense. The error says who is missing.
func TestCommit(t *testing.T) {
	later := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }
	missing := refuse(fmt.Errorf("b, c have not said that they have it: %w", errdefs.ErrUnavailable))
	type answer struct {
		h    http.HandlerFunc
		took time.Duration
	}
	for _, tt := range []struct {
		what      string
		answers   []answer // the last one again and again
		asked     int      // about so often
		took      time.Duration
		class     error
		textInErr string
	}{
		{"at once", []answer{{at, 0}}, 1, 0, nil, ""},
		{"after a while", []answer{{later, 20 * time.Second}, {later, 20 * time.Second}, {at, 0}}, 3, 41 * time.Second, nil, ""},
		{"who is missing comes back", []answer{{missing, 20 * time.Second}, {later, 20 * time.Second}, {at, 0}}, 3, 41 * time.Second, nil, ""},
		{"nobody comes", []answer{{missing, 20 * time.Second}}, 3, 61 * time.Second, errdefs.ErrUnavailable, "b, c have not said"},
		{"nobody comes, said late", []answer{{missing, 40 * time.Second}}, 2, 81 * time.Second, errdefs.ErrUnavailable, "b, c have not said"},
		{"it starts", []answer{{missing, 0}}, 35, 62 * time.Second, errdefs.ErrUnavailable, "b, c have not said"},
		{"never", []answer{{later, 20 * time.Second}}, 165, time.Hour + 22*time.Second, errdefs.ErrUnavailable, "not done after 1h0m0s"},
		{"never, said at once", []answer{{later, 0}}, 1805, time.Hour + 2*time.Second, errdefs.ErrUnavailable, "not done after 1h0m0s"},
		{"other bytes", []answer{{missing, 20 * time.Second}, {refuse(errdefs.ErrInvalidArgument), 0}}, 2, 21 * time.Second,
			errdefs.ErrInvalidArgument, ""},
	} {
		inTown(t, three, func(t *testing.T, o *town) {
			n := 0
			o.serve("a", func(w http.ResponseWriter, r *http.Request) {
				if r.Method != "PUT" {
					at(w, r)
					return
				}
				a := tt.answers[min(n, len(tt.answers)-1)]
				n++
				time.Sleep(a.took)
				a.h(w, r)
			})
			c := o.client(true, "a")
			defer c.Close()
			began := time.Now()
			info, err := c.Commit(t.Context(), tagOf(o.server(c, "a"))+"-"+uploadID, ref.Digest)
			took := time.Since(began)
			if !errors.Is(err, tt.class) || err != nil && !strings.Contains(err.Error(), tt.textInErr) || err == nil && info.Size != 7 {
				t.Errorf("%s: %+v, %v", tt.what, info, err)
			}
			if n < tt.asked*9/10 || n > tt.asked*11/10 || took > tt.took || took < tt.took*9/10 {
				t.Errorf("%s: asked %d times in %v, want %d, at most %v", tt.what, n, took, tt.asked, tt.took)
			}
		})
	}
}

// A commit follows an upload that moves, but not for ever; and it ends with its caller.
func TestCommitEnds(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		turn := 0 // who has it, as all say who are asked
		n := 0
		for i, name := range []string{"a", "b"} {
			o.serve(name, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == "PUT":
					n++
					turn = 1 - i
					refuse(fmt.Errorf("it is at the other one: %w", errdefs.ErrUnavailable))(w, r)
				case turn == i:
					at(w, r)
				default:
					http.Redirect(w, r, fmt.Sprintf("http://%c:1%s", "ab"[turn], r.URL.RequestURI()), http.StatusTemporaryRedirect)
				}
			})
		}
		c := o.client(true, "a", "b")
		defer c.Close()
		id := tagOf(o.server(c, "a")) + "-" + uploadID
		began := time.Now()
		if _, err := c.Commit(t.Context(), id, ref.Digest); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "at the other one") {
			t.Error(err)
		}
		if took := time.Since(began); n < maxMoves || n > 60 || took > commitAgain+commitPauseMax {
			t.Errorf("asked %d times in %v", n, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := c.Commit(ctx, id, ref.Digest)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		o.stop("a")
		o.stop("b")
		c.http.Close()
		began = time.Now()
		if _, err := c.Commit(t.Context(), id, ref.Digest); !errdefs.IsUnavailable(err) || time.Since(began) > time.Second {
			t.Errorf("nobody is there: %v after %v", err, time.Since(began))
		}
	})
}
