package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"
)

// PKI is a cluster's certificate authority, as `capelin ca` makes it.
type PKI struct {
	Dir string

	host *Host
}

// NewPKI makes an authority for the cluster "default" with the command line that
// operators use.
func (c *Cluster) NewPKI(ctx context.Context) (*PKI, error) {
	bin, err := Built("capelin")
	if err != nil {
		return nil, err
	}
	p := &PKI{Dir: filepath.Join(c.Dir, "pki"), host: c.Switch}
	if _, err := p.host.Command(ctx, nil, bin, "ca", "init", "--dir", p.Dir, "--cluster", "default"); err != nil {
		return nil, err
	}
	return p, nil
}

// CA is the authority's certificate, a PEM file.
func (p *PKI) CA() string { return filepath.Join(p.Dir, "ca.crt") }

// Issue makes a certificate, and returns the keys of a role's configuration that
// use it, as TOML values.
func (p *PKI) Issue(ctx context.Context, name, roles string, hosts ...string) (map[string]string, error) {
	bin, err := Built("capelin")
	if err != nil {
		return nil, err
	}
	out := filepath.Join(p.Dir, "issued", name)
	args := []string{"ca", "issue", "--dir", p.Dir, "--role", roles, "--name", name, "--out", out}
	for _, h := range hosts {
		args = append(args, "--host", h)
	}
	if _, err := p.host.Command(ctx, nil, bin, args...); err != nil {
		return nil, err
	}
	return map[string]string{
		"identity.ca": fmt.Sprintf("%q", filepath.Join(out, "ca.crt")), "identity.cert": fmt.Sprintf("%q", filepath.Join(out, "tls.crt")),
		"identity.key": fmt.Sprintf("%q", filepath.Join(out, "tls.key")), "insecure": "false",
	}, nil
}

// ClientTLS is what a client of TLS servers needs to trust them, and no more.
func (p *PKI) ClientTLS() (*tls.Config, error) {
	pem, err := os.ReadFile(p.CA())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", p.CA())
	}
	return &tls.Config{RootCAs: pool}, nil
}

// Server is a `capelin server` on a host of its own.
type Server struct {
	*Host
	Gateway string       // host:port of the registry API
	Tracker string       // host:port that agents use
	Data    string       // all that it keeps
	Sent    atomic.Int64 // bytes of bodies that clients of Remote and Push have sent

	pki    *PKI
	env    []string
	config string
	proc   *Process
}

// User is somebody who may use the gateway.
type User struct {
	Name, Password string
	Namespaces     string   // regular expression
	Actions        []string // pull, push, delete
}

// ServerOptions say how a server is set up.
type ServerOptions struct {
	PKI   *PKI // nil: without identity
	Users []User
	Keys  map[string]string // of server.toml to values as TOML, beside the harness's
	Env   []string          // of its process, beside the harness's
	TOML  string            // appended to its configuration
}

// NewServer makes a host and starts a server on it.
func (c *Cluster) NewServer(ctx context.Context, name string, o ServerOptions) (*Server, error) {
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	return c.newServer(ctx, h, o)
}

// NewServers makes several hosts, and starts servers on them that are one ring. The first has the index and the tracker of all, unless
// a storage (the key storage.kind) has the tags.
func (c *Cluster) NewServers(ctx context.Context, o ServerOptions, names ...string) (all []*Server, err error) {
	var hosts []*Host
	var members []string
	for _, name := range names {
		h, err := c.NewHost(name)
		if err != nil {
			return nil, err
		}
		hosts, members = append(hosts, h), append(members, fmt.Sprintf("%q", name+"="+h.Addr+":7480"))
	}
	keys := map[string]string{"origin.ring.members": "[" + strings.Join(members, ", ") + "]"}
	if o.Keys["storage.kind"] == "" {
		keys["gateway.indexes"] = fmt.Sprintf("[%q]", hosts[0].Addr+":7490")
		keys["origin.trackers"] = fmt.Sprintf("[%q]", hosts[0].Addr+":7470")
	}
	maps.Copy(keys, o.Keys)
	o.Keys = keys
	for _, h := range hosts {
		s, err := c.newServer(ctx, h, o)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// newServer starts a server on a host.
func (c *Cluster) newServer(ctx context.Context, h *Host, o ServerOptions) (*Server, error) {
	name := h.Name
	s := &Server{
		Host: h, Gateway: h.Addr + ":7500", Tracker: h.Addr + ":7470", pki: o.PKI, env: o.Env,
		config: filepath.Join(h.Dir, "server.toml"), Data: filepath.Join(h.Dir, "data"),
	}
	keys := map[string]string{
		"data":      fmt.Sprintf("%q", s.Data),
		"address":   fmt.Sprintf("%q", h.Addr),
		"name":      fmt.Sprintf("%q", name),
		"insecure":  "true",
		"log_level": `"debug"`,
		// No other agents are about to reconnect to a tracker that was just started.
		"tracker.lease.warmup":    `"0s"`,
		"origin.cache.free_floor": "-1.0",
	}
	maps.Copy(keys, o.Keys)
	if o.PKI != nil {
		id, err := o.PKI.Issue(ctx, name, "tracker,origin,index,gateway", h.Addr)
		if err != nil {
			return nil, err
		}
		for k, v := range id {
			keys[k] = v
		}
	}
	rules := ""
	if len(o.Users) > 0 {
		var users strings.Builder
		for _, u := range o.Users {
			hash, err := bcrypt.GenerateFromPassword([]byte(u.Password), bcrypt.MinCost)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&users, "%s:%s\n", u.Name, hash)
			rules += fmt.Sprintf("\n[[gateway.rule]]\nusers = [%q]\nnamespaces = [%q]\nactions = [\"%s\"]\n",
				u.Name, u.Namespaces, strings.Join(u.Actions, `", "`))
		}
		file := filepath.Join(h.Dir, "users")
		if err := os.WriteFile(file, []byte(users.String()), 0o600); err != nil {
			return nil, err
		}
		keys["gateway.users"] = fmt.Sprintf("%q", file)
	}
	if err := os.WriteFile(s.config, []byte(tomlOf(keys)+rules+o.TOML), 0o644); err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}

// Start starts it, again after a Kill or Stop, and waits until it is ready.
func (s *Server) Start(ctx context.Context) error {
	bin, err := Built("capelin")
	if err != nil {
		return err
	}
	if s.proc, err = s.Host.Start("server", s.env, nil, bin, "server", "--config", s.config); err != nil {
		return err
	}
	t, err := s.transport()
	if err != nil {
		return err
	}
	defer t.CloseIdleConnections()
	return s.proc.await(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.scheme()+"://"+s.Gateway+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{Transport: t}).Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode >= 500 {
			return errors.New(resp.Status)
		}
		return s.accepts(s.Tracker)(ctx)
	})
}

// Tail returns the end of its log.
func (s *Server) Tail(lines int) string { return s.proc.Tail(lines) }

// CPU returns what it has used since it was started.
func (s *Server) CPU() (time.Duration, error) { return ProcessCPU(s.proc.PID()) }

// Kill ends it with SIGKILL.
func (s *Server) Kill() { s.proc.Kill() }

// Stop ends it with SIGTERM.
func (s *Server) Stop() error { return s.proc.Stop() }

// PID returns the process's id, as this machine sees it.
func (s *Server) PID() int { return s.proc.PID() }

func (s *Server) scheme() string {
	if s.pki != nil {
		return "https"
	}
	return "http"
}

// transport speaks to the gateway from within its host, as a client that trusts the CA.
func (s *Server) transport() (*http.Transport, error) {
	t := &http.Transport{DialContext: s.DialContext, ResponseHeaderTimeout: time.Minute}
	if s.pki != nil {
		conf, err := s.pki.ClientTLS()
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig = conf
	}
	return t, nil
}

// Reference returns the name by which clients know repo:tag at the gateway.
func (s *Server) Reference(repoTag string) string { return s.Gateway + "/" + repoTag }

// Remote returns what go-containerregistry's client needs to speak to the
// gateway as a user; the zero User: as nobody. close ends its connections.
func (s *Server) Remote(ctx context.Context, u User) (o []remote.Option, close func(), err error) {
	t, err := s.transport()
	if err != nil {
		return nil, nil, err
	}
	o = []remote.Option{remote.WithTransport(&sending{t, &s.Sent}), remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Steps: 1})}
	if u.Name != "" {
		o = append(o, remote.WithAuth(&authn.Basic{Username: u.Name, Password: u.Password}))
	}
	return o, t.CloseIdleConnections, nil
}

// sending counts bytes of bodies.
type sending struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c *sending) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r = r.Clone(r.Context())
		r.Body = &sentBody{r.Body, c.n}
	}
	return c.RoundTripper.RoundTrip(r)
}

type sentBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// reach returns what go-containerregistry's client needs to speak of repo:tag.
func (s *Server) reach(ctx context.Context, repoTag string, u User) (ref name.Reference, o []remote.Option, done func(), err error) {
	var opts []name.Option
	if s.pki == nil {
		opts = append(opts, name.Insecure)
	}
	if ref, err = name.ParseReference(s.Reference(repoTag), opts...); err != nil {
		return nil, nil, nil, err
	}
	o, done, err = s.Remote(ctx, u)
	return ref, o, done, err
}

// Push pushes an image through the gateway as a user. more are options of the client's, which by itself tries once.
func (s *Server) Push(ctx context.Context, img *Image, repoTag string, u User, more ...remote.Option) (string, error) {
	ref, o, done, err := s.reach(ctx, repoTag, u)
	if err != nil {
		return "", err
	}
	defer done()
	if err := remote.Write(ref, img.V1, append(o, more...)...); err != nil {
		return "", fmt.Errorf("pushing %s: %w", repoTag, err)
	}
	return s.Reference(repoTag), nil
}

// Digest returns what repo:tag is at the gateway, for a user.
func (s *Server) Digest(ctx context.Context, repoTag string, u User) (string, error) {
	ref, o, done, err := s.reach(ctx, repoTag, u)
	if err != nil {
		return "", err
	}
	defer done()
	d, err := remote.Head(ref, o...)
	if err != nil {
		return "", fmt.Errorf("asking %s for %s: %w", s.Name, repoTag, err)
	}
	return d.Digest.String(), nil
}

// TrustGateway makes a node's containerd trust a gateway's certificate. Where its images are named after it, the others are
// asked as well, when it does not answer.
func (n *Node) TrustGateway(s *Server, others ...*Server) error {
	d := filepath.Join(n.CertsDir(), s.Gateway)
	if err := os.MkdirAll(d, 0o755); err != nil {
		return err
	}
	ca := ""
	if s.pki != nil {
		ca = fmt.Sprintf("ca = %q\n", s.pki.CA())
	}
	toml := fmt.Sprintf("server = \"%s://%s\"\n%s", s.scheme(), s.Gateway, ca)
	for _, o := range append([]*Server{s}, others...) {
		if len(others) > 0 {
			toml += fmt.Sprintf("[host.\"%s://%s\"]\n%s", o.scheme(), o.Gateway, ca)
		}
	}
	return os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(toml), 0o644)
}
