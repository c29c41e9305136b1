package identity

import (
	"context"
	"time"

	"github.com/capelin-io/capelin/internal/reload"
)

// Run reads the files again when they change, until ctx is done; it returns nil.
func (s *Source) Run(ctx context.Context) error {
	t := time.NewTicker(reload.Every)
	defer t.Stop()
	warned := ""
	for {
		if w := s.files.Now().warning(time.Now()); w != warned {
			if warned = w; w != "" && s.Warn != nil {
				s.Warn(w)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		s.files.Look()
	}
}

// warning says what is wrong with the certificate's time; the text changes when it
// is to be said again.
func (m *material) warning(now time.Time) string {
	const day = 24 * time.Hour
	cert, left := m.cert.Leaf, m.cert.Leaf.NotAfter.Sub(now)
	switch {
	case now.Before(cert.NotBefore):
		return "the certificate is valid only from " + cert.NotBefore.Format(time.RFC3339) + ", and nobody accepts it before: is the clock right?"
	case left < 0:
		return "the certificate has ended, nobody accepts it any more: issue a new one, it is used without a restart"
	case left >= cert.NotAfter.Sub(cert.NotBefore)/4:
		return ""
	}
	for _, soon := range []struct {
		left time.Duration
		text string
	}{{day, "1 day"}, {7 * day, "7 days"}, {30 * day, "30 days"}} {
		if left < soon.left {
			return "the certificate ends in less than " + soon.text + ": issue a new one, it is used without a restart"
		}
	}
	return ""
}

// NotAfter returns when the certificate expires.
func (s *Source) NotAfter() time.Time { return s.files.Now().cert.Leaf.NotAfter }
