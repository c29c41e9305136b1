package registry

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestManifestGoContainerregistry(t *testing.T) {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()
	manifest := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL+"/v2/team/app/manifests/v1", bytes.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", ocispec.MediaTypeImageIndex)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	b := backend(t, Config{Host: strings.TrimPrefix(srv.URL, "http://"), StripPrefix: "up/"})
	if desc, err := b.ResolveTag(t.Context(), "up/team/app", "v1"); err != nil || desc.Digest != want.Digest ||
		desc.Size != want.Size || desc.MediaType != want.MediaType {
		t.Errorf("%+v, %v", desc, err)
	}
	for _, ref := range []string{"v1", want.Digest.String()} {
		data, desc, err := b.Manifest(t.Context(), "up/team/app", ref)
		if err != nil || !bytes.Equal(data, manifest) || desc.Digest != want.Digest || desc.Size != want.Size ||
			desc.MediaType != want.MediaType {
			t.Errorf("%s: %q, %+v, %v", ref, data, desc, err)
		}
	}
	for _, ref := range []string{"v2", digest.FromString("x").String()} {
		if _, _, err := b.Manifest(t.Context(), "up/team/app", ref); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := b.ResolveTag(t.Context(), "up/team/app", "v2"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	for _, ref := range []string{"", "a/b", "sha256:12", "..", "v1?x"} {
		if _, _, err := b.Manifest(t.Context(), "up/team/app", ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", ref, err)
		}
		if _, err := b.ResolveTag(t.Context(), "up/team/app", ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if _, _, err := b.Manifest(t.Context(), "elsewhere/app", "v1"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

// Registries leave out headers, and cannot be trusted with digests.
func TestManifestAnswers(t *testing.T) {
	manifest := []byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)
	d := digest.FromBytes(manifest)
	wide := digest.SHA512.FromBytes(manifest)
	other := digest.FromString("other")
	big := bytes.Repeat([]byte(" "), MaxManifest+1)
	for _, tt := range []struct {
		name    string
		ref     string
		header  http.Header
		body    []byte
		resolve func(error) bool // nil: it works; not asked if ref is a digest
		read    func(error) bool
		digest  digest.Digest
	}{
		{"all headers", "v1", http.Header{"Docker-Content-Digest": {d.String()}, "Content-Type": {"application/x; charset=utf-8"}},
			manifest, nil, nil, d},
		{"no headers", "v1", http.Header{"Content-Type": {""}}, manifest, nil, nil, d},
		{"sha512", "v1", http.Header{"Docker-Content-Digest": {wide.String()}}, manifest, nil, nil, wide},
		{"by sha512", wide.String(), nil, manifest, nil, nil, wide},
		{"another digest", "v1", http.Header{"Docker-Content-Digest": {other.String()}, "Content-Type": {""}}, manifest,
			errdefs.IsUnavailable, errdefs.IsUnavailable, ""},
		{"another manifest", other.String(), http.Header{"Docker-Content-Digest": {other.String()}}, manifest, nil, errdefs.IsUnavailable, ""},
		{"broken digest", "v1", http.Header{"Docker-Content-Digest": {"sha256:x"}}, manifest, errdefs.IsUnavailable, errdefs.IsUnavailable, ""},
		{"too large", "v1", http.Header{"Docker-Content-Digest": {digest.FromBytes(big).String()}}, big, errdefs.IsFailedPrecondition,
			errdefs.IsFailedPrecondition, ""},
		{"too large, not told", "v1", nil, big, errdefs.IsFailedPrecondition, errdefs.IsFailedPrecondition, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				for k, v := range tt.header {
					w.Header()[k] = v
				}
				if !strings.HasSuffix(tt.name, "not told") {
					w.Header().Set("Content-Length", "")
					w.Header().Del("Content-Length")
				}
				if r.Method != http.MethodHead {
					_, _ = w.Write(tt.body)
				}
				return true
			}
			b := f.backend()
			if !strings.Contains(tt.ref, ":") {
				desc, err := b.ResolveTag(t.Context(), "team/app", tt.ref)
				if tt.resolve == nil && (err != nil || desc.Digest != tt.digest) || tt.resolve != nil && !tt.resolve(err) {
					t.Errorf("resolve: %+v, %v", desc, err)
				}
			}
			data, desc, err := b.Manifest(t.Context(), "team/app", tt.ref)
			if tt.read == nil && (err != nil || desc.Digest != tt.digest || !bytes.Equal(data, manifest) || desc.MediaType == "") ||
				tt.read != nil && !tt.read(err) {
				t.Errorf("read: %q, %+v, %v", data, desc, err)
			}
		})
	}
}
