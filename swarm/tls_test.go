package swarm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/swarmtest"
	"github.com/capelin-io/capelin/swarm/wire"
)

// authority issues certificates whose common name is a node's name.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) config(t testing.TB, node string) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: node},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      a.pool, ClientCAs: a.pool,
	}
}

func verifyName(cs tls.ConnectionState, node string, _ wire.Role) error {
	if cn := cs.PeerCertificates[0].Subject.CommonName; cn != node {
		return fmt.Errorf("the certificate is %q's", cn)
	}
	return nil
}

func (a *authority) secure(t testing.TB, name string) func(*swarm.NodeConfig) {
	return func(c *swarm.NodeConfig) { c.TLS, c.VerifyPeer = a.config(t, name), verifyName }
}

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	seeder := loopback.start(t, "seeder", tempStore(t), ca.secure(t, "seeder"))
	id, data, _ := addBlob(t, seeder.store, 8<<20)
	seeder.join(t, id, false)
	leech := loopback.start(t, "leech", tempStore(t), ca.secure(t, "leech"))
	leech.join(t, id, true)
	leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
	if err := leech.wait(t, id); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
		t.Error("other bytes arrived")
	}

	dial := func(cfg *tls.Config) *swarmtest.Conn {
		nc, err := tls.Dial("tcp", seeder.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		return swarmtest.NewConn(nc)
	}
	// The certificate proves one name, Hello says another.
	c := dial(ca.config(t, "mallory"))
	if err := c.Say(swarmtest.Hello("test", "leech")); err != nil {
		t.Fatal(err)
	}
	if e, err := c.HearError(); err != nil || e.Code != wire.CodeIdentity {
		t.Errorf("another's name: %+v, %v", e, err)
	}
	// No certificate, and one of another authority.
	anonymous := &tls.Config{RootCAs: ca.pool}
	stranger := newAuthority(t).config(t, "leech")
	stranger.RootCAs = ca.pool
	for _, cfg := range []*tls.Config{anonymous, stranger} {
		c := dial(cfg)
		if _, err := c.Greet(swarmtest.Hello("test", "leech")); err == nil {
			t.Error("greeted without a proper certificate")
		}
	}
	// Plain TCP.
	p := seeder.dial(t)
	if _, err := p.Greet(swarmtest.Hello("test", "leech")); err == nil {
		t.Error("greeted without TLS")
	}
	// One that lives: malformed bytes are answered over TLS, too.
	c = dial(ca.config(t, "bad"))
	if _, err := c.Greet(swarmtest.Hello("test", "bad")); err != nil {
		t.Fatal(err)
	}
	if err := c.SayBytes([]byte{15, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if e, err := c.HearError(); err != nil || e.Code != wire.CodeMalformed {
		t.Errorf("unknown type: %+v, %v", e, err)
	}
}

func TestTLSNeedsVerifyPeer(t *testing.T) {
	_, err := swarm.NewNode(swarm.NodeConfig{Cluster: "c", Node: "n", Store: swarmtest.NewStore(""), TLS: &tls.Config{}})
	if err == nil || !strings.Contains(err.Error(), "VerifyPeer") {
		t.Errorf("NewNode: %v", err)
	}
	for _, cfg := range []swarm.NodeConfig{
		{Cluster: "c", Node: "n"},
		{Cluster: "c", Store: swarmtest.NewStore("")},
		{Node: "n\n", Cluster: "c", Store: swarmtest.NewStore("")},
	} {
		if _, err := swarm.NewNode(cfg); err == nil {
			t.Errorf("NewNode took %+v", cfg)
		}
	}
}

func BenchmarkSwarmTLS(b *testing.B) {
	ca := newAuthority(b)
	benchSwarm(b, 1, 256<<20, func(c *swarm.NodeConfig) { ca.secure(b, c.Node)(c) })
}
