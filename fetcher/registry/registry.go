package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/registry/ecr"
	"github.com/capelin-io/capelin/internal/httpobject"
)

// maxSizes is how many blobs' sizes are remembered.
const maxSizes = 16 << 10

// Backend is another registry.
type Backend struct {
	cfg         Config
	reloadPause time.Duration
	backoff     time.Duration // the first pause; the others grow

	mu    sync.Mutex
	hosts *hosts

	sizes *lru.Cache[string, int64] // by key
	gates [16]chan struct{}         // 1 buffered, by repository; see authorize
	wg    sync.WaitGroup            // authorizations under way

	tokens *ecr.Tokens // of the host itself; nil: it is not at ECR

	closing context.Context // they end with it
	closed  context.CancelFunc
}

var (
	_ fetcher.Backend = (*Backend)(nil)
	_ fetcher.Locator = (*Backend)(nil)
)

// Open reads the configuration of the hosts. It asks none of them.
func Open(cfg Config) (*Backend, error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("registry backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	b := &Backend{cfg: cfg.withDefaults(), reloadPause: reloadPause, backoff: 250 * time.Millisecond}
	b.sizes, _ = lru.New[string, int64](maxSizes)
	for i := range b.gates {
		b.gates[i] = make(chan struct{}, 1)
	}
	h, err := b.load()
	if err != nil {
		return nil, err
	}
	b.hosts = h
	if b.cfg.Auth == authECR {
		r, _ := b.cfg.ecr()
		b.tokens = ecr.New(r)
	}
	b.closing, b.closed = context.WithCancel(context.Background())
	return b, nil
}

// Close ends authorizations under way. Readers that are open stay usable.
func (b *Backend) Close() error {
	b.closed()
	b.wg.Wait()
	if b.tokens != nil {
		b.tokens.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts.close()
	return nil
}

// Name implements fetcher.Backend.
func (b *Backend) Name() string { return "registry:" + b.cfg.Host }

// Check implements fetcher.Backend: a host answers as a registry does (OCI distribution spec, end-1), if only that it wants to
// know who asks: what one may read depends on the repository. At ECR it takes the token, too.
func (b *Backend) Check(ctx context.Context) error {
	r := request{method: http.MethodGet}
	if b.tokens == nil {
		r.accept = []int{http.StatusUnauthorized}
	}
	resp, err := b.send(ctx, r)
	if err != nil {
		return fmt.Errorf("%s: asking for its API: %w", b.Name(), err)
	}
	return resp.Body.Close()
}

// Capabilities implements fetcher.Backend.
func (b *Backend) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{NeedsRepository: true}
}

// Locate implements fetcher.Locator.
func (b *Backend) Locate(namespace string, d digest.Digest) (string, error) {
	repo, err := b.cfg.repository(namespace)
	if err == nil {
		if verr := d.Validate(); verr != nil {
			err = fmt.Errorf("digest %q: %w: %w", d, verr, errdefs.ErrInvalidArgument)
		}
	}
	key := repo + "@" + d.String()
	if err == nil {
		err = fetcher.CheckKey(key)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", b.Name(), err)
	}
	return key, nil
}

// blob is what a key names.
type blob struct {
	key, repo string
	digest    digest.Digest
}

func parse(key string) (blob, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return blob{}, err
	}
	repo, d, ok := strings.Cut(key, "@")
	bl := blob{key, repo, digest.Digest(d)}
	if !ok || !ociref.IsValidRepository(repo) || bl.digest.Validate() != nil {
		return blob{}, fmt.Errorf("key %q is not <repository>@<digest>: %w", key, errdefs.ErrInvalidArgument)
	}
	return bl, nil
}

func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.Name(), op, key, err)
}

// Stat implements fetcher.Backend.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	bl, err := parse(key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		var info httpobject.Info
		if info, err = b.object(bl).Stat(ctx); err == nil {
			return fetcher.Info{Key: key, Size: info.Size}, nil
		}
	}
	return fetcher.Info{}, b.fail("looking for", key, err)
}

// object is what a blob is at the registry. Its bytes are named by their digest.
func (b *Backend) object(bl blob) *httpobject.Object {
	return &httpobject.Object{
		Immutable: true,
		Known:     func() (int64, bool) { return b.sizes.Get(bl.key) },
		Told:      func(size int64) { b.sizes.Add(bl.key, size) },
		Fail:      func(op string, err error) error { return b.fail(op, bl.key, err) },
		Send: func(ctx context.Context, r httpobject.Request) (*http.Response, error) {
			return b.send(ctx, request{
				method: r.Method, repo: bl.repo, what: "blobs/" + bl.digest.String(), header: r.Header, accept: r.Accept,
			})
		},
	}
}

// Open implements fetcher.Backend.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	bl, err := parse(key)
	if err == nil {
		var r io.ReadCloser
		var info httpobject.Info
		if r, info, err = b.object(bl).Open(ctx, off, n); err == nil {
			return r, fetcher.Info{Key: key, Size: info.Size}, nil
		}
	}
	return nil, fetcher.Info{}, b.fail("reading", key, err)
}

func (b *Backend) readOnly(op, key string) error {
	return b.fail(op, key, fmt.Errorf("another registry is only read: %w", errdefs.ErrNotImplemented))
}

// Write implements fetcher.Backend: it is refused.
func (b *Backend) Write(_ context.Context, key string, _ int64, _ io.Reader) (fetcher.Info, error) {
	return fetcher.Info{}, b.readOnly("writing", key)
}

// WriteIf implements fetcher.Backend: it is refused.
func (b *Backend) WriteIf(_ context.Context, key string, _ []byte, _ string) (fetcher.Info, error) {
	return fetcher.Info{}, b.readOnly("writing", key)
}

// List implements fetcher.Backend: it is refused.
func (b *Backend) List(_ context.Context, prefix, _ string, _ int) ([]fetcher.Info, bool, error) {
	return nil, false, b.readOnly("listing", prefix)
}

// Delete implements fetcher.Backend: it is refused.
func (b *Backend) Delete(_ context.Context, key string) error {
	return b.readOnly("deleting", key)
}
