package httpclient

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// Who asks without TLS where it is wanted is told that, and not that somebody else is there.
func TestAskedWithoutTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	c, err := New(Options{What: "shop", Servers: []string{strings.TrimPrefix(s.URL, "https://")}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Do(t.Context(), c.Servers()[0], &Request{Method: "GET", Path: "/"})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "it wants TLS and a certificate") ||
		!strings.Contains(err.Error(), "--cert") {
		t.Errorf("got %v", err)
	}
}
