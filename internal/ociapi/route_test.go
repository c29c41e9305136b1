package ociapi

import (
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

func TestParse(t *testing.T) {
	sum := "sha256:" + strings.Repeat("a", 64)
	for path, want := range map[string]Route{
		"/v2":                                  {Kind: Ping},
		"/v2/":                                 {Kind: Ping},
		"/v2/_catalog":                         {Kind: Catalog},
		"/v2/_token":                           {Kind: Token},
		"/v2/a/tags/list":                      {Kind: Tags, Repository: "a"},
		"/v2/tags/tags/list":                   {Kind: Tags, Repository: "tags"},
		"/v2/a/b/referrers/" + sum:             {Kind: Referrers, Repository: "a/b", Digest: digest.Digest(sum)},
		"/v2/a/manifests/1.0":                  {Kind: Manifest, Repository: "a", Tag: "1.0"},
		"/v2/a/manifests/" + sum:               {Kind: Manifest, Repository: "a", Digest: digest.Digest(sum)},
		"/v2/a/blobs/" + sum:                   {Kind: Blob, Repository: "a", Digest: digest.Digest(sum)},
		"/v2/a/blobs/uploads/":                 {Kind: Uploads, Repository: "a"},
		"/v2/a/blobs/uploads":                  {Kind: Uploads, Repository: "a"},
		"/v2/a/blobs/uploads/x-_=":             {Kind: Upload, Repository: "a", ID: "x-_="},
		"/v2/blobs/uploads/blobs/uploads/x":    {Kind: Upload, Repository: "blobs/uploads", ID: "x"},
		"/v2/blobs/uploads/manifests/manifest": {Kind: Manifest, Repository: "blobs/uploads", Tag: "manifest"},
	} {
		if got, err := Parse(path); err != nil || got != want {
			t.Errorf("%s: %+v (%v), want %+v", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		"":                        "UNSUPPORTED 404",
		"/":                       "UNSUPPORTED 404",
		"/v1/a":                   "UNSUPPORTED 404",
		"/v2/a":                   "UNSUPPORTED 404",
		"/v2/a/b":                 "UNSUPPORTED 404",
		"/v2//":                   "UNSUPPORTED 404",
		"/v2/a/tags/other":        "UNSUPPORTED 404",
		"/v2/a/uploads/x":         "UNSUPPORTED 404",
		"/v2/tags/list":           "UNSUPPORTED 404",
		"/v2//tags/list":          "NAME_INVALID 400",
		"/v2/blobs/uploads/":      "UNSUPPORTED 404",
		"/v2//blobs/uploads/":     "NAME_INVALID 400",
		"/v2/A/tags/list":         "NAME_INVALID 400",
		"/v2/a//b/tags/list":      "NAME_INVALID 400",
		"/v2/a/../b/tags/list":    "NAME_INVALID 400",
		"/v2/a/blobs/uploads/x/":  "UNSUPPORTED 404",
		"/v2/a/blobs/sha256":      "DIGEST_INVALID 400",
		"/v2/a/blobs/":            "DIGEST_INVALID 400",
		"/v2/a/referrers/x":       "DIGEST_INVALID 400",
		"/v2/a/manifests/sha256:": "DIGEST_INVALID 400",
		"/v2/a/manifests/x:y z":   "DIGEST_INVALID 400",
		"/v2/a/manifests/.x":      "TAG_INVALID 400",
		"/v2/a/manifests/":        "TAG_INVALID 400",
		"/v2/a/manifests/x y":     "TAG_INVALID 400",
		"/v2/" + strings.Repeat("a", 256) + "/tags/list": "NAME_INVALID 400",
		"/v2/a/manifests/" + strings.Repeat("x", 129):    "TAG_INVALID 400",
	} {
		_, err := Parse(path)
		if got := shown(err); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
