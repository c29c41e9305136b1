package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what a certificate's owner may act as.
type Role string

// The roles.
const (
	RoleNode    Role = "node"    // a node agent
	RoleOrigin  Role = "origin"  // an origin
	RoleTracker Role = "tracker" // a tracker
	RoleIndex   Role = "index"   // an index
	RoleGateway Role = "gateway" // a gateway, in the name of its users
	RoleAdmin   Role = "admin"   // an operator or a machine: image commands, preheat
)

// Roles are all of them.
var Roles = []Role{RoleNode, RoleOrigin, RoleTracker, RoleIndex, RoleGateway, RoleAdmin}

// ID is who a certificate says that its owner is. In a certificate it is one URI
// per role, "spiffe://<cluster>/capelin/<role>/<name>".
type ID struct {
	Cluster string
	Name    string // of the node or server
	Roles   []Role
}

// Has reports whether the owner may act as one of the roles.
func (id ID) Has(roles ...Role) bool {
	return slices.ContainsFunc(roles, func(r Role) bool { return slices.Contains(id.Roles, r) })
}

// serves reports whether others connect to the owner.
func (id ID) serves() bool {
	return slices.ContainsFunc(id.Roles, func(r Role) bool { return r != RoleAdmin })
}

func (id ID) String() string {
	roles := make([]string, len(id.Roles))
	for i, r := range id.Roles {
		roles[i] = string(r)
	}
	return fmt.Sprintf("%s (%s) of cluster %s", id.Name, strings.Join(roles, ", "), id.Cluster)
}

// URIs returns what stands for id in a certificate.
func (id ID) URIs() []*url.URL {
	uris := make([]*url.URL, len(id.Roles))
	for i, r := range id.Roles {
		uris[i] = &url.URL{Scheme: "spiffe", Host: id.Cluster, Path: "/capelin/" + string(r) + "/" + id.Name}
	}
	return uris
}

// PeerID returns who is at the other end of a connection, whose certificate was
// verified in the handshake.
func PeerID(cs tls.ConnectionState) (ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return ID{}, errors.New("no certificate was shown")
	}
	return idOf(cs.PeerCertificates[0])
}

// VerifyNode reports why the other end of a connection may not be the node of that
// name and role that it says it is.
func VerifyNode(cs tls.ConnectionState, name string, role Role) error {
	id, err := PeerID(cs)
	if err != nil {
		return err
	}
	if id.Name != name || !id.Has(role) {
		return fmt.Errorf("the certificate is for %s", id)
	}
	return nil
}

// idOf reads the owner from a certificate's URIs.
func idOf(c *x509.Certificate) (ID, error) {
	var id ID
	for _, u := range c.URIs {
		one, ok := parseURI(u)
		if !ok {
			continue
		}
		switch {
		case len(id.Roles) == 0:
			id = one
		case one.Cluster != id.Cluster || one.Name != id.Name:
			return ID{}, fmt.Errorf("certificate with serial number %x names both %s and %s", c.SerialNumber, id, one)
		case !id.Has(one.Roles...):
			id.Roles = append(id.Roles, one.Roles...)
		}
	}
	if len(id.Roles) == 0 {
		return ID{}, fmt.Errorf("certificate of %q names nobody: it has no URI spiffe://<cluster>/capelin/<role>/<name>", c.Subject.String())
	}
	return id, nil
}

func parseURI(u *url.URL) (ID, bool) {
	if u.Scheme != "spiffe" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.RawPath != "" || u.Opaque != "" {
		return ID{}, false
	}
	rest, ok := strings.CutPrefix(u.Path, "/capelin/")
	role, name, found := strings.Cut(rest, "/")
	id := ID{Cluster: u.Host, Name: name, Roles: []Role{Role(role)}}
	if !ok || !found || !isRole(Role(role)) || checkName("name", name, 253) != nil || checkName("cluster", u.Host, 64) != nil {
		return ID{}, false
	}
	return id, true
}

func isRole(r Role) bool { return ID{Roles: Roles}.Has(r) }

// checkName reports what keeps a name out of a certificate.
func checkName(what, s string, most int) error {
	if s == "." || s == ".." {
		return fmt.Errorf("%s %q cannot be in a certificate", what, s)
	}
	if len(s) < 1 || len(s) > most {
		return fmt.Errorf("%s %q has %d bytes, not 1 to %d", what, s, len(s), most)
	}
	if i := strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	}); i >= 0 {
		return fmt.Errorf("%s %q: only letters, digits and . _ - can be in a certificate", what, s)
	}
	return nil
}
