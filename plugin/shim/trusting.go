package shim

import (
	"net"
	"net/http"
	"time"

	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/internal/reload"
)

// trusting is a transport that trusts the CAs of a file besides the system's, and
// reads it again when it changes. It is safe for concurrent use.
type trusting struct{ *reload.Files[*http.Transport] }

// newTrusting reads the file; ca is its path, or empty: the system's CAs only.
func newTrusting(ca string) (trusting, error) {
	f, err := reload.Open(func() (*http.Transport, error) { return trustingNow(ca) }, ops.Reread("CAs of registries"), ca)
	return trusting{f}, err
}

func trustingNow(ca string) (*http.Transport, error) {
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: upstreamTimeout,
		IdleConnTimeout:       time.Minute, // of one that is replaced, too
		MaxIdleConnsPerHost:   16,
		DisableCompression:    true, // blobs come as they are
	}
	// HTTP/1.1, which a configuration of its own makes it: blobs are large, and a connection for each moves them faster.
	var err error
	tr.TLSClientConfig, err = httpclient.TrustAlso(ca)
	return tr, err
}

// RoundTrip implements http.RoundTripper.
func (t trusting) RoundTrip(r *http.Request) (*http.Response, error) { return t.Get().RoundTrip(r) }

// CloseIdleConnections is for http.Client.
func (t trusting) CloseIdleConnections() { t.Now().CloseIdleConnections() }
