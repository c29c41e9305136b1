package ociapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes are connections in memory, whose deadlines are a bubble's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	p.conns <- there
	return here, nil
}

// serve serves a handler through Patient, and calls f with a client.
func serve(t *testing.T, h http.HandlerFunc, f func(c *http.Client)) {
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := &http.Server{Handler: Patient(h), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(p) }()
	tr := &http.Transport{DialContext: p.dial}
	f(&http.Client{Transport: tr})
	tr.CloseIdleConnections()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// What a handler does after the body may take longer than a client may stand still, and the connection is as good as before.
func TestPatientWork(t *testing.T) {
	for _, body := range []string{"", "some bytes"} {
		synctest.Test(t, func(t *testing.T) {
			work := func(w http.ResponseWriter, r *http.Request) {
				if got, err := io.ReadAll(r.Body); err != nil || string(got) != body {
					t.Errorf("%q, %v", got, err)
				}
				select {
				case <-time.After(20 * stallTimeout):
				case <-r.Context().Done():
					t.Errorf("ended: %v", context.Cause(r.Context()))
				}
				w.WriteHeader(http.StatusCreated)
			}
			serve(t, work, func(c *http.Client) {
				for range 2 {
					req, err := http.NewRequest(http.MethodPut, "http://x/", strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					resp, err := c.Do(req)
					if err != nil {
						t.Errorf("with %q: %v", body, err)
						return
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusCreated {
						t.Error(resp.Status)
					}
				}
			})
		})
	}
}

// A client that stands still in the middle of a body is not waited for longer than a minute.
func TestPatientStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		read := func(_ http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err == nil || time.Since(start) != stallTimeout {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		}
		serve(t, read, func(c *http.Client) {
			from, to := io.Pipe()
			go func() { _, _ = to.Write([]byte("some")) }()
			req, err := http.NewRequest(http.MethodPut, "http://x/", from)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err == nil {
				resp.Body.Close()
			}
			from.Close()
		})
	})
}
