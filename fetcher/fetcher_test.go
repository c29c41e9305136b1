package fetcher_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
)

func TestCheckKey(t *testing.T) {
	for key, ok := range map[string]bool{
		"a": true, "a/b": true, "blobs/sha256/ab/abcd": true, "team/app@sha256:12": true, ".a": true, "a..": true,
		"...": true, "ü/€": true, "~": true,
		strings.Repeat("x", 200): true, strings.Repeat("x/", 511) + "xx": true,
		"": false, "/": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/./b": false, "a/../b": false, "a/..": false,
		"a b": false, "a\x00": false, "a\n": false, `a\b`: false, "a\x7f": false,
		strings.Repeat("x", 201): false, strings.Repeat("x/", 512) + "x": false,
	} {
		if err := fetcher.CheckKey(key); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestBlobKey(t *testing.T) {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := a.FromString("x")
		key, err := fetcher.BlobKey(d)
		if want := "blobs/" + a.String() + "/" + d.Encoded()[:2] + "/" + d.Encoded(); key != want || err != nil {
			t.Errorf("%s: %q, %v", d, key, err)
		}
		if err := fetcher.CheckKey(key); err != nil {
			t.Error(err)
		}
	}
	for _, d := range []digest.Digest{"", "sha256:", "sha256:ab", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../../../etc/passwd"} {
		if key, err := fetcher.BlobKey(d); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", d, key, err)
		}
	}
}
