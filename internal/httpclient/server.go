package httpclient

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// A server that did not answer is asked after all others for so long, doubling.
const (
	downMin = time.Second
	downMax = 30 * time.Second
)

// Request is what a server is asked.
type Request struct {
	Method string
	Path   string // with the query
	Header http.Header
	Body   io.Reader // nil: none
}

// Server is one server, and whether it answers.
type Server struct {
	Base string // "http://host:port"

	absences atomic.Uint64 // how often nobody was there

	mu    sync.Mutex
	until time.Time // it is asked last before
	pause backoff.ExponentialBackOff
}

func newServer(base string) *Server {
	return &Server{Base: base, pause: backoff.ExponentialBackOff{InitialInterval: downMin, MaxInterval: downMax, Multiplier: 2}}
}

// Failed notes that a server did not answer, or broke its answer off.
func (s *Server) Failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = time.Now().Add(s.pause.NextBackOff())
}

// absent reports whether an error is what a server that restarts leaves of a request. One
// that is slow, or refuses a certificate, does so again.
func absent(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pause.Reset()
	s.until = time.Time{}
}

func (s *Server) down(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until.After(now)
}

// healthiest returns which server is to be asked next: the first that has not just failed,
// or else the first.
func healthiest(servers []*Server) int {
	now := time.Now()
	return max(0, slices.IndexFunc(servers, func(s *Server) bool { return !s.down(now) }))
}
