package ops

import (
	"context"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Watch makes an identity tell the log of ctx when its files were read again, when
// the certificate ends soon, and who was refused: of those at most one a second,
// because strangers can cause them. It is called before anything else is done with
// the identity.
func Watch(ctx context.Context, s *identity.Source) {
	whose := func() *log.Entry {
		return log.G(ctx).WithFields(log.Fields{"certificate": s.ID().String(), "expires": s.NotAfter().Format(time.RFC3339)})
	}
	s.Warn = func(what string) { whose().Warn(what) }
	s.Report = func(err error) {
		if err != nil {
			log.G(ctx).Error(err.Error())
			return
		}
		whose().Info("the identity was read again")
	}
	some := rate.Sometimes{First: 3, Interval: time.Second}
	s.Refused = func(err error) {
		some.Do(func() { log.G(ctx).WithError(err).Warn("somebody was refused") })
	}
}

// Expiry is a gauge of when the certificate of a role's identity ends, in Unix seconds.
func Expiry(s *identity.Source, role string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "capelin_certificate_expiry_timestamp_seconds",
		Help: "When the certificate of the role ends.", ConstLabels: prometheus.Labels{"role": role},
	}, func() float64 { return float64(s.NotAfter().Unix()) })
}

// Reread returns what tells the log that files were read again, or cannot be.
func Reread(what string) func(error) {
	return func(err error) {
		if err != nil {
			log.L.WithError(err).Errorf("%s changed and cannot be used, what was there before stays in use", what)
			return
		}
		log.L.Infof("%s were read again", what)
	}
}
