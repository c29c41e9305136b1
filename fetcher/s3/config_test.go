package s3

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

func TestCheck(t *testing.T) {
	good := Config{Bucket: "b"}
	for _, tt := range []struct {
		key    string
		change func(*Config)
	}{
		{"", func(*Config) {}},
		{"", func(c *Config) {
			c.Prefix, c.Region, c.Endpoint, c.PathStyle = "a/b/", "eu-west-1", "http://127.0.0.1:9000", true
		}},
		{"", func(c *Config) {
			c.SSE, c.KMSKey, c.StorageClass = "aws:kms", "arn:aws:kms:eu-west-1:1:key/1", "STANDARD_IA"
		}},
		{"", func(c *Config) { c.Bucket = "arn:aws:s3:eu-west-1:123456789012:accesspoint/capelin" }},
		{"", func(c *Config) { c.Memory, c.Checksums = 16<<20, "when_required" }},
		{"bucket", func(c *Config) { c.Bucket = "" }},
		{"bucket", func(c *Config) { c.Bucket = "a/b" }},
		{"bucket", func(c *Config) { c.Bucket = ".." }},
		{"prefix", func(c *Config) { c.Prefix = "a" }},
		{"prefix", func(c *Config) { c.Prefix = "/" }},
		{"prefix", func(c *Config) { c.Prefix = "/a/" }},
		{"prefix", func(c *Config) { c.Prefix = "a//" }},
		{"prefix", func(c *Config) { c.Prefix = "\xff/" }},
		{"prefix", func(c *Config) { c.Prefix = strings.Repeat("x/", 300) }},
		{"endpoint", func(c *Config) { c.Endpoint = "s3.example.com" }},
		{"endpoint", func(c *Config) { c.Endpoint = "http://user:secret@s3.example.com" }},
		{"endpoint", func(c *Config) { c.Endpoint = "ftp://s3.example.com" }},
		{"region", func(c *Config) { c.Region = "https://x" }},
		{"sse", func(c *Config) { c.SSE = "kms" }},
		{"kms_key", func(c *Config) { c.KMSKey = "x" }},
		{"kms_key", func(c *Config) { c.KMSKey, c.SSE = "x", "AES256" }},
		{"storage_class", func(c *Config) { c.StorageClass = "A\nB" }},
		{"checksums", func(c *Config) { c.Checksums = "md5" }},
		{"memory", func(c *Config) { c.Memory = 1 << 20 }},
		{"memory", func(c *Config) { c.Memory = -1 }},
	} {
		c := good
		tt.change(&c)
		errs := c.Check("x.")
		if tt.key == "" && errs == nil {
			continue
		}
		if len(errs) != 1 || tt.key == "" || config.KeyOf(errs[0]) != "x."+tt.key {
			t.Errorf("%+v: %v, want one of %q", c, errs, tt.key)
		}
		if s := fmt.Sprint(errs); strings.Contains(s, "secret") {
			t.Errorf("a secret shows: %s", s)
		}
	}
}

// TestOpen: what AWS's own settings bring, and which are missed.
func TestOpen(t *testing.T) {
	nothing(t)
	if _, err := Open(Config{}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if _, err := Open(Config{Bucket: "b"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "region") {
		t.Errorf("no region: %v", err)
	}
	_, err := Open(Config{Bucket: "b", Profile: "missing"})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("no such profile: %v", err)
	}
	for _, tt := range []struct {
		c             Config
		env           string
		name          string
		checksumsSent bool
	}{
		{Config{Bucket: "b", Region: "eu-west-1"}, "", "s3:b", true},
		{Config{Bucket: "b", Region: "eu-west-1", Prefix: "a/b/", Checksums: "when_required"}, "", "s3:b/a/b", false},
		{Config{Bucket: "b", Endpoint: "http://x:1"}, "", "s3:x:1/b", false},
		{Config{Bucket: "b"}, "http://y:2", "s3:y:2/b", false},
		{Config{Bucket: "b", Checksums: "when_supported"}, "http://y:2", "s3:y:2/b", true},
	} {
		t.Setenv("AWS_ENDPOINT_URL_S3", tt.env)
		b, err := Open(tt.c)
		if err != nil {
			t.Errorf("%+v: %v", tt.c, err)
			continue
		}
		if b.Name() != tt.name || (b.checksums != "") != tt.checksumsSent {
			t.Errorf("%+v: %s, checksums %q", tt.c, b.Name(), b.checksums)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// nothing has AWS's library find no configuration of this machine.
func nothing(t *testing.T) {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "much-of-a-secret",
	} {
		t.Setenv(name, value)
	}
}

func TestSizeOfParts(t *testing.T) {
	for _, tt := range []struct{ size, want int64 }{
		{-1, partSize}, {0, partSize}, {partSize, partSize}, {9000 * partSize, partSize}, {9000*partSize + 1, partSize + 1},
		{5 << 40, 610839794},
	} {
		got := sizeOfParts(tt.size)
		if got != tt.want || tt.size > 0 && (tt.size+got-1)/got > maxParts {
			t.Errorf("%d bytes: parts of %d, want %d", tt.size, got, tt.want)
		}
	}
}
