package hdfs

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// excluded are addresses of datanodes that did not answer. The namenode may not know that yet: it believes in a
// datanode for ten minutes.
type excluded []string

// remember excludes a datanode. The namenode knows it by its address, and may have sent us to its name.
func (e *excluded) remember(at *url.URL, err error) {
	host := at.Hostname()
	var network *networkError
	var op *net.OpError
	if errors.As(err, &network) && errors.As(network.err, &op) && op.Addr != nil {
		if h, _, err := net.SplitHostPort(op.Addr.String()); err == nil {
			host = h
		}
	}
	if net.ParseIP(host) != nil {
		*e = append(*e, host)
	}
}

// sendBut sends a request that is to be sent on to none of the datanodes that are bad, if there are others.
func (b *Backend) sendBut(ctx context.Context, r request, bad excluded) (*http.Response, error) {
	if len(bad) > 0 {
		but := r
		but.query = maps.Clone(r.query)
		but.query.Set("excludedatanodes", strings.Join(bad, ","))
		if resp, err := b.round(ctx, but); err == nil || !errdefs.IsUnavailable(err) {
			return resp, err
		}
	}
	return b.send(ctx, r)
}
