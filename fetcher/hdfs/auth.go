package hdfs

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jcmturner/gokrb5/v8/client"
	krbconfig "github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/spnego"
)

const (
	// tokenLife is how long a delegation token is used. A server's own limit is a day, unless it is configured
	// otherwise: what is refused is fetched anew at once.
	tokenLife = 12 * time.Hour
	maxToken  = 16 << 10
	// maxHeader is how long a ticket may be: a server's headers end at 64 KiB by default.
	maxHeader = 64 << 10
)

// token is a namenode's delegation token. One fetches it, others wait.
type token struct {
	gate  chan struct{} // 1 buffered; who has put something in may look at the rest
	value string
	until time.Time
}

func newToken() *token { return &token{gate: make(chan struct{}, 1)} }

func (t *token) lock(ctx context.Context) error {
	select {
	case t.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *token) unlock() { <-t.gate }

// drop forgets a token that was refused.
func (t *token) drop(ctx context.Context, value string) {
	if t.lock(ctx) != nil {
		return
	}
	defer t.unlock()
	if t.value == value {
		t.value = ""
	}
}

// authorize adds what says who asks. used is the token that it took.
func (b *Backend) authorize(ctx context.Context, n *namenode, q url.Values) (used string, err error) {
	if n.token == nil {
		if b.cfg.User != "" {
			q.Set("user.name", b.cfg.User)
		}
		return "", nil
	}
	if err := n.token.lock(ctx); err != nil {
		return "", err
	}
	defer n.token.unlock()
	if n.token.value == "" || !time.Now().Before(n.token.until) {
		value, err := b.fetchToken(ctx, n)
		if err != nil {
			return "", fmt.Errorf("getting a delegation token: %w", err)
		}
		n.token.value, n.token.until = value, time.Now().Add(tokenLife)
	}
	q.Set("delegation", n.token.value)
	return n.token.value, nil
}

// fetchToken gets a delegation token for a Kerberos ticket. With it, requests need no tickets of their own; and a namenode
// that sends a request on to a datanode passes it on, instead of issuing, and writing
// to its log, one for each.
func (b *Backend) fetchToken(ctx context.Context, n *namenode) (string, error) {
	header, renewer, err := b.ticket(ctx, n.url.Hostname())
	if err != nil {
		return "", err
	}
	r := request{method: http.MethodGet, path: "/"}
	q := url.Values{"op": {"GETDELEGATIONTOKEN"}, "renewer": {renewer}}
	resp, err := b.exchange(ctx, n, r, q, http.Header{"Authorization": {header}})
	if err != nil {
		return "", err
	}
	var a struct{ Token *struct{ URLString string } }
	if err := answer(resp, &a); err != nil {
		return "", err
	}
	if a.Token == nil || a.Token.URLString == "" || len(a.Token.URLString) > maxToken {
		return "", fmt.Errorf("it gives none, perhaps because the cluster works without Kerberos: %w", errdefs.ErrFailedPrecondition)
	}
	return a.Token.URLString, nil
}

// ticket returns what proves to the HTTP server on a host who asks, and the principal's first part. It waits only as
// long as ctx allows, because gokrb5 does not end with one.
func (b *Backend) ticket(ctx context.Context, host string) (header, name string, err error) {
	type result struct {
		header, name string
		err          error
	}
	done := make(chan result, 1)
	b.wg.Go(func() {
		var r result
		r.header, r.name, r.err = negotiate(b.cfg, host)
		done <- r
	})
	select {
	case r := <-done:
		return r.header, r.name, r.err
	case <-ctx.Done():
		return "", "", ctx.Err()
	case <-b.closing.Done():
		return "", "", fmt.Errorf("closed: %w", errdefs.ErrUnavailable)
	}
}

// negotiate makes the header of SPNEGO (RFC 4559) for a service HTTP/host. It reads all files anew.
func negotiate(cfg Config, host string) (header, name string, err error) {
	defer func() {
		if p := recover(); p != nil { // gokrb5 trusts the lengths in files
			err = fmt.Errorf("kerberos: %v: %w", p, errdefs.ErrUnavailable)
		}
	}()
	krb, err := login(cfg)
	if err != nil {
		return "", "", err
	}
	defer krb.Destroy()
	req := &http.Request{Header: http.Header{}}
	if err := spnego.SetSPNEGOHeader(krb, req, "HTTP/"+host); err != nil {
		return "", "", fmt.Errorf("kerberos: a ticket for HTTP/%s: %w: %w", host, err, classOfKDC(err))
	}
	header = req.Header.Get("Authorization")
	if len(header) > maxHeader {
		return "", "", fmt.Errorf("kerberos: the ticket for HTTP/%s has more than %d bytes: %w", host, maxHeader, errdefs.ErrUnavailable)
	}
	return header, krb.Credentials.CName().NameString[0], nil
}

// login returns a client with tickets. It must be destroyed.
func login(cfg Config) (*client.Client, error) {
	krbConf, err := krbconfig.Load(cfg.Krb5Conf)
	if err != nil {
		return nil, fmt.Errorf("kerberos: %s: %w: %w", cfg.Krb5Conf, err, errdefs.ErrFailedPrecondition)
	}
	if cfg.CCache != "" {
		cache, err := credentials.LoadCCache(cfg.CCache)
		if err == nil && len(cache.DefaultPrincipal.PrincipalName.NameString) == 0 {
			err = fmt.Errorf("it names nobody")
		}
		var krb *client.Client
		if err == nil {
			krb, err = client.NewFromCCache(cache, krbConf, client.DisablePAFXFAST(true))
		}
		if err != nil {
			return nil, fmt.Errorf("kerberos: ccache %s: %w: %w", cfg.CCache, err, errdefs.ErrUnauthenticated)
		}
		return krb, nil
	}
	keys, err := keytab.Load(cfg.Keytab)
	if err != nil {
		return nil, fmt.Errorf("kerberos: keytab %s: %w: %w", cfg.Keytab, err, errdefs.ErrUnauthenticated)
	}
	name, realm, _ := strings.Cut(cfg.Principal, "@")
	krb := client.NewWithKeytab(name, realm, keys, krbConf, client.DisablePAFXFAST(true))
	if err := krb.Login(); err != nil {
		krb.Destroy()
		return nil, fmt.Errorf("kerberos: logging in as %s: %w: %w", cfg.Principal, err, classOfKDC(err))
	}
	return krb, nil
}

// classOfKDC tells a KDC's refusal from one that is not reached.
func classOfKDC(err error) error {
	if strings.Contains(err.Error(), "KRB Error") || strings.Contains(err.Error(), "matching key not found") {
		return errdefs.ErrUnauthenticated
	}
	return errdefs.ErrUnavailable
}
