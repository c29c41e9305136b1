package s3

import (
	"context"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// sweepEvery is how often is looked for uploads that were left behind, and how old those are. Who uploads for
	// longer has to begin again.
	sweepEvery = 24 * time.Hour
	// sweepPages bounds how many pages of uploads are looked at. The rest has its turn later.
	sweepPages = 10
	// sweepWithin is how long all of it may take.
	sweepWithin = 10 * time.Minute
	// blobs is below the prefix where uploads are, beside those of the tests.
	blobs = "blobs/"
)

// sweepSometimes looks in the background for uploads that were left behind, of blobs, once a day, and
// only when something is uploaded: who only reads needs no right to list them, and leaves none.
func (b *Backend) sweepSometimes() {
	now, last := time.Now().Unix(), b.swept.Load()
	if last != 0 && now-last < int64(sweepEvery/time.Second) || !b.swept.CompareAndSwap(last, now) || b.closing.Err() != nil {
		return
	}
	b.wg.Go(func() {
		ctx, cancel := context.WithTimeout(b.closing, sweepWithin)
		defer cancel()
		_ = b.sweep(ctx) // it is only a help: see doc.go
	})
}

// sweep aborts the uploads of blobs that are older than sweepEvery.
func (b *Backend) sweep(ctx context.Context) error {
	return b.abortUploads(ctx, b.cfg.Prefix+blobs, func(now time.Time, u types.MultipartUpload) bool {
		return u.Initiated != nil && now.Sub(*u.Initiated) >= sweepEvery
	})
}

// abortUploads aborts uploads of objects whose names begin with prefix, those for which doomed is true. now is the storage's own time.
func (b *Backend) abortUploads(ctx context.Context, prefix string, doomed func(now time.Time, u types.MultipartUpload) bool) error {
	in := &s3.ListMultipartUploadsInput{Bucket: &b.cfg.Bucket, Prefix: &prefix}
	for range sweepPages {
		out, err := b.client.ListMultipartUploads(ctx, in)
		if err := asked(ctx, err); err != nil {
			return err
		}
		now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
		if !ok {
			return nil
		}
		for _, u := range out.Uploads {
			if !strings.HasPrefix(aws.ToString(u.Key), prefix) || !doomed(now, u) {
				continue
			}
			_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: in.Bucket, Key: u.Key, UploadId: u.UploadId})
			if err := asked(ctx, err); err != nil && !is(err, codeNoSuchUpload) {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextKeyMarker)+aws.ToString(out.NextUploadIdMarker) == "" {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
	return nil
}
