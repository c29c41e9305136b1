package s3

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/parts"
)

// Backend is a bucket.
type Backend struct {
	cfg    Config
	name   string
	client *s3.Client
	http   *transport
	budget *parts.Budget
	// checksums are sent with what is uploaded; empty: none.
	checksums types.ChecksumAlgorithm

	swept   atomic.Int64 // Unix time of the last sweep, in seconds
	closing context.Context
	close   context.CancelFunc
	wg      sync.WaitGroup
}

var _ fetcher.Backend = (*Backend)(nil)

// Open returns the backend of a bucket. It asks nobody: see Check.
func Open(cfg Config) (*Backend, error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("s3 backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	cfg = cfg.withDefaults()
	b := &Backend{cfg: cfg, budget: parts.NewBudget(int64(cfg.Memory))}
	b.closing, b.close = context.WithCancel(context.Background())
	var err error
	if b.client, b.http, err = newClient(cfg); err != nil {
		b.close()
		return nil, fmt.Errorf("s3 backend, bucket %s: %w", cfg.Bucket, err)
	}
	if b.client.Options().RequestChecksumCalculation == aws.RequestChecksumCalculationWhenSupported {
		b.checksums = types.ChecksumAlgorithmCrc32
	}
	b.name = "s3:" + cfg.Bucket
	if base := b.client.Options().BaseEndpoint; base != nil {
		if u, err := url.Parse(*base); err == nil {
			b.name = "s3:" + u.Host + u.Path + "/" + cfg.Bucket
		}
	}
	if cfg.Prefix != "" {
		b.name += "/" + strings.TrimSuffix(cfg.Prefix, "/")
	}
	return b, nil
}

// Name implements fetcher.Backend.
func (b *Backend) Name() string { return b.name }

// Capabilities implements fetcher.Backend. A version is an ETag, which comes back with its bytes.
func (b *Backend) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true}
}

// Close ends what runs in the background. Readers that are open stay usable.
func (b *Backend) Close() error {
	b.close()
	b.wg.Wait()
	b.http.http.CloseIdleConnections()
	return nil
}

// fail names the backend, the operation and the key.
func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.name, op, key, err)
}

// object returns an object's name in the bucket.
func (b *Backend) object(ctx context.Context, key string) (*string, error) {
	if err := errors.Join(fetcher.CheckKey(key), ctx.Err()); err != nil {
		return nil, err
	}
	name := b.cfg.Prefix + key
	if len(name) > maxName || !isName(key) {
		return nil, fmt.Errorf("%q is longer than %d bytes, or no UTF-8: %w", name, maxName, errdefs.ErrInvalidArgument)
	}
	return &name, nil
}

// absent is the key of an object that is not there.
const absent = "capelin-check"

// Check implements fetcher.Backend: two requests. What is not found out is whether it may be written.
func (b *Backend) Check(ctx context.Context) error {
	if err := b.check(ctx); err != nil {
		return fmt.Errorf("%s: checking: %w", b.name, err)
	}
	return nil
}

func (b *Backend) check(ctx context.Context) error {
	_, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &b.cfg.Bucket, Prefix: aws.String(b.cfg.Prefix), MaxKeys: aws.Int32(1),
	})
	if err = asked(ctx, err); err != nil {
		switch {
		case errdefs.IsPermissionDenied(err):
			err = fmt.Errorf("listing the bucket: allow s3:ListBucket on arn:aws:s3:::%s: %w", b.cfg.Bucket, err)
		case errdefs.IsUnauthorized(err):
			err = fmt.Errorf("the credentials are refused: %w", err)
		case is(err, "NoSuchBucket"):
			err = fmt.Errorf("make the bucket, or correct bucket, region, endpoint or path_style: %w", err)
		}
		return err
	}
	_, err = b.stat(ctx, absent)
	if errdefs.IsPermissionDenied(err) {
		return fmt.Errorf("reading objects: allow s3:GetObject on arn:aws:s3:::%s/%s*: %w", b.cfg.Bucket, b.cfg.Prefix, err)
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// List implements fetcher.Backend.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	page, more, err := b.list(ctx, prefix, after, limit)
	if err != nil {
		return nil, false, b.fail("listing", prefix, err)
	}
	return page, more, nil
}

const maxPage = 1000

func (b *Backend) list(ctx context.Context, prefix, after string, limit int) (page []fetcher.Info, more bool, err error) {
	if limit < 1 || limit > maxPage {
		limit = maxPage
	}
	if dir, ok := strings.CutSuffix(prefix, "/"); prefix != "" {
		if !ok {
			return nil, false, fmt.Errorf("the prefix does not end in \"/\": %w", errdefs.ErrInvalidArgument)
		}
		if _, err := b.object(ctx, dir); err != nil {
			return nil, false, err
		}
	}
	in := &s3.ListObjectsV2Input{Bucket: &b.cfg.Bucket, Prefix: aws.String(b.cfg.Prefix + prefix)}
	if after > prefix {
		if !strings.HasPrefix(after, prefix) {
			return nil, false, ctx.Err() // all that begins with prefix comes before
		}
		in.StartAfter = aws.String(b.cfg.Prefix + after)
	}
	for {
		in.MaxKeys = aws.Int32(int32(limit - len(page)))
		out, err := b.client.ListObjectsV2(ctx, in)
		if err := asked(ctx, err); err != nil {
			return nil, false, err
		}
		for _, o := range out.Contents {
			key, ok := strings.CutPrefix(aws.ToString(o.Key), b.cfg.Prefix)
			if !ok || !strings.HasPrefix(key, prefix) || key <= after || fetcher.CheckKey(key) != nil {
				continue // what somebody else put there, such as a folder's mark
			}
			if len(page) == limit {
				return page, true, nil
			}
			page = append(page, fetcher.Info{
				Key: key, Size: aws.ToInt64(o.Size), Version: unquoted(o.ETag), Modified: aws.ToTime(o.LastModified),
			})
		}
		token := aws.ToString(out.NextContinuationToken)
		switch {
		case !aws.ToBool(out.IsTruncated):
			return page, false, nil
		case len(page) == limit:
			return page, true, nil
		case token == "" || token == aws.ToString(in.ContinuationToken):
			return nil, false, fmt.Errorf("the storage says that there is more, and not where: %w", errdefs.ErrUnavailable)
		}
		in.ContinuationToken = &token
	}
}

// Delete implements fetcher.Backend.
func (b *Backend) Delete(ctx context.Context, key string) error {
	name, err := b.object(ctx, key)
	if err == nil {
		_, err = b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.cfg.Bucket, Key: name})
		err = asked(ctx, err)
	}
	if err != nil && !is(err, codeNoSuchKey) {
		return b.fail("deleting", key, err)
	}
	return nil
}

// unquoted returns an ETag as a version. quoted is the reverse.
func unquoted(etag *string) string { return strings.Trim(aws.ToString(etag), `"`) }

func quoted(version string) *string { return aws.String(`"` + version + `"`) }
