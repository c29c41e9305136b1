package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// S3 is an S3 server (versitygw) on a host of its own, with one bucket.
type S3 struct {
	*Host
	Keys map[string]string // of a server's configuration that keeps tags and blobs there, as TOML values
	Env  []string          // the credentials, as AWS's clients read them

	bucket string // where its objects are files
}

// Has reports whether a blob is in the bucket.
func (s *S3) Has(digest string) bool {
	hex := strings.TrimPrefix(digest, "sha256:")
	_, err := os.Stat(filepath.Join(s.bucket, "blobs/sha256", hex[:2], hex))
	return err == nil
}

// NewS3 makes a host and starts an S3 server on it.
func (c *Cluster) NewS3(ctx context.Context, name string) (*S3, error) {
	const bucket, region, user, secret = "capelin", "us-east-1", "capelin", "not-much-of-a-secret"
	bin, err := Tool("versitygw")
	if err != nil {
		return nil, err
	}
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(h.Dir, "objects")
	if err := os.MkdirAll(filepath.Join(data, bucket), 0o750); err != nil {
		return nil, err
	}
	addr := h.Addr + ":7070"
	proc, err := h.Start("versitygw", []string{"ROOT_ACCESS_KEY_ID=" + user, "ROOT_SECRET_ACCESS_KEY=" + secret}, nil,
		bin, "--port", addr, "--region", region, "--quiet", "--keep-alive", "posix", data)
	if err != nil {
		return nil, err
	}
	s := &S3{Host: h, bucket: filepath.Join(data, bucket), Env: []string{"AWS_ACCESS_KEY_ID=" + user, "AWS_SECRET_ACCESS_KEY=" + secret}}
	s.Keys = map[string]string{
		"storage.kind": `"s3"`, "storage.s3.bucket": fmt.Sprintf("%q", bucket), "storage.s3.region": fmt.Sprintf("%q", region),
		"storage.s3.endpoint": fmt.Sprintf("%q", "http://"+addr), "storage.s3.path_style": "true",
	}
	return s, proc.await(ctx, h.accepts(addr))
}
