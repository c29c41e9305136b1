package plugin

import (
	"strings"
	"testing"
)

func TestParseRef(t *testing.T) {
	hex := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	d := "sha256:" + hex
	d512 := "sha512:" + hex + hex
	for _, tt := range []struct {
		ref   string
		total int64
		want  string
	}{
		{"k8s.io/17/layer-" + d, 10, d},
		{"k8s.io/17/config-" + d, 10, d},
		{"default/1/unknown-" + d512, 10, d512},
		{"default/1/attestation-" + d, 10, d},
		{"default/1/layer-docker.io/library/x:1@" + d, 10, d},
		{"default/1/layer-a@b@" + d, 10, d},

		{"k8s.io/17/layer-" + d, 0, ""},
		{"k8s.io/17/layer-" + d, -1, ""},
		{"k8s.io/17/layer-" + d, 1<<40 + 1, ""},
		{"k8s.io/17/manifest-" + d, 10, ""},
		{"k8s.io/17/index-" + d, 10, ""},
		{"k8s.io/17/import-" + d, 10, ""},
		{"k8s.io/17/convert-uncompress-from-" + d, 10, ""},
		{"k8s.io/17/edit-" + d, 10, ""},
		{"k8s.io/17/layer-" + d + "x", 10, ""},
		{"k8s.io/17/layer-" + strings.ToUpper(d), 10, ""},
		{"k8s.io/17/layer-sha384:" + hex, 10, ""},
		{"k8s.io/17/layer-", 10, ""},
		{"k8s.io/17/layer", 10, ""},
		{"k8s.io/x/layer-" + d, 10, ""},
		{"k8s.io//layer-" + d, 10, ""},
		{"/1/layer-" + d, 10, ""},
		{"layer-" + d, 10, ""},
		{"", 10, ""},
		{"/", 10, ""},
		{"//", 10, ""},
	} {
		id, ok := parseRef(tt.ref, tt.total)
		if ok != (tt.want != "") || ok && (id.Digest() != tt.want || id.Size != tt.total) {
			t.Errorf("parseRef(%q, %d) = %v, %t; want %q", tt.ref, tt.total, id, ok, tt.want)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("k8s.io/17/layer-x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", int64(4))
	f.Fuzz(func(t *testing.T, ref string, total int64) {
		id, ok := parseRef(ref, total)
		if ok && (id.Validate() != nil || !strings.HasSuffix(ref, id.Digest()) || id.Size != total || isManifestRef(ref)) {
			t.Errorf("parseRef(%q, %d) = %v", ref, total, id)
		}
	})
}
