package wire

// PeerInfo is what a tracker says of a peer: one type for who hears it (control/tracker)
// and who acts on it (swarm), neither of which knows the other.
type PeerInfo struct {
	Node     string   // unique in the cluster
	Addr     string   // host:port of its swarm listener
	Addrs    []string // other ways to it
	Zone     string
	Role     Role
	Complete bool // it has the whole blob
	Source   bool // provisional sums are taken from it: a lease holder, or an origin
}
