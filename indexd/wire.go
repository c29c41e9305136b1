package indexd

import (
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// wired is what a Config names.
type wired struct {
	backend fetcher.Backend
	again   func() (fetcher.Backend, error) // opens the storage once more
	origins Origin
	tls     *tls.Config                              // nil: plain
	peer    func(*http.Request) (identity.ID, error) // nil: nobody has an identity
	closers []func() error
}

func (w *wired) close() error {
	var errs []error
	for _, c := range w.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// wire opens what a Config names, for an index of that identity, which may be nil. It
// starts nothing.
func (c *Config) wire(id *identity.Source) (_ *wired, err error) {
	w := &wired{backend: c.Backend, origins: c.Origin, tls: c.TLS}
	defer func() {
		if err != nil {
			_ = w.close()
		}
	}()
	if id != nil && w.tls == nil {
		w.tls = id.ServerTLS(readers...)
	}
	if w.tls != nil {
		w.peer = func(r *http.Request) (identity.ID, error) {
			if r.TLS == nil {
				return identity.ID{}, errors.New("the connection is plain")
			}
			return identity.PeerID(*r.TLS)
		}
	}
	w.again = func() (fetcher.Backend, error) { return w.backend, nil }
	if w.backend == nil {
		w.again = c.openStorage
		b, err := c.openStorage()
		if err != nil {
			return nil, err
		}
		w.backend = b
		w.closers = append(w.closers, b.Close)
	}
	if w.origins == nil {
		conf := origin.Config{Origins: c.Origins}
		if id != nil {
			conf.TLS = id.ClientTLS(identity.RoleOrigin)
		}
		o, err := origin.New(conf)
		if err != nil {
			return nil, err
		}
		w.origins = o
		w.closers = append(w.closers, func() error { o.Close(); return nil })
	}
	return w, nil
}
