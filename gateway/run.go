package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/ociapi"
	"github.com/capelin-io/capelin/internal/reload"
)

// shutdownTimeout is what requests have to end when the gateway stops.
const shutdownTimeout = 10 * time.Second

// Run is the gateway. It returns nil after ctx is cancelled and all requests
// have ended, or an error if it cannot listen or its files cannot be read.
func Run(ctx context.Context, cfg Config) error {
	return daemon.Run(ctx, "gateway", &cfg, func(ctx context.Context, d *daemon.Daemon) error {
		var toOrigins, toIndexes *tls.Config
		if d.Identity != nil {
			toOrigins, toIndexes = d.Identity.ClientTLS(identity.RoleOrigin), d.Identity.ClientTLS(identity.RoleIndex)
		}
		o, err := origin.New(origin.Config{Origins: cfg.Origins, TLS: toOrigins})
		if err != nil {
			return err
		}
		defer o.Close()
		x, err := index.New(index.Config{Indexes: cfg.Indexes, TLS: toIndexes})
		if err != nil {
			return err
		}
		defer x.Close()
		gw, err := New(cfg, o, x)
		if err != nil {
			return err
		}
		secure, err := cfg.serverTLS(d.Identity)
		if err != nil {
			return err
		}
		ln, err := d.Listen(ctx, "listen", cfg.Listen, cfg.Listener)
		if err != nil {
			return err
		}
		seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "capelin_gateway_request_seconds", Help: "Requests of the registry API, by method and status.",
			Buckets: []float64{.005, .02, .1, .5, 2, 10, 60, 600},
		}, []string{"method", "code"})
		d.Metrics.MustRegister(seconds)
		return d.Serve(ctx, daemon.Parts{
			Servers: []daemon.Part{daemon.HTTP("registry API", ln, &http.Server{
				Handler: ociapi.Patient(promhttp.InstrumentHandlerDuration(seconds, gw)), TLSConfig: secure, MaxHeaderBytes: 32 << 10,
			}, shutdownTimeout)},
			Log: log.Fields{"listen": ln.Addr().String(), "tls": secure != nil, "guarded": cfg.Guarded()},
			Up: func(metrics net.Addr) {
				if cfg.OnListen != nil {
					cfg.OnListen(ln.Addr(), metrics)
				}
			},
		})
	})
}

// serverTLS returns what clients of all kinds see: the certificate of Cert, or else
// that of the identity, which may be nil. nil: plain HTTP.
func (c *Config) serverTLS(id *identity.Source) (*tls.Config, error) {
	var secure *tls.Config
	if id != nil {
		secure = id.ServerTLSOptional(identity.Roles...)
	}
	if c.Cert != "" {
		pair, err := reload.Open(func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
			if err != nil {
				return nil, config.Invalid("cert", "%s with %s: %v", c.Cert, c.Key, err)
			}
			return &pair, nil
		}, ops.Reread("certificate and key"), c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		if secure == nil {
			secure = &tls.Config{}
		}
		secure.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.Get(), nil }
	}
	if secure != nil {
		secure.MinVersion = tls.VersionTLS12 // clients of all kinds
	}
	return secure, nil
}
