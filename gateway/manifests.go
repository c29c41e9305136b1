package gateway

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// maxManifest is the longest manifest, in bytes, as the distribution spec has it
// ("Pushing Manifests").
const maxManifest = 4 << 20

// maxTags is how many tags one push of a manifest may have.
const maxTags = 10

// manifest serves GET and HEAD of a manifest.
func (g *Gateway) manifest(w http.ResponseWriter, r *request) error {
	desc, err := g.store.findManifest(r.Context(), r.Repository, r.Digest, r.Tag)
	if err != nil {
		return err
	}
	return g.send(w, r, desc, nil)
}

// putManifest stores a manifest by its digest, with the tags that the query has, or by a tag; the digest that the query has then
// is the manifest's, by which the tag names it.
func (g *Gateway) putManifest(w http.ResponseWriter, r *request) error {
	if err := allow(r.Context(), Push, r.Repository); err != nil {
		return err
	}
	tags, d := r.query["tag"], r.Digest
	if r.Tag != "" {
		tags, d = []string{r.Tag}, digest.Digest(r.query.Get("digest"))
	}
	if len(tags) > maxTags {
		return ociapi.Refuse(http.StatusRequestURITooLong, ociregistry.ErrUnsupported.Code(),
			"%d tags at once, %d are allowed", len(tags), maxTags)
	}
	for _, t := range tags {
		if index.CheckTag(t) != nil {
			return ociapi.Refuse(http.StatusBadRequest, "TAG_INVALID", "%.300q is no tag", t)
		}
	}
	if d != "" && index.CheckDigest(d) != nil {
		return noDigest(string(d))
	}
	raw, err := readManifest(w, r)
	switch {
	case err != nil:
		return err
	case d == "":
		d = digest.FromBytes(raw)
	case d.Algorithm().FromBytes(raw) != d:
		return ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrDigestInvalid.Code(), "the manifest has another digest than %s", d)
	}
	mediaType := r.Header.Get("Content-Type")
	if t, _, err := mime.ParseMediaType(mediaType); err == nil {
		mediaType = t // without parameters
	}
	// Before anything is stored: what cannot be read is nobody's manifest.
	m, err := index.ParseManifest(mediaType, raw)
	if err != nil {
		return ociapi.WithStatus(http.StatusBadRequest, ociregistry.ErrManifestInvalid.Code(), err)
	}
	m.Descriptor.Digest = d // raw's, perhaps by another algorithm
	done, err := g.store.pushManifest(r.Context(), r.Repository, tags, raw, m.Descriptor)
	if r.Tag == "" {
		for _, t := range done {
			w.Header().Add("OCI-Tag", t)
		}
	}
	if err != nil {
		return err
	}
	if m.Subject != nil {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	w.Header().Set("Location", "/v2/"+r.Repository+"/manifests/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// readManifest reads a request's body.
func readManifest(w http.ResponseWriter, r *request) ([]byte, error) {
	if r.ContentLength > maxManifest {
		return nil, tooLarge(fmt.Sprintf("of %d bytes", r.ContentLength))
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge("")
	}
	if err != nil {
		return nil, ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrManifestInvalid.Code(), "reading the manifest: %w", err)
	}
	return raw, nil
}

func tooLarge(size string) error {
	return ociapi.Refuse(http.StatusRequestEntityTooLarge, ociregistry.ErrSizeInvalid.Code(),
		"a manifest %s is larger than the %d bytes that are allowed", size, maxManifest)
}

func (g *Gateway) deleteManifest(w http.ResponseWriter, r *request) error {
	var err error
	if r.Digest != "" {
		err = g.store.deleteManifest(r.Context(), r.Repository, r.Digest)
	} else {
		err = g.store.deleteTag(r.Context(), r.Repository, r.Tag)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}
