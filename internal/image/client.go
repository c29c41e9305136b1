package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpclient"
)

// Config configures a Client. Its zero value is for registries of the public.
type Config struct {
	CA        string // PEM file of authorities trusted beside the system's; "": none
	Cert, Key string // PEM files of a client certificate; "": none
	PlainHTTP bool   // registries are spoken to without TLS; those on loopback are in any case, if they have none
	Jobs      int    // blobs moved at once; 0: 4
	// Credentials are those for registries; nil: Docker's configuration.
	Credentials authn.Keychain
}

// Client speaks to registries.
type Client struct {
	cfg       Config
	transport http.RoundTripper
}

// New reads the certificates.
func New(cfg Config) (*Client, error) {
	if cfg.Jobs <= 0 {
		cfg.Jobs = 4
	}
	if cfg.Credentials == nil {
		cfg.Credentials = authn.DefaultKeychain
	}
	t, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("the default transport is not net/http's")
	}
	t = t.Clone()
	var err error
	if t.TLSClientConfig, err = httpclient.TrustAlso(cfg.CA); err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, errors.New("a client certificate needs both its file and its key's")
	}
	if cfg.Cert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{cert}
	}
	return &Client{cfg: cfg, transport: t}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.(*http.Transport).CloseIdleConnections() }

// options are those of each call of package remote.
func (c *Client) options(ctx context.Context, t http.RoundTripper) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(t), remote.WithAuthFromKeychain(c.cfg.Credentials),
		remote.WithJobs(c.cfg.Jobs), remote.WithUserAgent(version.Software()),
	}
}

func (c *Client) naming() []name.Option {
	if c.cfg.PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

// reasonWithin is how long a registry that has refused something is asked why.
const reasonWithin = 10 * time.Second

// reason returns what a registry says when it is asked again by GET: answers to HEAD, with which a push begins, say nothing.
// nil: nothing, or it does not refuse that.
func (c *Client) reason(ctx context.Context, refused *transport.Error) error {
	if refused.Request == nil || refused.Request.Method != http.MethodHead || len(refused.Errors) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reasonWithin)
	defer cancel()
	req := refused.Request.Clone(ctx)
	req.Method = http.MethodGet
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	return transport.CheckError(resp, http.StatusOK)
}

// explain says what a registry means that refuses who asks.
func (c *Client) explain(ctx context.Context, err error, p Place) error {
	refused, ok := errors.AsType[*transport.Error](err)
	if !ok || p.Kind != Registry {
		return err
	}
	repo := p.Ref.Context()
	host := repo.RegistryStr()
	said := refused.Error()
	if len(refused.Errors) == 0 {
		said = fmt.Sprintf("%d %s", refused.StatusCode, http.StatusText(refused.StatusCode))
	}
	switch auth, aerr := authn.Resolve(context.Background(), c.cfg.Credentials, repo); {
	case refused.StatusCode == http.StatusUnauthorized && aerr == nil && auth == authn.Anonymous:
		return fmt.Errorf("registry %s wants to know who asks: \"capelin login %[1]s\", or --user, or --cert and --key (%[2]s)", host, said)
	case refused.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("registry %s does not accept the login: \"capelin login %[1]s\" again (%[2]s)", host, said)
	case refused.StatusCode == http.StatusForbidden:
		return fmt.Errorf("registry %s does not allow this (%s)", host, said)
	}
	if why := c.reason(ctx, refused); why != nil {
		return fmt.Errorf("%w: %w", err, why)
	}
	return err
}

// ParsePlatform reads "linux/arm64/v8" and the like.
func ParsePlatform(s string) (v1.Platform, error) {
	p, err := v1.ParsePlatform(s)
	if err != nil {
		return v1.Platform{}, err
	}
	if p.OS == "" || p.Architecture == "" {
		return v1.Platform{}, fmt.Errorf("platform %q is not os/architecture", s)
	}
	return *p, nil
}
