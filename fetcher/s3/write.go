package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/parts"
)

const (
	// metaWrite is the metadata of an object that says which write it is from, so that a writer who got no answer
	// finds out whether it was done.
	metaWrite = "capelin-write"
	// afterwards is how long may be spent on an upload that failed, whose context may have ended.
	afterwards = 10 * time.Second
)

// stamp is one write's metadata.
type stamp map[string]string

func newStamp() stamp { return stamp{metaWrite: rand.Text()} }

// Write implements fetcher.Backend. An object of more than a part is an upload, which becomes visible by
// its last request.
func (b *Backend) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	info, err := b.write(ctx, key, size, r)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	return info, nil
}

func (b *Backend) write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	name, err := b.object(ctx, key)
	if err != nil {
		return fetcher.Info{}, err
	}
	u := &upload{b: b, key: key, name: name, stamp: newStamp()}
	u.begin = sync.OnceValues(u.create)
	o := parts.Options{Size: sizeOfParts(size), Budget: b.budget}
	o.Parallel = int(min(max(int64(b.cfg.Memory)/o.Size, 1), maxParallel))
	n, err := parts.Send(ctx, r, size, o, u.send)
	if u.strays {
		u.abortStrays(ctx)
	}
	if err != nil {
		if done, ok := u.giveUp(ctx, err); ok {
			done.Size = n
			return done, nil
		}
		return fetcher.Info{}, err
	}
	return fetcher.Info{Key: key, Size: n, Version: u.version}, nil
}

// sizeOfParts returns how large the parts of an object are: equal, because some storages want that.
func sizeOfParts(size int64) int64 {
	if size < 0 {
		return partSize
	}
	return max(partSize, (size+partsAimed-1)/partsAimed)
}

// upload is one Write.
type upload struct {
	b       *Backend
	key     string
	name    *string
	stamp   stamp
	version string // when it is done
	// last: the request is under way by which the object becomes visible.
	last bool

	begin func() (id *string, err error) // of a multipart upload; the first part's
	ctx   context.Context                // for begin
	// strays: the storage may have begun more uploads than it answered, from began on and for so long.
	strays    bool
	began     time.Time
	beginning time.Duration

	mu    sync.Mutex
	id    *string
	parts []types.CompletedPart
}

// send sends one part: the only one as an object.
func (u *upload) send(ctx context.Context, p parts.Part) error {
	if p.Last && p.Number == 0 {
		u.last = true
		return u.put(ctx, p.Data)
	}
	if p.Number >= maxParts {
		return fmt.Errorf("an object of a size that is not known beforehand has %d bytes at most: %w",
			int64(maxParts)*partSize, errdefs.ErrResourceExhausted)
	}
	u.mu.Lock()
	if u.ctx == nil {
		u.ctx = ctx
	}
	u.mu.Unlock()
	id, err := u.begin()
	if err != nil {
		return err
	}
	number := aws.Int32(int32(p.Number) + 1)
	out, err := u.b.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &u.b.cfg.Bucket, Key: u.name, UploadId: id, PartNumber: number, Body: bytes.NewReader(p.Data),
		ChecksumAlgorithm: u.b.checksums,
	})
	if err := asked(ctx, err); err != nil {
		return fmt.Errorf("part %d, of %d bytes: %w", *number, len(p.Data), err)
	}
	u.mu.Lock()
	u.parts = append(u.parts, types.CompletedPart{
		PartNumber: number, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32, ChecksumCRC32C: out.ChecksumCRC32C,
		ChecksumCRC64NVME: out.ChecksumCRC64NVME, ChecksumSHA1: out.ChecksumSHA1, ChecksumSHA256: out.ChecksumSHA256,
	})
	u.mu.Unlock()
	if p.Last {
		u.last = true
		return u.complete(ctx, id)
	}
	return nil
}

// put writes the object by one request.
func (u *upload) put(ctx context.Context, data []byte) error {
	out, err := u.b.client.PutObject(ctx, u.b.putInput(u.name, data, u.stamp))
	if err == nil {
		u.version, err = versionOf(out.ETag)
	}
	return asked(ctx, err)
}

func (b *Backend) putInput(name *string, data []byte, s stamp) *s3.PutObjectInput {
	in := &s3.PutObjectInput{
		Bucket: &b.cfg.Bucket, Key: name, Metadata: s, Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
		ChecksumAlgorithm: b.checksums,
		StorageClass:      types.StorageClass(b.cfg.StorageClass), ServerSideEncryption: types.ServerSideEncryption(b.cfg.SSE),
	}
	if b.cfg.KMSKey != "" {
		in.SSEKMSKeyId = &b.cfg.KMSKey
	}
	return in
}

func versionOf(etag *string) (string, error) {
	if v := unquoted(etag); v != "" {
		return v, nil
	}
	return "", &failure{text: "the storage's answer has no ETag"}
}

func (u *upload) create() (*string, error) {
	in := &s3.CreateMultipartUploadInput{
		Bucket: &u.b.cfg.Bucket, Key: u.name, Metadata: u.stamp, ChecksumAlgorithm: u.b.checksums,
		StorageClass: types.StorageClass(u.b.cfg.StorageClass), ServerSideEncryption: types.ServerSideEncryption(u.b.cfg.SSE),
	}
	if u.b.cfg.KMSKey != "" {
		in.SSEKMSKeyId = &u.b.cfg.KMSKey
	}
	u.began = time.Now()
	unknown, err := repeated(u.ctx, func() error {
		out, err := u.b.client.CreateMultipartUpload(u.ctx, in, once)
		if err == nil && aws.ToString(out.UploadId) == "" {
			err = &failure{text: "the storage's answer has no upload's ID"}
		}
		if err == nil {
			u.id = out.UploadId
		}
		return err
	})
	u.strays, u.beginning = unknown, time.Since(u.began)
	if err != nil {
		return nil, fmt.Errorf("beginning an upload: %w", err)
	}
	u.b.sweepSometimes()
	return u.id, nil
}

func (u *upload) complete(ctx context.Context, id *string) error {
	slices.SortFunc(u.parts, func(a, b types.CompletedPart) int { return int(*a.PartNumber - *b.PartNumber) })
	out, err := u.b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &u.b.cfg.Bucket, Key: u.name, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: u.parts},
	})
	if err == nil {
		u.version, err = versionOf(out.ETag)
	}
	if err := asked(ctx, err); err != nil {
		return fmt.Errorf("completing the upload: %w", err)
	}
	return nil
}

// giveUp ends an upload after an error. ok: it was done all the same, and only the answer to the last request was lost.
func (u *upload) giveUp(ctx context.Context, err error) (_ fetcher.Info, ok bool) {
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	if u.id != nil {
		_, aerr := u.b.client.AbortMultipartUpload(own, &s3.AbortMultipartUploadInput{Bucket: &u.b.cfg.Bucket, Key: u.name, UploadId: u.id})
		if aerr == nil {
			return fetcher.Info{}, false // nor will it be done
		}
	}
	var f *failure
	if !u.last || ctx.Err() != nil || errors.As(err, &f) && u.id == nil && f.certain() {
		return fetcher.Info{}, false
	}
	info, meta, err := u.b.head(own, u.key, u.name)
	return info, err == nil && meta[metaWrite] == u.stamp[metaWrite]
}

// abortStrays aborts uploads of this object that were begun while this one was, and not answered. An upload of the same object that another
// process began in these seconds ends, too, and is begun again by whoever wants it.
func (u *upload) abortStrays(ctx context.Context) {
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	_ = u.b.abortUploads(own, *u.name, func(now time.Time, other types.MultipartUpload) bool {
		from := now.Add(-time.Since(u.began) - 2*time.Second) // seconds may be all that the storage tells
		at := aws.ToTime(other.Initiated)
		return aws.ToString(other.Key) == *u.name && aws.ToString(other.UploadId) != aws.ToString(u.id) &&
			!at.Before(from) && !at.After(from.Add(u.beginning+4*time.Second))
	})
}

// head returns what is there, with its metadata.
func (b *Backend) head(ctx context.Context, key string, name *string) (fetcher.Info, stamp, error) {
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.cfg.Bucket, Key: name})
	if err := asked(ctx, err); err != nil {
		return fetcher.Info{}, nil, err
	}
	return fetcher.Info{
		Key: key, Size: aws.ToInt64(out.ContentLength), Version: unquoted(out.ETag), Modified: aws.ToTime(out.LastModified),
	}, out.Metadata, nil
}

// WriteIf implements fetcher.Backend, by a PUT with a condition. Whether a PUT was done that was not answered is found out
// by the metadata of what is there. Who was not answered, and finds what another has written since then, has lost
// (errdefs.ErrConflict), even if his own write was there for a moment.
func (b *Backend) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	info, err := b.writeIf(ctx, key, data, version)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	return info, nil
}

func (b *Backend) writeIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	name, err := b.object(ctx, key)
	if err != nil {
		return fetcher.Info{}, err
	}
	w := &conditional{b: b, key: key, name: name, data: data, version: version, stamp: newStamp()}
	info, err := w.do(ctx)
	var f *failure
	switch {
	case err == nil, ctx.Err() != nil, !errors.As(err, &f):
		return info, err
	case f.refuses(), w.unknown:
		return w.settle(ctx, f)
	case f.again():
		return fetcher.Info{}, &failure{text: f.text}
	}
	return fetcher.Info{}, err
}

// conditional is one WriteIf.
type conditional struct {
	b       *Backend
	key     string
	name    *string
	data    []byte
	version string // that is to be there
	stamp   stamp
	unknown bool // whether one of the requests was done
}

func (w *conditional) do(ctx context.Context) (fetcher.Info, error) {
	in := w.b.putInput(w.name, w.data, w.stamp)
	if w.version == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = quoted(w.version)
	}
	info := fetcher.Info{Key: w.key, Size: int64(len(w.data))}
	var err error
	w.unknown, err = repeated(ctx, func() error {
		in.Body = bytes.NewReader(w.data)
		out, err := w.b.client.PutObject(ctx, in, once)
		if err == nil {
			info.Version, err = versionOf(out.ETag)
		}
		return err
	})
	return info, err
}

// repeated sends a request that must not be done twice unnoticed. unknown: one that failed may have been done.
func repeated(ctx context.Context, send func() error) (unknown bool, err error) {
	for try := 1; ; try++ {
		if err = asked(ctx, send()); err == nil {
			return unknown, nil
		}
		var f *failure
		if ctx.Err() != nil || !errors.As(err, &f) {
			return true, err
		}
		unknown = unknown || !f.certain()
		if !f.again() || try == maxTries {
			return unknown, err
		}
		select {
		case <-time.After(pause(try)):
		case <-ctx.Done():
			return unknown, ctx.Err()
		}
	}
}

// refuses reports whether a conditional write failed because of its condition.
func (f *failure) refuses() bool {
	return f.status == http.StatusPreconditionFailed || f.code == codeNoSuchKey
}

// settle says how a write ended that was refused, or not answered.
func (w *conditional) settle(ctx context.Context, f *failure) (fetcher.Info, error) {
	lost := fmt.Errorf("its version is not %q: %w", w.version, errdefs.ErrConflict)
	if !w.unknown {
		return fetcher.Info{}, lost
	}
	info, is, err := w.b.head(ctx, w.key, w.name)
	switch {
	case ctx.Err() != nil:
		return fetcher.Info{}, ctx.Err()
	case err != nil:
		err = &failure{text: fmt.Sprintf("whether it was done is not known: %v; and then, looking at it: %v", f, err)}
	case is[metaWrite] == w.stamp[metaWrite]:
		return info, nil
	case info.Version == w.version:
		err = &failure{text: "it was not done: " + f.text}
	default:
		err = lost
	}
	return fetcher.Info{}, err
}
