package indexd

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/index"
)

const (
	tokenKeyBytes = 32                  // of a secret: as many as HS256's hash has
	tokenKeyNew   = 30 * 24 * time.Hour // after which a new one signs
	tokenKeysKept = 2                   // the one that signs, and the one before it: what it has signed lives for minutes
)

// TokenKeys returns the secrets with which the cluster's gateways sign tokens, the one that signs first. They are made when
// somebody wants them; whoever asks any index over the same storage gets the same ones.
func (x *Index) TokenKeys(ctx context.Context) ([]index.TokenKey, error) {
	for range 3 { // who loses finds the winner's
		var o tokenKeysObject
		info, err := x.read(ctx, tokenKeysKey, &o)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if errdefs.IsNotFound(err) {
			info.Version = ""
		}
		now := x.now().UTC()
		if len(o.Keys) > 0 && now.Sub(o.Keys[0].Made) < tokenKeyNew {
			return o.Keys, nil
		}
		k := index.TokenKey{ID: rand.Text(), Secret: make([]byte, tokenKeyBytes), Made: now.Round(0)}
		_, _ = rand.Read(k.Secret) // never fails
		o.Version, o.Keys = formatVersion, append([]index.TokenKey{k}, o.Keys...)
		o.Keys = o.Keys[:min(len(o.Keys), tokenKeysKept)]
		switch err := x.writeIf(ctx, tokenKeysKey, &o, info.Version); {
		case err == nil:
			return o.Keys, nil
		case !errdefs.IsConflict(err):
			return nil, err
		}
	}
	return nil, fmt.Errorf("the key for tokens changes too often: %w", errdefs.ErrUnavailable)
}

func (s *server) tokenKeys(ctx context.Context, r *request) (any, error) {
	keys, err := s.index.TokenKeys(ctx)
	if err == nil {
		log.G(ctx).WithField("by", r.from).Debug("key for tokens given")
	}
	return index.TokenKeys{Keys: keys}, err
}
