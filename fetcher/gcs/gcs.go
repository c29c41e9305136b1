package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	"github.com/containerd/errdefs"
	"google.golang.org/api/option"
	"google.golang.org/api/storage/v1"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/parts"
	"github.com/capelin-io/capelin/internal/daemon/version"
)

const (
	// tries is how often a request is sent at most. The pause before the next try grows from firstPause to maxPause: the
	// storage takes one write of a name per second.
	tries                = 6
	firstPause, maxPause = 250 * time.Millisecond, 5 * time.Second
	// stallLimit is how long the storage may take nothing and send nothing.
	stallLimit = time.Minute
	// seenFor is for how long after an answer the bucket is believed to be there.
	seenFor = time.Minute
	// maxName is Google's limit, in bytes.
	maxName = 1024
)

// Backend is a bucket, or what is below a prefix there.
type Backend struct {
	cfg       Config
	transport *transport
	pause     time.Duration // before a request is repeated for the first time
	chunk     int64
	budget    *parts.Budget

	gate chan struct{} // 1 buffered: held by who makes api
	api  atomic.Pointer[api]
	wg   sync.WaitGroup // of who makes it

	seen atomic.Int64 // when the bucket last answered, in UnixNano
}

// api is how the storage is asked.
type api struct {
	*storage.Service
	client *http.Client // the same, for what the library has no call for
}

var _ fetcher.Backend = (*Backend)(nil)

// Open returns a backend. It asks nobody, and reads no credentials yet.
func Open(cfg Config) (*Backend, error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("gcs backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	cfg = cfg.withDefaults()
	return &Backend{
		cfg:       cfg,
		transport: newTransport(cfg.Endpoint, stallLimit),
		pause:     firstPause,
		chunk:     chunkSize,
		budget:    parts.NewBudget(int64(cfg.Memory)),
		gate:      make(chan struct{}, 1),
	}, nil
}

// Close implements fetcher.Backend. Readers that are open stay usable.
func (b *Backend) Close() error {
	b.wg.Wait()
	b.transport.base.CloseIdleConnections()
	return nil
}

// Name implements fetcher.Backend.
func (b *Backend) Name() string { return strings.TrimSuffix("gcs:"+b.cfg.Bucket+"/"+b.cfg.Prefix, "/") }

// Capabilities implements fetcher.Backend: a bucket can do all.
func (b *Backend) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true, Generations: true}
}

// permissions are what a backend needs at the bucket.
var permissions = []string{"storage.objects.list", "storage.objects.get", "storage.objects.create", "storage.objects.delete"}

// Check implements fetcher.Backend: the bucket is there and is listed, and we have all permissions.
func (b *Backend) Check(ctx context.Context) error {
	if err := b.check(ctx); err != nil {
		return fmt.Errorf("%s: checking the bucket: %w", b.Name(), err)
	}
	return nil
}

func (b *Backend) check(ctx context.Context) error {
	if err := b.bucketIsThere(ctx); err != nil {
		return err
	}
	var got *storage.TestIamPermissionsResponse
	err := b.ask(ctx, func(s *api) (err error) {
		got, err = s.Buckets.TestIamPermissions(b.cfg.Bucket, permissions).Context(ctx).Do()
		return err
	})
	if statusOf(err) == http.StatusNotFound || statusOf(err) == http.StatusMethodNotAllowed {
		return nil // The bucket was there just now: it is an emulator, and does not know of permissions.
	}
	if err != nil {
		return err
	}
	var missing []string
	for _, p := range permissions {
		if !slices.Contains(got.Permissions, p) {
			missing = append(missing, p)
		}
	}
	if missing != nil {
		return fmt.Errorf("%s is missing; grant roles/storage.objectUser on the bucket: %w",
			strings.Join(missing, ", "), errdefs.ErrPermissionDenied)
	}
	return nil
}

// bucketIsThere lists an object, which needs no permission on the bucket itself.
func (b *Backend) bucketIsThere(ctx context.Context) error {
	err := b.ask(ctx, func(s *api) error {
		_, err := s.Objects.List(b.cfg.Bucket).Prefix(b.cfg.Prefix).MaxResults(1).Fields("nextPageToken").Context(ctx).Do()
		return err
	})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return b.noBucket()
	case err != nil:
		return err
	}
	b.answered()
	return nil
}

func (b *Backend) noBucket() error {
	return fmt.Errorf("there is no bucket %q at %s; make it, or name another: %w", b.cfg.Bucket, b.cfg.Endpoint, errdefs.ErrFailedPrecondition)
}

// answered notes that the bucket is there.
func (b *Backend) answered() { b.seen.Store(time.Now().UnixNano()) }

// missing says what the status 404 means, which is the same for an object and for a bucket.
func (b *Backend) missing(ctx context.Context, status error) error {
	if time.Since(time.Unix(0, b.seen.Load())) > seenFor || strings.Contains(status.Error(), "bucket does not exist") {
		if err := b.bucketIsThere(ctx); err != nil {
			return err
		}
	}
	return status
}

// object returns a key's name in the bucket.
func (b *Backend) object(key string) (string, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return "", err
	}
	name := b.cfg.Prefix + key
	if len(name) > maxName || !utf8.ValidString(name) {
		return "", fmt.Errorf("key %q is no UTF-8, or with prefix %q longer than %d bytes: %w",
			key, b.cfg.Prefix, maxName, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

// fail names the backend, the operation and the key.
func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.Name(), op, key, err)
}

// connect returns how the storage is asked, and finds the credentials the first time, for which
// Google's library may ask the machine's metadata server without a context.
func (b *Backend) connect(ctx context.Context) (*api, error) {
	if s := b.api.Load(); s != nil {
		return s, nil
	}
	select {
	case b.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s := b.api.Load(); s != nil {
		<-b.gate
		return s, nil
	}
	done := make(chan error, 1)
	b.wg.Go(func() {
		defer func() { <-b.gate }()
		s, err := b.makeAPI(context.WithoutCancel(ctx))
		if err == nil {
			b.api.Store(s)
		}
		done <- err
	})
	select {
	case err := <-done:
		return b.api.Load(), err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *Backend) makeAPI(ctx context.Context) (*api, error) {
	client := &http.Client{
		Transport:     b.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if strings.HasPrefix(b.cfg.Endpoint, "https://") {
		creds, err := b.credentials()
		if err != nil {
			return nil, fmt.Errorf("finding credentials (see the key credentials): %w: %w", err, errdefs.ErrUnauthenticated)
		}
		if err := httptransport.AddAuthorizationMiddleware(client, creds); err != nil {
			return nil, err
		}
	}
	s, err := storage.NewService(ctx, option.WithHTTPClient(client), option.WithEndpoint(b.cfg.Endpoint+"/storage/v1/"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	s.UserAgent = version.Software()
	return &api{s, client}, nil
}

func (b *Backend) credentials() (*auth.Credentials, error) {
	o := &credentials.DetectOptions{Scopes: []string{storage.DevstorageReadWriteScope}}
	if b.cfg.Credentials == "" {
		return credentials.DetectDefault(o)
	}
	data, err := os.ReadFile(b.cfg.Credentials)
	if err != nil {
		return nil, err
	}
	var kind struct {
		Type credentials.CredType `json:"type"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, fmt.Errorf("%s is not JSON: %v", b.cfg.Credentials, strings.TrimPrefix(err.Error(), "json: "))
	}
	return credentials.NewCredentialsFromJSON(kind.Type, data, o)
}
