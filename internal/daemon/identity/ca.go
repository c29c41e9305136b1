package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/capelin-io/capelin/internal/durable"
)

// Names of the files of an authority and of what it issues.
const (
	CACert = "ca.crt"
	CAKey  = "ca.key" // of the authority only; whoever has it can be anybody
	Cert   = "tls.crt"
	Key    = "tls.key"
)

const (
	caYears  = 10
	backdate = 5 * time.Minute // for machines whose clocks are behind
)

// CA is a cluster's certificate authority: a directory with its certificate and key.
type CA struct {
	Cluster string

	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte // what those it issues to are to trust
}

// InitCA makes the authority of a cluster in a directory, which is made if need
// be. It never replaces one: errors.Is(err, fs.ErrExist).
func InitCA(dir, cluster string) (*CA, error) {
	if err := checkName("cluster", cluster, 64); err != nil {
		return nil, err
	}
	for _, name := range []string{CACert, CAKey} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: an authority is there already: %w", filepath.Join(dir, name), fs.ErrExist)
		}
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Capelin CA of " + cluster, Organization: []string{cluster}},
		NotBefore: now.Add(-backdate), NotAfter: now.AddDate(caYears, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate without a key could not be made good.
	if err := writeKey(filepath.Join(dir, CAKey), key); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(filepath.Join(dir, CACert), encode("CERTIFICATE", der), 0o644); err != nil {
		return nil, err
	}
	return OpenCA(dir)
}

// OpenCA opens an authority. Certificates after its own in its ca.crt are of other
// authorities, which whoever gets a certificate is to trust as well.
func OpenCA(dir string) (*CA, error) {
	cert, key := filepath.Join(dir, CACert), filepath.Join(dir, CAKey)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("authority in %s: %w", dir, err)
	}
	ca := &CA{cert: pair.Leaf}
	for _, der := range pair.Certificate {
		ca.pem = append(ca.pem, encode("CERTIFICATE", der)...)
	}
	var ok bool
	if ca.key, ok = pair.PrivateKey.(crypto.Signer); !ok || !ca.cert.IsCA || len(ca.cert.Subject.Organization) != 1 {
		return nil, fmt.Errorf("%s is not the certificate of a cluster's authority", cert)
	}
	ca.Cluster = ca.cert.Subject.Organization[0]
	return ca, nil
}

// Issue makes a certificate for id in a directory: ca.crt, tls.crt and tls.key.
// id.Cluster is the authority's. hosts are DNS names and IP addresses by which
// clients that know nothing of Capelin reach the owner. The files replace those
// that are there; whoever runs with them takes the new ones.
func (ca *CA) Issue(dir string, id ID, hosts []string, valid time.Duration) error {
	id.Cluster = ca.Cluster
	if err := checkName("name", id.Name, 253); err != nil {
		return err
	}
	if len(id.Roles) == 0 {
		return errors.New("a certificate needs a role")
	}
	for _, r := range id.Roles {
		if !isRole(r) {
			return fmt.Errorf("no such role: %q; there are %s", r, join(Roles, ", "))
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: cut(id.Name, 64), Organization: []string{id.Cluster}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(valid), URIs: id.URIs(),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		return fmt.Errorf("the certificate would outlive the authority's, which ends %s", ca.cert.NotAfter.Format(time.DateOnly))
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("certificate for %s: %w", id, err)
	}
	// Not every name that is a URI's can be read back from a certificate.
	if _, err := x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("certificate for %s: %w", id, err)
	}
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, CACert), ca.pem, 0o644); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, Key), key); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, Cert), encode("CERTIFICATE", der), 0o644)
}

// ReadCert returns the first certificate of a PEM file, and who it is for; id is
// zero with an error if it names nobody.
func ReadCert(path string) (cert *x509.Certificate, id ID, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, ID{}, err
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, ID{}, fmt.Errorf("%s holds no certificate", path)
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, ID{}, fmt.Errorf("%s: %w", path, err)
		}
		id, err = idOf(cert)
		return cert, id, err
	}
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, encode("PRIVATE KEY", der), 0o600)
}
