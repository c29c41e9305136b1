package index

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of manifests. What exceeds them is refused.
const (
	MaxManifest    = 4 << 20   // bytes
	MaxReferences  = 10000     // descriptors
	MaxAnnotations = 256 << 10 // bytes of a referrer's own annotations, keys and values; of others more are left out
)

// Media types of manifests beside those of OCI's image specification.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeOCIArtifact    = "application/vnd.oci.artifact.manifest.v1+json"
	MediaTypeORASArtifact   = "application/vnd.cncf.oras.artifact.manifest.v1+json"
	mediaTypeDockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
)

// IsManifest reports whether a media type is one of a manifest or index whose
// references are known to ParseManifest.
func IsManifest(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, MediaTypeDockerManifest, ocispec.MediaTypeImageIndex,
		MediaTypeDockerList, MediaTypeOCIArtifact, MediaTypeORASArtifact:
		return true
	}
	return false
}

// NeedsBlob reports whether what a manifest refers to must be at the origins: not
// layers that may not be distributed, and not what the descriptor has inline.
func NeedsBlob(d ocispec.Descriptor) bool {
	return len(d.Data) == 0 &&
		!strings.HasPrefix(d.MediaType, "application/vnd.docker.image.rootfs.foreign.") &&
		!strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.")
}

// ParseManifest reads the bytes of a manifest or index of anybody. Their type is in the
// bytes alone, so that it is the same whoever pushes them: what they say, and of those
// that say nothing, which only OCI's two may do, an image manifest if they have config or
// layers, else an index. mediaType
// is what they were pushed as, "" if nobody said; it must be the same, and a type whose
// references are known (see IsManifest). The digest is the sha256 of raw.
//
// Everything wrong is errdefs.ErrInvalidArgument, including what two readers could
// understand differently: a field twice, or in other capitals, or one that makes an image
// look like an index.
func ParseManifest(mediaType string, raw []byte) (Manifest, error) {
	m, err := parseManifest(mediaType, raw)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest %s: %w: %w", digest.FromBytes(raw), err, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

func parseManifest(mediaType string, raw []byte) (Manifest, error) {
	if len(raw) > MaxManifest {
		return Manifest{}, fmt.Errorf("%d bytes, %d are allowed", len(raw), MaxManifest)
	}
	m := Manifest{Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}}
	if !utf8.Valid(raw) {
		return Manifest{}, fmt.Errorf("it is not UTF-8")
	}
	doc, err := object(raw, topFields)
	if err == nil {
		err = m.setType(doc)
	}
	if err == nil {
		err = m.read(doc)
	}
	if err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// setType finds out the type, and compares it with what the manifest was pushed as.
func (m *Manifest) setType(doc map[string]json.RawMessage) error {
	pushed := m.Descriptor.MediaType
	if strings.HasPrefix(pushed, mediaTypeDockerSchema1) {
		return fmt.Errorf("schema 1 is not supported, push it with a newer client")
	}
	if pushed != "" {
		if err := CheckMediaType(pushed); err != nil {
			return err
		}
	}
	var says string
	if err := get(doc, "mediaType", &says); err != nil {
		return err
	}
	what := "says that it is"
	if says == "" {
		what, says = "has no mediaType, which makes it", ocispec.MediaTypeImageIndex
		if doc["config"] != nil || doc["layers"] != nil {
			says = ocispec.MediaTypeImageManifest
		}
	}
	switch {
	case pushed != "" && pushed != says:
		return fmt.Errorf("it was pushed as %s and %s %s", pushed, what, quote(says))
	case !IsManifest(says):
		return fmt.Errorf("it says that it is %s, a type that is not known", quote(says))
	}
	m.Descriptor.MediaType = says
	return nil
}

// topFields are those of all kinds of manifests.
var topFields = []string{
	"schemaVersion", "mediaType", "artifactType", "config", "layers", "blobs", "manifests", "fsLayers", "history", "subject", "annotations",
}

// read fills in what a manifest of a known type refers to.
func (m *Manifest) read(doc map[string]json.RawMessage) (err error) {
	var version int
	if err := get(doc, "schemaVersion", &version); err != nil {
		return err
	}
	if err := get(doc, "artifactType", &m.ArtifactType); err != nil {
		return err
	}
	if err := checkType(m.ArtifactType); err != nil {
		return err
	}
	if err := get(doc, "annotations", &m.Annotations); err != nil {
		return err
	}
	n := 0
	for k, v := range m.Annotations {
		n += len(k) + len(v)
	}
	switch m.Descriptor.MediaType {
	case ocispec.MediaTypeImageManifest, MediaTypeDockerManifest:
		err = m.readImage(doc, version)
	case ocispec.MediaTypeImageIndex, MediaTypeDockerList:
		err = m.readIndex(doc, version)
	default:
		err = m.readArtifact(doc)
	}
	if err != nil {
		return err
	}
	if s, ok := doc["subject"]; ok {
		subject, err := descriptor(s)
		if err != nil {
			return fmt.Errorf("subject: %w", err)
		}
		m.Subject = &subject
	}
	// The index shows them with referrers; nobody else asks it for annotations.
	switch {
	case n > MaxAnnotations && m.Subject != nil:
		return fmt.Errorf("%d bytes of annotations, %d are allowed where there is a subject", n, MaxAnnotations)
	case n > MaxAnnotations:
		m.Annotations = nil
	}
	if len(m.Blobs)+len(m.Manifests) > MaxReferences {
		return fmt.Errorf("more than %d references", MaxReferences)
	}
	return nil
}

func (m *Manifest) readImage(doc map[string]json.RawMessage, version int) error {
	if err := only(doc, version, "manifests", "blobs", "fsLayers", "history"); err != nil {
		return err
	}
	if _, ok := doc["config"]; !ok {
		return fmt.Errorf("it has no config")
	}
	config, err := descriptor(doc["config"])
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	layers, err := descriptors(doc, "layers")
	if err != nil {
		return err
	}
	m.Blobs = append([]ocispec.Descriptor{config}, layers...)
	if m.ArtifactType == "" {
		m.ArtifactType = config.MediaType
	}
	return nil
}

// readIndex sorts what an index lists by what it is: build caches list layers there.
func (m *Manifest) readIndex(doc map[string]json.RawMessage, version int) error {
	if err := only(doc, version, "config", "layers", "blobs", "fsLayers", "history"); err != nil {
		return err
	}
	all, err := descriptors(doc, "manifests")
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.MediaType == "" || IsManifest(d.MediaType) {
			m.Manifests = append(m.Manifests, d)
		} else {
			m.Blobs = append(m.Blobs, d)
		}
	}
	return nil
}

func (m *Manifest) readArtifact(doc map[string]json.RawMessage) error {
	if err := only(doc, 2, "config", "layers", "manifests", "fsLayers", "history"); err != nil {
		return err
	}
	var err error
	m.Blobs, err = descriptors(doc, "blobs")
	return err
}

// only refuses fields that would make the document something else, too.
func only(doc map[string]json.RawMessage, version int, foreign ...string) error {
	if version != 2 {
		return fmt.Errorf("schemaVersion is %d, not 2", version)
	}
	for _, f := range foreign {
		if _, ok := doc[f]; ok {
			return fmt.Errorf("a manifest of its type has no field %s", f)
		}
	}
	return nil
}

var descriptorFields = []string{"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"}

func descriptor(raw json.RawMessage) (d ocispec.Descriptor, err error) {
	if _, err := object(raw, descriptorFields); err != nil {
		return d, err
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return d, err
	}
	if err := CheckDigest(d.Digest); err != nil {
		return d, err
	}
	if d.Size < 0 {
		return d, fmt.Errorf("%s has size %d", d.Digest, d.Size)
	}
	if err := checkType(d.MediaType); err != nil {
		return d, err
	}
	if len(d.Data) > 0 && (int64(len(d.Data)) != d.Size || d.Digest.Algorithm().FromBytes(d.Data) != d.Digest) {
		return d, fmt.Errorf("%s has other data inline", d.Digest)
	}
	return d, nil
}

// checkType is lenient: what a manifest says of others' types is often no media
// type, and need not be understood here.
func checkType(t string) error {
	if len(t) > MaxMediaType || strings.ContainsFunc(t, unicode.IsControl) {
		return fmt.Errorf("%s is no media type", quote(t))
	}
	return nil
}

// descriptors reads a list of them. It stops where there are too many.
func descriptors(doc map[string]json.RawMessage, field string) ([]ocispec.Descriptor, error) {
	raw, ok := doc[field]
	if !ok {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("%s is no list", field)
	}
	var all []ocispec.Descriptor
	for dec.More() {
		if len(all) == MaxReferences {
			return nil, fmt.Errorf("%s: more than %d references", field, MaxReferences)
		}
		var one json.RawMessage
		if err := dec.Decode(&one); err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		d, err := descriptor(one)
		if err != nil {
			return nil, fmt.Errorf("%s %d: %w", field, len(all), err)
		}
		all = append(all, d)
	}
	return all, nil
}

// maxFields bounds the fields of one object.
const maxFields = 1000

// object reads the fields of a JSON object, null ones excepted. Fields that are there
// twice, or that some readers would take for one of those in known, are refused.
func object(raw []byte, known []string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("it is no JSON object")
	}
	fields := map[string]json.RawMessage{}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name := t.(string) // the decoder takes nothing else there
		if seen[name] || len(seen) == maxFields {
			return nil, fmt.Errorf("field %s is there twice, or there are too many", quote(name))
		}
		seen[name] = true
		if i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, name) }); i >= 0 && known[i] != name {
			return nil, fmt.Errorf("field %s is not %s", quote(name), known[i])
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		if string(value) != "null" {
			fields[name] = value
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the JSON object")
	}
	return fields, nil
}

// get decodes one field, if it is there.
func get(doc map[string]json.RawMessage, field string, into any) error {
	raw, ok := doc[field]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}
