package origin

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func writeStatus(w http.ResponseWriter, st *RingStatus) { _ = json.NewEncoder(w).Encode(st) }

const three = "a up, b up, c up"

// No request waits for who the origins are. All are asked once at the first one, whoever else comes, then
// each minute in which there are requests; after a failure at once, but not more than once a second.
func TestLearning(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		has := serve(blob, nil)
		o.serve("a", has)
		o.serve("b", has)
		c := o.client(false, "a", "b")
		defer c.Close()
		want := func(when, questions string) {
			t.Helper()
			synctest.Wait()
			if got := o.questions(); got != questions {
				t.Errorf("%s: asked are %q, want %q", when, got, questions)
			}
		}
		stat := func() {
			t.Helper()
			if _, err := c.Stat(t.Context(), ref); err != nil {
				t.Error(err)
			}
		}
		want("before anything", "")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(stat)
		}
		wg.Wait()
		want("at first", "a:1 b:1")
		if got := ordered(c); len(got) != 3 {
			t.Errorf("asked are %s", got)
		}
		stat()
		time.Sleep(learnEvery - time.Nanosecond)
		stat()
		want("within a minute", "")
		time.Sleep(time.Nanosecond)
		stat()
		stat()
		want("after a minute", "a:1 b:1")
		time.Sleep(time.Hour)
		want("without a request", "")
		stat()
		want("and with one", "a:1 b:1")

		o.setRing("a up, b starting, c up")
		time.Sleep(learnEvery)
		stat()
		want("one starts", "a:1 b:1")
		time.Sleep(learnOften)
		o.setRing(three)
		stat()
		want("ten seconds later", "a:1 b:1")
		time.Sleep(learnOften)
		stat()
		want("when it is up", "")

		o.stop("b")
		for range 100 {
			if _, err := c.Stat(t.Context(), ref); err != nil {
				t.Error(err)
			}
			c.members.soon() // as after a failure
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		o.mu.Lock()
		n := o.counts["a"]
		o.mu.Unlock()
		if n < 5 || n > 10 {
			t.Errorf("asked %d times in ten seconds of failures", n)
		}
	})
}

// An origin that does not answer the question keeps nobody waiting, nor do all.
func TestLearningIsInNobodysWay(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		o.stops["a"] = o.net.Serve("a:1", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == PathRing {
				<-r.Context().Done()
				return
			}
			serve(blob, nil)(w, r)
		})
		c := o.client(false, "a")
		began := time.Now()
		if _, err := c.Stat(t.Context(), ref); err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if v := c.members.known(t.Context()); v.ring(c.origins["http://a:1"]) != nil || time.Since(began) != learnWithin {
			t.Errorf("who has to know waited %v", time.Since(began))
		}
		<-c.members.learn()
		began = time.Now()
		c.members.learn()
		c.Close() // ends it
		if took := time.Since(began); took != 0 {
			t.Errorf("closing took %v", took)
		}
		<-c.members.learn() // and nothing begins any more
	})
}

// Of a ring one address is enough, as long as it answers once: if it does not any more, others tell.
func TestOneAddressIsEnough(t *testing.T) {
	inTown(t, three, func(t *testing.T, o *town) {
		for _, name := range []string{"a", "b", "c"} {
			o.serve(name, serve(blob, nil))
		}
		c := o.client(true, "b")
		defer c.Close()
		all := o.client(true, "c", "b", "a")
		defer all.Close()
		if got, want := ordered(c), ordered(all); len(got) != 3 || !slices.Equal(got, want) {
			t.Errorf("one asks %s, another one %s", got, want)
		}
		o.stop("b")
		o.setRing("a up, b gone, c up, d up")
		o.serve("d", serve(blob, nil))
		<-c.members.learn()
		if got := ordered(c); len(got) != 4 || got[3] != "b" {
			t.Errorf("after it is gone: %s", got)
		}
		for _, name := range []string{"a", "c"} {
			o.stop(name)
		}
		if _, err := c.Stat(t.Context(), ref); err != nil {
			t.Errorf("one is left, which was not there at first: %v", err)
		}
	})
}

// Old origins are asked in the order of their addresses, as they always were.
func TestOldOriginsAreAskedByAddress(t *testing.T) {
	inTown(t, "", func(t *testing.T, o *town) {
		names := []string{"a", "b", "c", "d"}
		for _, name := range names {
			o.serve(name, refuse(errdefs.ErrNotFound))
		}
		before, after := o.client(false, names...), o.client(true, names...)
		defer before.Close()
		defer after.Close()
		if got, want := ordered(after), ordered(before); !slices.Equal(got, want) || slices.Equal(got, names) {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := o.questions(); got != "a:1 b:1 c:1 d:1" {
			t.Errorf("asked are %s", got)
		}
	})
}

// What is no status of a ring is no answer.
func TestNoStatus(t *testing.T) {
	many := &RingStatus{Name: "a", Members: make([]RingMember, maxMembers+1)}
	for what, answer := range map[string]http.HandlerFunc{
		"a page":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"nobody":    func(w http.ResponseWriter, _ *http.Request) { writeStatus(w, &RingStatus{}) },
		"everyone":  func(w http.ResponseWriter, _ *http.Request) { writeStatus(w, many) },
		"a failure": refuse(errdefs.ErrInternal),
	} {
		c := newClient(t, newFake(t, answer))
		if st, err := c.status(t.Context(), c.http.Servers()[0]); err == nil {
			t.Errorf("%s: %+v", what, st)
		}
		<-c.members.learn()
		if len(c.members.told) != 0 {
			t.Errorf("%s was taken for an answer", what)
		}
	}
}
