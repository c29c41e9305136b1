package shim

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// trusting is a transport that trusts the CAs of a file besides the system's, and
// reads it again when it changes. It is safe for concurrent use.
type trusting struct {
	ca string // path; empty: the system's only

	mu     sync.Mutex
	looked time.Time
	stamp  fileStamp
	now    *http.Transport
}

// load reads the file.
func (t *trusting) load() error {
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: upstreamTimeout,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   16,
		DisableCompression:    true, // blobs come as they are
		// HTTP/1.1: blobs are large, and a connection for each moves them faster.
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if t.ca != "" {
		if info, err := os.Stat(t.ca); err == nil {
			t.stamp = fileStamp{info.ModTime(), info.Size()}
		}
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return err
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", t.ca)
		}
		tr.TLSClientConfig.RootCAs = roots
	}
	t.now, t.looked = tr, time.Now()
	return nil
}

func (t *trusting) get() *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ca == "" || time.Since(t.looked) < lookAgain {
		return t.now
	}
	t.looked = time.Now()
	info, err := os.Stat(t.ca)
	if err != nil || t.stamp == (fileStamp{info.ModTime(), info.Size()}) {
		return t.now
	}
	old := t.now
	if t.load() == nil { // else it is being written, and is read when it has changed again
		old.CloseIdleConnections()
	}
	return t.now
}

// RoundTrip implements http.RoundTripper.
func (t *trusting) RoundTrip(r *http.Request) (*http.Response, error) { return t.get().RoundTrip(r) }

// CloseIdleConnections is for http.Client.
func (t *trusting) CloseIdleConnections() { t.get().CloseIdleConnections() }
