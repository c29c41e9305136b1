package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Serve serves HTTP on ln, over TLS if s.TLSConfig is set, until ctx is done; then
// requests have stop to end before they are broken off. It returns when that is over
// and ln is closed, with an error if it could not serve.
//
// What s leaves out gets a value: a limit to the time and the size of a request's
// header and to the time that a connection may idle, and ctx's log for errors. Requests
// have the values of ctx, but end only with Serve.
func Serve(ctx context.Context, ln net.Listener, s *http.Server, stop time.Duration) error {
	if s.ReadHeaderTimeout == 0 {
		s.ReadHeaderTimeout = 10 * time.Second
	}
	if s.IdleTimeout == 0 {
		s.IdleTimeout = 2 * time.Minute
	}
	if s.MaxHeaderBytes == 0 {
		s.MaxHeaderBytes = 16 << 10
	}
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.ErrorLog = ErrorLog(ctx)
	s.BaseContext = func(net.Listener) context.Context { return requests }
	stopped := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(stopped)
		patience, over := context.WithTimeout(requests, stop)
		defer over()
		if err := s.Shutdown(patience); err != nil {
			_ = s.Close()
		}
	})
	var err error
	if s.TLSConfig != nil {
		err = s.ServeTLS(ln, "", "")
	} else {
		err = s.Serve(ln)
	}
	if !end() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	_ = s.Close()
	return fmt.Errorf("serving HTTP on %s: %w", ln.Addr(), err)
}
