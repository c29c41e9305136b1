package httpclient

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

const limit = 30 * time.Second

// An answer that is slow, or whose reader is, goes on for as long as it takes; one of
// which no byte comes ends.
func TestAnswerStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.Serve("a:1", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			for range 10 {
				time.Sleep(limit - time.Second)
				_, _ = io.WriteString(w, "x")
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})()
		c := n.client("a:1")
		defer c.Close()
		s := NewStall(t.Context(), limit)
		s.Start(limit)
		resp, err := c.Do(s.Context(), c.Servers()[0], get)
		if err != nil {
			t.Fatal(err)
		}
		body := s.Answer(resp.Body)
		buf := make([]byte, 10)
		for i := range 10 {
			if _, err := io.ReadFull(body, buf[:1]); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
			if i < 3 {
				time.Sleep(2 * limit) // the reader is slow, nobody else
			}
		}
		start := time.Now()
		_, err = io.ReadFull(body, buf)
		if took := time.Since(start); !errors.Is(err, ErrTimeout) || !errdefs.IsUnavailable(err) || took != limit {
			t.Errorf("a body that has stalled: %v after %v", err, took)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		if s.Context().Err() == nil {
			t.Error("closing the body does not end the transfer")
		}
	})
}

// A request's body that is not taken ends; one whose sender has nothing to send does not.
func TestSendingStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		over := make(chan struct{})
		defer n.Serve("a:1", func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 3<<20)
			<-over
		})()
		defer close(over)
		c := n.client("a:1")
		defer c.Close()
		pr, pw := io.Pipe()
		defer pr.Close() // frees the writer
		s := NewStall(t.Context(), limit)
		defer s.End()
		done := make(chan error, 1)
		go func() {
			_, err := c.Do(s.Context(), c.Servers()[0], &Request{Method: "PATCH", Path: "/", Body: s.Sending(pr)})
			done <- err
		}()
		chunk := make([]byte, 1<<20)
		for range 3 { // the sender is slow
			time.Sleep(3 * limit)
			if _, err := pw.Write(chunk); err != nil {
				t.Fatalf("sending: %v", err)
			}
		}
		go func() { _, _ = pw.Write(chunk) }()
		start := time.Now()
		if err, took := <-done, time.Since(start); !errors.Is(err, ErrTimeout) || took != limit {
			t.Errorf("a body that is not taken: %v after %v", err, took)
		}
	})
}

// A transfer that has ended does not stall, whoever still reads.
func TestStallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStall(t.Context(), limit)
		body := s.Sending(strings.NewReader("x"))
		s.End()
		if n, err := body.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Error(n, err)
		}
		time.Sleep(2 * limit)
		if err := context.Cause(s.Context()); errors.Is(err, ErrTimeout) {
			t.Errorf("it stalled after its end: %v", err)
		}
		other := errors.New("other")
		if got := s.Err(other); got != other {
			t.Errorf("the error is %v, want that of the transfer", got)
		}
	})
}
