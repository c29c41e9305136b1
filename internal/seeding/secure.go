package seeding

import (
	"crypto/tls"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Secure makes a swarm's connections mutual TLS: nodes and origins are let in, each
// as itself only. It is called before [swarm.NewNode].
func Secure(nc *swarm.NodeConfig, id *identity.Source) {
	nc.TLS = id.PeerTLS(identity.RoleNode, identity.RoleOrigin)
	nc.VerifyPeer = func(cs tls.ConnectionState, name string, as wire.Role) error {
		role := identity.RoleNode
		if as == wire.RoleOrigin {
			role = identity.RoleOrigin
		}
		return identity.VerifyNode(cs, name, role)
	}
}
