package identity

import (
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
