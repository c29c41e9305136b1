package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/parts"
)

const (
	// tries is how often a request is sent at most. The pause before the next try grows from firstPause to maxPause.
	tries                = 5
	firstPause, maxPause = 200 * time.Millisecond, 5 * time.Second
	// stallLimit is how long the storage may take nothing and send nothing.
	stallLimit = time.Minute
	// maxName is Azure's limit, in characters.
	maxName = 1024
	// userAgent is what the library allows of one: 24 characters.
	userAgent = "capelin"
)

// Backend is a container, or what is below a prefix there.
type Backend struct {
	cfg       Config
	transport *transport
	pause     time.Duration // before a request is repeated for the first time
	block     int64
	budget    *parts.Budget

	mu     sync.Mutex
	client *container.Client
}

var _ fetcher.Backend = (*Backend)(nil)

// Open returns a backend. It asks nobody, and reads no credentials yet.
func Open(cfg Config) (*Backend, error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("azure backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	cfg = cfg.withDefaults()
	return &Backend{
		cfg:       cfg,
		transport: newTransport(),
		pause:     firstPause,
		block:     blockSize,
		budget:    parts.NewBudget(int64(cfg.Memory)),
	}, nil
}

// Close implements fetcher.Backend. Readers that are open stay usable.
func (b *Backend) Close() error {
	b.transport.base.CloseIdleConnections()
	return nil
}

// Name implements fetcher.Backend.
func (b *Backend) Name() string {
	return strings.TrimSuffix("azure:"+b.cfg.Account+"/"+b.cfg.Container+"/"+b.cfg.Prefix, "/")
}

// Capabilities implements fetcher.Backend: a container can do all.
func (b *Backend) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true, Generations: true}
}

// Check implements fetcher.Backend: the container is there, is listed, and we may write to it.
func (b *Backend) Check(ctx context.Context) error {
	_, _, err := b.list(ctx, "", "", 1)
	if err == nil {
		err = b.mayWrite(ctx)
	}
	if errdefs.IsPermissionDenied(err) {
		err = fmt.Errorf("%w; assign the role Storage Blob Data Contributor on the container, or the permissions rcwdl of a signature", err)
	}
	if err != nil {
		return fmt.Errorf("%s: checking the container: %w", b.Name(), err)
	}
	return nil
}

// mayWrite asks for a write whose condition does not hold: it is refused for that, or because we may not.
func (b *Backend) mayWrite(ctx context.Context) error {
	c, err := b.connect()
	if err != nil {
		return err
	}
	blobs := c.NewBlockBlobClient(b.cfg.Prefix + "capelin-check")
	err = b.ask(ctx, func() error {
		_, err := blobs.Upload(ctx, streaming.NopCloser(bytes.NewReader(nil)), &blockblob.UploadOptions{
			AccessConditions: conditions("capelin"),
		})
		return err
	})
	switch {
	case err == nil:
		return fmt.Errorf("it does not look at conditions (If-Match): %w", errdefs.ErrFailedPrecondition)
	case lost(err), errdefs.IsNotFound(err):
		return nil
	}
	return b.explained(err)
}

// conditions are that a blob has an ETag; "": that it is not there.
func conditions(version string) *blob.AccessConditions {
	m := &blob.ModifiedAccessConditions{}
	if version == "" {
		m.IfNoneMatch = to.Ptr(azcore.ETagAny)
	} else {
		m.IfMatch = to.Ptr(azcore.ETag(`"` + version + `"`))
	}
	return &blob.AccessConditions{ModifiedAccessConditions: m}
}

// explained says what to do if the container is not there.
func (b *Backend) explained(err error) error {
	if errdefs.IsFailedPrecondition(err) && codeOf(err) != "" {
		return fmt.Errorf("there is no container %q at %s; make it, or name another: %w", b.cfg.Container, b.cfg.Endpoint, err)
	}
	return err
}

// name returns a key's name in the container.
func (b *Backend) name(key string) (string, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return "", err
	}
	name := b.cfg.Prefix + key
	if !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxName {
		return "", fmt.Errorf("key %q is no UTF-8, or with its prefix longer than %d characters: %w", key, maxName, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

// fail names the backend, the operation and the key.
func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.Name(), op, key, b.explained(err))
}

// connect returns how the container is asked. It asks nobody itself.
func (b *Backend) connect() (_ *container.Client, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client == nil {
		b.client, err = b.newClient()
	}
	return b.client, err
}

func (b *Backend) newClient() (*container.Client, error) {
	o := &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: b.transport,
		Retry:     policy.RetryOptions{MaxRetries: -1}, // ask does
		Telemetry: policy.TelemetryOptions{ApplicationID: userAgent},
	}}
	url := b.cfg.Endpoint + "/" + b.cfg.Container
	if b.cfg.Credentials == "" {
		cred, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, tokenError(nil, err)
		}
		return container.NewClient(url, cred, o)
	}
	text, err := readCredentials(b.cfg.Credentials)
	if err != nil {
		return nil, err
	}
	if strings.Contains(text, "sig=") {
		o.PerRetryPolicies = append(o.PerRetryPolicies, signature{b.cfg.Credentials})
		return container.NewClientWithNoCredential(url, o)
	}
	key, err := blob.NewSharedKeyCredential(b.cfg.Account, text)
	if err != nil { // err may have what is there
		return nil, fmt.Errorf("%s has neither a shared access signature nor a key: %w", b.cfg.Credentials, errdefs.ErrUnauthenticated)
	}
	return container.NewClientWithSharedKeyCredential(url, key, o)
}
