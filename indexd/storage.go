package indexd

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/moving"
	"github.com/capelin-io/capelin/fetcher/owned"
)

// openStorage opens the storage, and that where it moves to.
func (c *Config) openStorage() (fetcher.Backend, error) {
	old, err := c.Storage.Open()
	if err != nil {
		return nil, err
	}
	var next fetcher.Backend
	if c.Next.Kind != "" {
		if next, err = c.Next.Open(); err != nil {
			return nil, errors.Join(err, old.Close())
		}
		next = owned.New(next, c.Cluster)
	}
	return moving.Index.New(owned.New(old, c.Cluster), next, c.calls()), nil
}

// calls is how people know this index: the host's name and the port.
func (c *Config) calls() string {
	listen := c.Listen
	if c.Listener != nil {
		listen = c.Listener.Addr().String()
	}
	_, port, _ := net.SplitHostPort(listen)
	host, err := os.Hostname()
	if err != nil {
		host = "index"
	}
	return net.JoinHostPort(host, port)
}

const (
	joinAgain = time.Second
	joinMost  = 30 * time.Second
)

// join registers the index in its storage, and returns when it has. Its error is that the index is, or goes, elsewhere.
func join(ctx context.Context, b fetcher.Backend) error {
	s, ok := b.(*moving.Storage)
	if !ok {
		return nil
	}
	for pause := joinAgain; ; pause = min(2*pause, joinMost) {
		err := s.Join(ctx)
		if err == nil || errdefs.IsFailedPrecondition(err) {
			return err
		}
		select { // whoever asks the index meanwhile hears why
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}
