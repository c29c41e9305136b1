package tracker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Config says who the node is and where its trackers are.
type Config struct {
	// Trackers are host:port, each one tracker, or dns+host:port for all
	// addresses that the name has, looked up every 30 s. All agents of a cluster
	// must write them in the same way, or leases are granted twice. None: every
	// verdict is Unreachable.
	Trackers []string
	Hello    Hello
	// TLS is for streams, see identity.Source.ClientTLS; nil: plain.
	TLS *tls.Config
	// Dial makes connections; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// LookupHost resolves dns+ names; nil: net.DefaultResolver.
	LookupHost func(ctx context.Context, host string) ([]string, error)
	// OnStatus, if not nil, is called when a tracker came or went, like a
	// Handler's methods.
	OnStatus func(TrackerStatus)
}

// Hello is what trackers, and through them other nodes, are told of this one.
// Limits are trackerpb's.
type Hello struct {
	Cluster  string
	Node     string // unique in the cluster
	Zone     string
	Addr     string   // host:port where other nodes reach its swarm listener
	Addrs    []string // other ways to it, at most 7
	Role     wire.Role
	Software string
	Features uint64
}

// Peer is what a tracker says of another node.
type Peer = wire.PeerInfo

// Handler is told what trackers say. Its methods are called one after the other
// from one goroutine of Run, and must not block; they may call the Client.
type Handler interface {
	// Peers: these joined the swarm of a wanted blob, or changed.
	Peers(id piece.ID, peers []Peer)
	// PeersGone: these left it, as far as every tracker that named them knows.
	PeersGone(id piece.ID, nodes []string)
	// Share: which pieces of the blob this node is to bring into its zone from others:
	// piece i if bit i modulo piece.Shares is set. None until told.
	Share(id piece.ID, share uint16)
	// Upstream: where those who fetch the blob from upstream have it from.
	Upstream(id piece.ID, u Upstream)
	// SumsHash: the SHA-256 of the blob's proven sums.
	SumsHash(id piece.ID, hash [32]byte)
	// Verdict answers a Want, within 5 s, or 150 ms if no tracker is connected, and
	// may come again when things change, until Unwant. (One that was on its way may
	// still come after it.)
	Verdict(id piece.ID, v Verdict)
	// Command asks for something; answer with Client.Result. One of the same ID, which
	// comes after a stream broke, asks for the same thing.
	Command(cmd *trackerpb.Command)
	// Lookup asks an origin whether it has a blob that nobody announced, or can get
	// it from its storage; what it announced already is not asked for. Nodes wait for
	// the answer, 100 ms at most: Client.Announce, with StatePartial as a promise to
	// deliver all of it, or Client.NotHere. Agents are not asked; NotHere is always
	// right for them.
	Lookup(id piece.ID)
}

// Verdict is what a node that wants a blob should expect.
type Verdict struct {
	Kind  VerdictKind
	Retry time.Duration // with Wait: the next verdict comes within about this
	// Waiting and Tag are the Want's that this answers. It may have been on its way
	// while Want was called again; the answer to that one follows.
	Waiting bool
	Tag     uint64
	// Paced: who may grant leases heeds Want.Slow. Heard: it has answered; if that is no lease,
	// others are about to bring the blob.
	Paced, Heard bool
}

// Upstream is what trackers know of where holders of leases have a blob from.
type Upstream struct {
	// Registries are those of all holders that there were, host or host:port; of many two or
	// more. What has come of the blob and is not proven may be theirs. None
	// once somebody has all of it and the proven sums are known.
	Registries []string
	// Mismatch: what a holder's registry sent was not the blob, as it has found just now.
	Mismatch bool
}

// ErrMismatch is wrapped by the error of a LeaseDone if what upstream sent is not the blob.
var ErrMismatch = errors.New("the registry sent something else")

// VerdictKind says which.
type VerdictKind uint8

// The kinds. A verdict may be followed by any other one, except that Lease stays
// until the lease is done, or the blob is wanted anew.
const (
	Unknown     VerdictKind = iota // no answer yet: no Verdict says so
	Sources                        // somebody has it or is getting it: see Peers
	Lease                          // this node fetches it from upstream
	Nobody                         // nobody is known to have it
	Wait                           // the tracker does not know yet; it will say so
	Unreachable                    // no tracker that could know answers
)

func (k VerdictKind) String() string {
	switch k {
	case Unknown:
		return "unknown"
	case Sources:
		return "sources"
	case Lease:
		return "lease"
	case Nobody:
		return "nobody"
	case Wait:
		return "wait"
	case Unreachable:
		return "unreachable"
	}
	return fmt.Sprintf("verdict(%d)", uint8(k))
}

// State is what a node has of a blob.
type State uint8

// The states.
const (
	StateGone     State = iota // nothing (any more)
	StatePartial               // some, or none yet but more to come
	StateComplete              // all of it, verified
)

// Want is how a blob is wanted.
type Want struct {
	// Waiting: a client of containerd's is blocked on it, and would fetch it from
	// upstream if told to: the node may be granted a lease.
	Waiting bool
	// Tag is the caller's own, to tell by it what a Verdict answers.
	Tag uint64
	// Lost are the peers that could deliver it but do not: they cannot be reached, or bring
	// nothing. Who names any says that no other is known to it, and is given others, or a
	// lease though these have the blob. The first 32 count.
	Lost []string
	// Slow: what the sources bring is so slow that the client would be done sooner by itself.
	// The node may be granted a lease beside them, at once or later.
	Slow bool
}

// TrackerStatus is the state of the stream to one tracker.
type TrackerStatus struct {
	Addr      string // or dns+host:port, of a name without an address
	Connected bool
	Since     time.Time     // connected, or not connected, since
	Age       time.Duration // the tracker's, when the stream began
	Software  string        // the tracker's
	Err       error         // why the last attempt or stream ended; if connected, that nothing comes from it
	Namesake  Namesake      // as it was told when the stream began, for a minute
}

// Namesake is where another machine is that has this node's name; empty: none is known.
// Each of the two takes the other's stream, so that neither is found.
type Namesake string

func (n Namesake) String() string { return "another machine at " + string(n) + " has this name" }

// Check reports what is wrong with a configuration: no name, an address that is
// not host:port.
func (c *Config) Check() error {
	if err := trackerpb.CheckHello(c.hello()); err != nil {
		return fmt.Errorf("tracker client: %w", err)
	}
	return checkTrackers(c.Trackers)
}

func checkTrackers(trackers []string) error {
	for _, t := range trackers {
		if host, port, err := net.SplitHostPort(strings.TrimPrefix(t, "dns+")); err != nil || host == "" || port == "" {
			return fmt.Errorf("tracker client: %q is neither host:port nor dns+host:port", t)
		}
	}
	return nil
}

func (c *Config) hello() *trackerpb.Hello {
	return &trackerpb.Hello{
		Version:  trackerpb.Version,
		Cluster:  c.Hello.Cluster,
		Node:     c.Hello.Node,
		Zone:     c.Hello.Zone,
		Addr:     c.Hello.Addr,
		Addrs:    c.Hello.Addrs,
		Role:     trackerpb.Role(c.Hello.Role),
		Features: c.Hello.Features,
		Software: c.Hello.Software,
	}
}
