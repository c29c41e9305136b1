package seeding

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/wire"
)

// NewNode returns a node's or an origin's part in the swarm. With an identity (nil: none)
// connections are mutual TLS: nodes and origins are let in, each as itself only.
func NewNode(nc swarm.NodeConfig, id *identity.Source) (*swarm.Node, error) {
	nc.Software = version.Software()
	if id != nil {
		nc.TLS = id.PeerTLS(identity.RoleNode, identity.RoleOrigin)
		nc.VerifyPeer = func(cs tls.ConnectionState, name string, as wire.Role) error {
			role := identity.RoleNode
			if as == wire.RoleOrigin {
				role = identity.RoleOrigin
			}
			return identity.VerifyNode(cs, name, role)
		}
	}
	n, err := swarm.NewNode(nc)
	if err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	return n, nil
}

// Trackers returns the configuration of a client of trackers for whom nc describes. Its
// OnStatus logs to ctx's log, until ctx is done.
func Trackers(ctx context.Context, addrs []string, nc swarm.NodeConfig, id *identity.Source) tracker.Config {
	var secure *tls.Config
	if id != nil {
		secure = id.ClientTLS(identity.RoleTracker)
	}
	away, silent := map[string]bool{}, map[string]bool{} // OnStatus is called by one goroutine
	var warned time.Time                                 // of a namesake
	return tracker.Config{
		Trackers: addrs, TLS: secure,
		Hello: tracker.Hello{
			Cluster: nc.Cluster, Node: nc.Node, Zone: nc.Zone, Addr: nc.Advertise, Role: nc.Role, Software: version.Software(),
		},
		OnStatus: func(st tracker.TrackerStatus) {
			l := log.G(ctx).WithField("tracker", st.Addr)
			if st.Namesake != "" {
				// Because of it the tracker comes and goes.
				if time.Since(warned) >= time.Hour {
					warned = time.Now()
					l.Warn(st.Namesake.String())
				}
				return
			}
			_, isName := strings.CutPrefix(st.Addr, "dns+")
			switch {
			case isName && st.Err == nil:
				l.Info("the trackers' name has addresses")
				delete(away, st.Addr)
				return
			case isName:
				l.WithError(st.Err).Warn("the trackers' name has no address: as long as that is so, nobody is asked")
			case st.Connected && st.Err != nil:
				l.WithError(st.Err).Warn("tracker is silent: nobody waits for it")
				silent[st.Addr] = true
				return
			case st.Connected && silent[st.Addr]:
				l.Info("tracker answers again")
			case st.Connected:
				l.WithField("software", st.Software).Info("tracker connected")
			case ctx.Err() == nil && !away[st.Addr]: // once, not at each attempt
				l.WithError(st.Err).Warn("tracker is away")
			}
			away[st.Addr], silent[st.Addr] = !st.Connected, false
		},
	}
}

var kinds = map[swarm.ReportKind]string{
	swarm.ReportConvicted:    "peer convicted",
	swarm.ReportBadPiece:     "bad piece",
	swarm.ReportStalled:      "peer stalled",
	swarm.ReportSumsReplaced: "sums disproved",
	swarm.ReportFault:        "protocol violated",
	swarm.ReportUnreachable:  "peer unreachable",
}

// ReportKind returns what a report of the swarm is about, in words, or "" if nobody wants
// to know.
func ReportKind(r swarm.Report) string { return kinds[r.Kind] }

// LogReport logs what the swarm reports: loudly, if somebody has told lies.
func LogReport(ctx context.Context, r swarm.Report) {
	kind := ReportKind(r)
	if kind == "" {
		return
	}
	l := log.G(ctx).WithFields(log.Fields{"peer": r.Node, "digest": r.ID.Digest(), "piece": r.Piece})
	if r.Err != nil {
		l = l.WithError(r.Err)
	}
	switch r.Kind {
	case swarm.ReportUnreachable: // its text says all
		if l := log.G(ctx).WithField("peer", r.Node); r.Repeated {
			l.Debug(r.Err.Error())
		} else {
			l.Warn(r.Err.Error())
		}
	case swarm.ReportConvicted, swarm.ReportSumsReplaced:
		l.Warn("swarm: " + kind)
	default:
		l.Debug("swarm: " + kind)
	}
}
