package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/reload"
)

// Config says where a role's certificate is.
type Config struct {
	CA   string `toml:"ca" comment:"PEM file with the certificates of the cluster's CA; several while one replaces the other. With identity everything between nodes and servers is mutual TLS."`
	Cert string `toml:"cert" comment:"PEM file with this role's certificate, as \"capelin ca issue\" makes it, and those between it and the CA, if there are any. Changed files are read again without a restart."`
	Key  string `toml:"key" comment:"PEM file with the certificate's private key. All three empty: no identity."`
}

// Enabled reports whether there is an identity.
func (c Config) Enabled() bool { return c != Config{} }

// Check returns what is wrong with c, as errors about the keys below prefix, such
// as "identity.".
func (c Config) Check(prefix string) (errs []error) {
	if !c.Enabled() {
		return nil
	}
	for _, f := range []struct{ key, path string }{{"ca", c.CA}, {"cert", c.Cert}, {"key", c.Key}} {
		if f.path == "" {
			errs = append(errs, config.Invalid(prefix+f.key, "must be set, because others of the identity are"))
		}
	}
	return errs
}

// CheckListen returns an error about key if addr is reached from other machines
// although there is neither identity nor a word that this is meant. What is not
// host:port is for others to refuse.
func (c Config) CheckListen(key, addr string, insecure bool) []error {
	if _, _, err := net.SplitHostPort(addr); err != nil || c.Enabled() || insecure || IsLoopback(addr) {
		return nil
	}
	return []error{config.Invalid(key, "%q is reached from other machines, and there is no identity: configure [identity], or say "+
		"insecure = true if everybody on that network may do everything", addr)}
}

// IsLoopback reports whether addr, host:port, is reached from this machine only.
func IsLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Source is an identity in use.
type Source struct {
	// These, if not nil, are told what an operator should know. They are to be set
	// before anything else is called.

	// Report: Run read the files again, err nil, or what is in them cannot be used.
	Report func(err error)
	// Warn, by Run: the certificate is not valid, or will not be for long. That is 30,
	// 7 and 1 days before its end, if then less than a quarter of its time is left.
	Warn func(what string)
	// Refused, by handshakes of servers, at any time: who came and why not.
	Refused func(err error)

	cfg     Config
	cluster string
	files   *reload.Files[*material]
}

// material is what the files held together.
type material struct {
	cert  tls.Certificate
	roots *x509.CertPool
	id    ID
}

// Load reads an identity of a cluster. The error says which file is wrong, and how.
// That the certificate has ended, or begins later, is no error: others refuse it as
// long as that is so, but a node must start while its clock is still wrong.
func Load(c Config, cluster string) (*Source, error) {
	s := &Source{cfg: c, cluster: cluster}
	var err error
	s.files, err = reload.Open(s.read, func(err error) {
		if err != nil {
			err = fmt.Errorf("the identity's files changed and cannot be used, the former ones stay in use: %w", err)
		}
		if s.Report != nil {
			s.Report(err)
		}
	}, c.CA, c.Cert, c.Key)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Source) read() (*material, error) {
	m := &material{roots: x509.NewCertPool()}
	var errs []error
	read := func(key, path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, config.Unreadable("identity."+key, path, err))
		}
		return data
	}
	ca, cert, key := read("ca", s.cfg.CA), read("cert", s.cfg.Cert), read("key", s.cfg.Key)
	if ca != nil && !m.roots.AppendCertsFromPEM(ca) {
		errs = append(errs, config.Invalid("identity.ca", "%s holds no certificate", s.cfg.CA))
	}
	var err error
	if cert != nil && key != nil {
		if m.cert, err = tls.X509KeyPair(cert, key); err != nil {
			errs = append(errs, config.Invalid("identity.cert", "%s with %s: %v", s.cfg.Cert, s.cfg.Key, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	chain := make([]*x509.Certificate, 0, len(m.cert.Certificate))
	for _, der := range m.cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, config.Invalid("identity.cert", "%s: %v", s.cfg.Cert, err)
		}
		chain = append(chain, c)
	}
	m.cert.Leaf = chain[0]
	at := time.Now()
	if at.Before(m.cert.Leaf.NotBefore) {
		at = m.cert.Leaf.NotBefore
	}
	if at.After(m.cert.Leaf.NotAfter) {
		at = m.cert.Leaf.NotAfter
	}
	if m.id, err = s.verify(chain, m.roots, at, x509.ExtKeyUsageClientAuth, Roles); err == nil && m.id.serves() {
		_, err = s.verify(chain, m.roots, at, x509.ExtKeyUsageServerAuth, Roles)
	}
	if err != nil {
		return nil, config.Invalid("identity.cert", "%s: %v", s.cfg.Cert, err)
	}
	return m, nil
}

// ID returns whose identity it is.
func (s *Source) ID() ID { return s.files.Now().id }

// ServerTLS returns what a server needs to accept those who have one of the roles,
// and nobody else. It fits gRPC, HTTP and plain connections.
func (s *Source) ServerTLS(allow ...Role) *tls.Config {
	c := s.server(allow)
	c.ClientAuth = tls.RequireAnyClientCert // verified by VerifyConnection, which knows the newest CA
	return c
}

// ServerTLSOptional is ServerTLS, but accepts those as well who show no
// certificate; [PeerID] tells them apart.
func (s *Source) ServerTLSOptional(allow ...Role) *tls.Config {
	c := s.server(allow)
	c.ClientAuth = tls.RequestClientCert
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return verify(cs)
	}
	return c
}

// ClientTLS returns what a client needs to reach servers that have one of the
// roles, and no others, under whatever address.
func (s *Source) ClientTLS(expect ...Role) *tls.Config {
	c := s.base(x509.ExtKeyUsageServerAuth, expect)
	c.InsecureSkipVerify = true //nolint:gosec // VerifyConnection verifies the chain, the cluster and the role instead of a host name
	return c
}

// PeerTLS returns what both ends need that find each other by address and may
// each dial the other: the swarm.
func (s *Source) PeerTLS(allow ...Role) *tls.Config {
	c := s.base(x509.ExtKeyUsageAny, allow)
	c.ClientAuth = tls.RequireAnyClientCert
	c.InsecureSkipVerify = true //nolint:gosec // as in ClientTLS
	return c
}

// server is base, but tells of those who are refused.
func (s *Source) server(allow []Role) *tls.Config {
	c := s.base(x509.ExtKeyUsageClientAuth, allow)
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		if err != nil && s.Refused != nil {
			s.Refused(err)
		}
		return err
	}
	return c
}

func (s *Source) base(usage x509.ExtKeyUsage, roles []Role) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &s.files.Now().cert, nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &s.files.Now().cert, nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := s.verify(cs.PeerCertificates, s.files.Now().roots, time.Now(), usage, roles)
			return err
		},
	}
}

// verify says whose chain it is, or why it is refused.
func (s *Source) verify(chain []*x509.Certificate, roots *x509.CertPool, at time.Time, usage x509.ExtKeyUsage, roles []Role) (ID, error) {
	if len(chain) == 0 {
		return ID{}, errors.New("no certificate was shown")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	id, err := idOf(chain[0])
	if err != nil {
		return ID{}, err
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return ID{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	switch {
	case id.Cluster != s.cluster:
		return ID{}, fmt.Errorf("certificate of %s: this is cluster %s", id, s.cluster)
	case !id.Has(roles...):
		return ID{}, fmt.Errorf("certificate of %s: it would have to be for %s", id, join(roles, " or "))
	}
	return id, nil
}

func join(roles []Role, by string) string {
	s := make([]string, len(roles))
	for i, r := range roles {
		s[i] = string(r)
	}
	return strings.Join(s, by)
}
