package plugin

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/capelin-io/capelin/internal/rpcerr"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

// registryNames finds out which registry containerd pulls a blob from. Only containerd's
// metadata has that, in a label of the blob's manifest, which is set before it opens what the
// manifest names. Here the agent is a client of the containerd that it serves: so it asks
// beside what containerd is answered, from goroutines of its own, and no pull needs the answer.
type registryNames struct {
	images  *images
	content api.ContentClient
	conn    *grpc.ClientConn
	known   *lru.Cache[string, registryName] // by namespace and manifest
	flights singleflight.Group
}

type registryName struct {
	name  string
	since time.Time
}

const (
	askTimeout = time.Second
	// nameLasts is how long a manifest's registry is known. It may be pulled from another
	// one as well.
	nameLasts = time.Minute
	// worthAsking is from which size on it matters which registry a blob comes from.
	worthAsking = fetch.Tail
)

// newRegistryNames returns registryNames that ask the containerd at this socket, once it is
// there.
func newRegistryNames(im *images, socket string) (*registryNames, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(rpcerr.Unary))
	if err != nil {
		return nil, fmt.Errorf("containerd's socket %s: %w", socket, err)
	}
	known, err := lru.New[string, registryName](maxImages)
	if err != nil {
		panic(err) // only for a size of 0
	}
	return &registryNames{images: im, content: api.NewContentClient(conn), conn: conn, known: known}, nil
}

// client returns how a session of containerd's is introduced to the fetches.
func (r *registryNames) client(id piece.ID, ref string) fetch.Client {
	if r == nil || id.Size <= worthAsking {
		return fetch.Client{}
	}
	ns, _, _ := strings.Cut(ref, "/")
	return fetch.Client{Ask: func(ctx context.Context) string { return r.of(ctx, ns, id) }}
}

// of returns the name of the registry from which a blob is pulled in a namespace, or "".
func (r *registryNames) of(ctx context.Context, ns string, id piece.ID) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	manifest, err := r.images.manifest(ctx, id)
	if err != nil {
		return ""
	}
	key := ns + "/" + manifest.String()
	if n, ok := r.known.Get(key); ok && time.Since(n.since) < nameLasts {
		return n.name
	}
	name, err, _ := r.flights.Do(key, func() (any, error) {
		name, err := r.ask(ctx, ns, manifest)
		if err == nil {
			r.known.Add(key, registryName{name, time.Now()})
		}
		return name, err
	})
	if err != nil {
		log.G(ctx).WithError(err).WithField("digest", manifest).Debug("containerd does not say where an image comes from")
		return ""
	}
	return name.(string)
}

// ask reads the label. containerd may know several registries that have the image: which of
// them is asked now it does not say, so that they are one here.
func (r *registryNames) ask(ctx context.Context, ns string, manifest digest.Digest) (string, error) {
	resp, err := r.content.Info(namespaces.WithNamespace(ctx, ns), &api.InfoRequest{Digest: manifest.String()})
	if err != nil {
		return "", err
	}
	var names []string
	for key := range resp.Info.GetLabels() {
		if name, ok := strings.CutPrefix(key, labels.LabelDistributionSource+"."); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ","), nil
}

// labelled is how containerd's label calls the registry that is served by a host; but for the port, which
// the label has not.
func labelled(host string) string {
	u := url.URL{Host: host}
	switch name := u.Hostname(); {
	case name == "registry-1.docker.io":
		return "docker.io"
	case u.Port() == "":
		return name
	}
	return host
}

func (r *registryNames) close() {
	if r != nil {
		r.conn.Close()
	}
}
