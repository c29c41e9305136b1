package trackerd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/version"
)

// Run is the tracker. It returns nil after ctx is cancelled and all streams and
// goroutines have ended, or an error if it cannot listen.
func Run(ctx context.Context, cfg Config) error {
	return daemon.Run(ctx, "tracker", &cfg, func(ctx context.Context, d *daemon.Daemon) error {
		ln, err := d.Listen(ctx, "listen", cfg.Listen, cfg.Listener)
		if err != nil {
			return err
		}
		srv := newServer(ctx, &cfg, version.Software())
		defer srv.wg.Wait()
		if cfg.onServer != nil {
			cfg.onServer(srv)
		}
		d.Metrics.MustRegister(&collector{srv})
		g := newGRPC(d.Identity)
		trackerpb.RegisterTrackerServer(g, srv)
		trackerpb.RegisterControlServer(g, srv.control)
		hs := health.NewServer()
		grpc_health_v1.RegisterHealthServer(g, hs)
		return d.Serve(ctx, daemon.Parts{
			// Agents have another tracker, or fall back; there is nothing to finish.
			Servers: []daemon.Part{daemon.GRPC("agents", newArrivals(ln), g, 0, hs.Shutdown)},
			Work:    []daemon.Part{{Name: "clock", Run: srv.run}},
			Log:     log.Fields{"listen": ln.Addr().String()},
			Up: func(metrics net.Addr) {
				if cfg.OnListen != nil {
					cfg.OnListen(ln.Addr(), metrics)
				}
			},
		})
	})
}

// newGRPC returns a server for agents, origins, gateways and operators; id is nil
// without identity.
func newGRPC(id *identity.Source) *grpc.Server {
	creds := insecure.NewCredentials()
	if id != nil {
		creds = refusals{credentials.NewTLS(id.ServerTLS(identity.RoleNode, identity.RoleOrigin, identity.RoleTracker, identity.RoleGateway,
			identity.RoleAdmin)), id}
	}
	return grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(trackerpb.MaxMessage),
		grpc.MaxConcurrentStreams(16), // of a connection: one stream, and health checks
		grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(helloTimeout),
		// An agent whose machine is gone is noticed sooner, by what is sent to it (see
		// arrivals); this is for one that hangs.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(frameCodec{protoCodec}),
		// 15,000 connections must not cost 64 KiB each for buffers, nor be allowed to
		// send more than the least that HTTP/2 knows before it is taken in.
		grpc.InitialWindowSize(64<<10), grpc.InitialConnWindowSize(64<<10),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(32<<10), // this one while there is something to write
	)
}

// refusals has the identity tell of those who speak no TLS, too.
type refusals struct {
	credentials.TransportCredentials
	id *identity.Source
}

func (r refusals) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, info, err := r.TransportCredentials.ServerHandshake(c)
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && r.id.Refused != nil {
		r.id.Refused(fmt.Errorf("%v does not speak TLS: it has no [identity], or no --cert", c.RemoteAddr()))
	}
	return secure, info, err
}
