package swarm_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm"
)

// What a greeting finds out: of two that speak TLS or not, and of those that are no peers. It leaves no
// connection behind, and takes nobody's place.
func TestGreet(t *testing.T) {
	ca := newAuthority(t)
	plain := loopback.start(t, "plain", tempStore(t), nil)
	secure := loopback.start(t, "secure", tempStore(t), ca.secure(t, "secure"))
	answers := func(with string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = c.Write([]byte(with))
					_, _ = io.Copy(io.Discard, c) // until the other end closes
				}()
			}
		}()
		return l.Addr().String()
	}
	ours, strange := ca.config(t, "n"), newAuthority(t).config(t, "n")
	strange.RootCAs = ca.pool
	for _, tt := range []struct {
		name, addr string
		secure     *tls.Config
		want       string // a part of the error; empty: none
	}{
		{"plain, both", plain.addr, nil, ""},
		{"TLS, both", secure.addr, ours, ""},
		{"TLS here only", plain.addr, ours, "does not speak TLS, and this node has an [identity]"},
		{"TLS there only", secure.addr, nil, "speaks TLS, and this node has no [identity]"},
		{"a certificate of another authority", secure.addr, strange, "refuses this node's certificate"},
		{"a web server", answers("HTTP/1.1 400 Bad Request\r\n\r\n"), nil, "is no peer"},
		{"one that says nothing", answers(""), nil, "no answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			nc, err := net.Dial("tcp", tt.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if tt.want == "no answer" {
				time.AfterFunc(20*time.Millisecond, cancel)
			}
			if tt.secure != nil {
				tt.secure = tt.secure.Clone()
				tt.secure.ServerName = "127.0.0.1"
			}
			err = swarm.Greet(ctx, nc, tt.secure)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if n := len(plain.Snapshot().Conns) + len(secure.Snapshot().Conns); n > 0 {
		t.Errorf("%d connections", n)
	}
}
