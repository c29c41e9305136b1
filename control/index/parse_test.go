package index

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// one is a descriptor as JSON.
func one(name, mediaType string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":5}`, mediaType, digest.FromString(name))
}

func TestParseManifest(t *testing.T) {
	const (
		image  = ocispec.MediaTypeImageManifest
		list   = ocispec.MediaTypeImageIndex
		config = ocispec.MediaTypeImageConfig
		layer  = ocispec.MediaTypeImageLayerGzip
	)
	names := func(all []ocispec.Descriptor) string {
		var s []string
		for _, d := range all {
			for _, name := range []string{"c", "l1", "l2", "m1", "m2", "s"} {
				if d.Digest == digest.FromString(name) {
					s = append(s, name)
				}
			}
		}
		return strings.Join(s, " ")
	}
	for _, tt := range []struct {
		name, mediaType, raw       string
		blobs, manifests, artifact string
		wrong                      string // in the error
	}{
		{
			name: "image", mediaType: image, blobs: "c l1 l2", artifact: config,
			raw: `{"schemaVersion":2,"mediaType":"` + image + `","config":` + one("c", config) + `,"layers":[` +
				one("l1", layer) + `,` + one("l2", layer) + `],"other":{"a":1}}`,
		},
		{
			name: "image without media type", mediaType: image, blobs: "c", artifact: config,
			raw: `{"schemaVersion":2,"config":` + one("c", config) + `,"layers":null,"subject":null}` + "\n",
		},
		{
			name: "pushed without media type", blobs: "c", artifact: config,
			raw: `{"schemaVersion":2,"mediaType":"` + image + `","config":` + one("c", config) + `}`,
		},
		{
			name: "docker", mediaType: MediaTypeDockerManifest, blobs: "c l1", artifact: "a/b",
			raw: `{"schemaVersion":2,"mediaType":"` + MediaTypeDockerManifest + `","config":` + one("c", "a/b") +
				`,"layers":[` + one("l1", "c/d") + `]}`,
		},
		{
			name: "artifact in an image manifest", mediaType: image, blobs: "c", artifact: "x/y",
			raw: `{"schemaVersion":2,"artifactType":"x/y","config":` + one("c", "a/b") + `,"subject":` + one("s", image) + `}`,
		},
		{
			name: "index", mediaType: list, manifests: "m1 m2 c", artifact: "x/y",
			raw: `{"schemaVersion":2,"artifactType":"x/y","manifests":[` + one("m1", image) + `,` + one("m2", list) + `,` +
				one("c", "") + `],"subject":` + one("s", image) + `}`,
		},
		{
			name: "docker list", mediaType: MediaTypeDockerList, manifests: "m1",
			raw: `{"schemaVersion":2,"mediaType":"` + MediaTypeDockerList + `","manifests":[` + one("m1", MediaTypeDockerManifest) + `]}`,
		},
		{
			name: "build cache", mediaType: list, blobs: "l1", manifests: "m1",
			raw: `{"schemaVersion":2,"manifests":[` + one("l1", layer) + `,` + one("m1", image) + `]}`,
		},
		{name: "empty index", mediaType: list, raw: `{"schemaVersion":2,"manifests":[]}`},
		{
			name: "ORAS artifact", mediaType: MediaTypeORASArtifact, blobs: "l1", artifact: "x/y",
			raw: `{"schemaVersion":2,"mediaType":"` + MediaTypeORASArtifact + `","artifactType":"x/y","blobs":[` + one("l1", "a/b") + `]}`,
		},
		{
			name: "OCI artifact", mediaType: MediaTypeOCIArtifact, blobs: "l1", artifact: "x/y",
			raw: `{"mediaType":"` + MediaTypeOCIArtifact + `","artifactType":"x/y","blobs":[` + one("l1", "a/b") + `]}`,
		},
		{name: "without any type, an index", manifests: "m1", raw: `{"schemaVersion":2,"manifests":[` + one("m1", image) + `]}`},
		{
			name: "without any type, an image", blobs: "c", artifact: config,
			raw: `{"schemaVersion":2,"config":` + one("c", config) + `}`,
		},
		{
			name: "odd types within", mediaType: image, blobs: "c", artifact: "text; charset=x",
			raw: `{"schemaVersion":2,"config":` + one("c", "text; charset=x") + `}`,
		},

		{name: "nothing", raw: `{}`, wrong: "schemaVersion"},
		{name: "unknown type", mediaType: "application/vnd.example+json", wrong: "a type that is not known",
			raw: `{"schemaVersion":2,"mediaType":"application/vnd.example+json"}`},
		{name: "an unknown type that it does not have", mediaType: "application/vnd.example+json",
			wrong: "was pushed as application/vnd.example+json and has no",
			raw:   `{"schemaVersion":2,"manifests":[]}`},
		{name: "as a form", mediaType: "application/x-www-form-urlencoded", wrong: "was pushed as",
			raw: `{"schemaVersion":2,"mediaType":"` + image + `","config":` + one("c", config) + `}`},
		{name: "as docker's, without a type", mediaType: MediaTypeDockerManifest, wrong: "was pushed as",
			raw: `{"schemaVersion":2,"config":` + one("c", config) + `}`},
		{name: "text", mediaType: "text/plain", raw: "hello", wrong: "no JSON object"},
		{name: "empty", mediaType: image, raw: "", wrong: "no JSON object"},
		{name: "bad type", mediaType: "a b", raw: `{}`, wrong: "no media type"},
		{name: "schema 1", mediaType: "application/vnd.docker.distribution.manifest.v1+prettyjws", raw: `{}`, wrong: "schema 1"},
		{name: "other type", mediaType: list, raw: `{"schemaVersion":2,"mediaType":"` + image + `"}`, wrong: "was pushed as"},
		{name: "type is a number", mediaType: list, raw: `{"mediaType":2}`, wrong: "mediaType"},
		{name: "no JSON", mediaType: image, raw: `x`, wrong: "no JSON object"},
		{name: "no object", mediaType: image, raw: `[]`, wrong: "no JSON object"},
		{name: "cut", mediaType: image, raw: `{"schemaVersion":2`, wrong: ""},
		{name: "more", mediaType: image, raw: `{"schemaVersion":2,"config":` + one("c", config) + `}{}`, wrong: "follows"},
		{name: "no UTF-8", mediaType: image, raw: "{\"a\":\"\xff\"}", wrong: "UTF-8"},
		{name: "schema version", mediaType: image, raw: `{"schemaVersion":1,"config":` + one("c", config) + `}`, wrong: "schemaVersion is 1"},
		{name: "no schema version", mediaType: list, raw: `{"manifests":[]}`, wrong: "schemaVersion"},
		{name: "no config", mediaType: image, raw: `{"schemaVersion":2,"layers":[]}`, wrong: "no config"},
		{name: "twice", mediaType: list, raw: `{"schemaVersion":2,"manifests":[],"manifests":[]}`, wrong: "twice"},
		{
			name: "capitals", mediaType: image, wrong: `"Layers" is not layers`,
			raw: `{"schemaVersion":2,"config":` + one("c", config) + `,"Layers":[]}`,
		},
		{name: "Kelvin sign", raw: `{"mediaType":"` + MediaTypeORASArtifact + `","artifactType":"a/b","blobſ":[]}`, wrong: "is not blobs"},
		{
			name: "image and index", mediaType: image, wrong: "no field manifests",
			raw: `{"schemaVersion":2,"config":` + one("c", config) + `,"manifests":[]}`,
		},
		{name: "index and image", mediaType: list, wrong: "no field layers",
			raw: `{"schemaVersion":2,"mediaType":"` + list + `","manifests":[],"layers":[]}`},
		{
			name: "image and schema 1", mediaType: image, wrong: "no field fsLayers",
			raw: `{"schemaVersion":2,"config":` + one("c", config) + `,"fsLayers":[]}`,
		},
		{name: "digest", mediaType: list, raw: `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}`, wrong: "no digest"},
		{name: "no digest", mediaType: list, raw: `{"schemaVersion":2,"manifests":[{}]}`, wrong: "no digest"},
		{
			name: "size", mediaType: list, wrong: "size -1",
			raw: `{"schemaVersion":2,"manifests":[{"digest":"` + string(digest.FromString("c")) + `","size":-1}]}`,
		},
		{
			name: "digest in capitals", mediaType: list, wrong: `"Digest" is not digest`,
			raw: `{"schemaVersion":2,"manifests":[{"digest":"` + string(digest.FromString("c")) + `","Digest":"x"}]}`,
		},
		{name: "list is a string", mediaType: list, raw: `{"schemaVersion":2,"manifests":"x"}`, wrong: "no list"},
		{
			name: "type within", mediaType: list, wrong: "no media type",
			raw: `{"schemaVersion":2,"manifests":[` + one("c", strings.Repeat("a", 300)) + `]}`,
		},
		{
			name: "inline data", mediaType: image, wrong: "other data inline",
			raw: `{"schemaVersion":2,"config":{"digest":"` + string(digest.FromString("c")) + `","size":1,"data":"YQ=="}}`,
		},
		{name: "too large", mediaType: "a/b", raw: strings.Repeat(" ", MaxManifest+1), wrong: "are allowed"},
		{
			name: "too many", mediaType: list, wrong: "more than 10000",
			raw: `{"schemaVersion":2,"manifests":[` + strings.Repeat(one("c", "a/b")+",", MaxReferences) + one("c", "a/b") + `]}`,
		},
		{name: "too many fields", mediaType: list, raw: `{"schemaVersion":2` + fieldsOf(1000) + `}`, wrong: "too many"},
		{
			name: "annotations", mediaType: list, wrong: "bytes of annotations",
			raw: `{"schemaVersion":2,"subject":` + one("c", "a/b") + `,"annotations":{"a":"` + strings.Repeat("a", MaxAnnotations) + `"}}`,
		},
		{
			name: "annotations of no referrer", mediaType: list, wrong: "",
			raw: `{"schemaVersion":2,"annotations":{"a":"` + strings.Repeat("a", MaxAnnotations) + `"}}`,
		},
		{name: "deep", mediaType: list, raw: `{"schemaVersion":2,"x":` + strings.Repeat("[", 1<<20) + `}`, wrong: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ParseManifest(tt.mediaType, []byte(tt.raw))
			if (tt.wrong != "" || tt.name == "cut" || tt.name == "deep") != (err != nil) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.wrong) || len(err.Error()) > 1000 {
					t.Errorf("%v does not say %q", err, tt.wrong)
				}
				return
			}
			if names(m.Blobs) != tt.blobs || names(m.Manifests) != tt.manifests || m.ArtifactType != tt.artifact {
				t.Errorf("blobs %q, manifests %q, artifact type %q", names(m.Blobs), names(m.Manifests), m.ArtifactType)
			}
			has := m.Subject != nil
			if has != strings.Contains(tt.raw, `"subject":{`) || has && names([]ocispec.Descriptor{*m.Subject}) != "s" {
				t.Errorf("subject %v", m.Subject)
			}
			if d := m.Descriptor; d.Digest != digest.FromString(tt.raw) || d.Size != int64(len(tt.raw)) || d.MediaType == "" {
				t.Errorf("descriptor %v", d)
			}
		})
	}
}

func fieldsOf(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"f%d":0`, i)
	}
	return b.String()
}

func TestNeedsBlob(t *testing.T) {
	for mediaType, want := range map[string]bool{
		"": true, ocispec.MediaTypeImageLayerGzip: true, ocispec.MediaTypeImageConfig: true,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":         true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": false,
		"application/vnd.docker.image.rootfs.foreign.diff.tar":      false,
		ocispec.MediaTypeImageLayerNonDistributable:                 false, //nolint:staticcheck
		ocispec.MediaTypeImageLayerNonDistributableGzip:             false, //nolint:staticcheck
		ocispec.MediaTypeImageLayerNonDistributableZstd:             false, //nolint:staticcheck
	} {
		if got := NeedsBlob(ocispec.Descriptor{MediaType: mediaType}); got != want {
			t.Errorf("%s: %v", mediaType, got)
		}
	}
	if NeedsBlob(ocispec.DescriptorEmptyJSON) {
		t.Error("inline data needs a blob")
	}
}

// Of what is accepted, everything is in bounds, and the record says the same after it
// was stored and read.
func FuzzParseManifest(f *testing.F) {
	types := []string{"", ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, MediaTypeDockerManifest, MediaTypeDockerList,
		MediaTypeOCIArtifact, MediaTypeORASArtifact, "application/vnd.example+json"}
	for i := range types {
		for _, raw := range []string{
			`{"schemaVersion":2,"config":` + one("c", "a/b") + `,"layers":[` + one("l1", "") + `],` +
				`"annotations":{"a":"b"},"subject":` + one("s", "a/b") + `}`,
			`{"schemaVersion":2,"mediaType":"` + types[i] + `",` +
				`"manifests":[` + one("m1", ocispec.MediaTypeImageManifest) + `,` + one("m2", "x") + `]}`,
			`{"artifactType":"a/b","blobs":[{"mediaType":"application/vnd.oci.empty.v1+json",` +
				`"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,` +
				`"data":"e30=","platform":{"architecture":"a","os":"b"},"urls":["c"]}]}`,
		} {
			f.Add(uint8(i), []byte(raw))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		m, err := ParseManifest(types[int(kind)%len(types)], raw)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
			return
		}
		all := append(append([]ocispec.Descriptor{m.Descriptor}, m.Blobs...), m.Manifests...)
		if m.Subject != nil {
			all = append(all, *m.Subject)
		}
		for _, d := range all {
			if d.Digest.Validate() != nil || d.Size < 0 || len(d.MediaType) > MaxMediaType ||
				len(d.Data) > 0 && d.Digest.Algorithm().FromBytes(d.Data) != d.Digest {
				t.Errorf("descriptor %+v", d)
			}
		}
		if len(all) > MaxReferences+2 {
			t.Errorf("%d descriptors", len(all))
		}
		stored, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var again Manifest
		if err := json.Unmarshal(stored, &again); err != nil {
			t.Fatal(err)
		}
		twice, _ := json.Marshal(again)
		if string(stored) != string(twice) {
			t.Errorf("stored %s, read %s", stored, twice)
		}
		if same, err := ParseManifest(m.Descriptor.MediaType, raw); err != nil || !reflect.DeepEqual(m, same) {
			t.Errorf("read once %+v, twice %+v, %v", m, same, err)
		}
	})
}
