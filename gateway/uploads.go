package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// startUpload mounts a blob, takes a blob that comes whole with the request, or begins an upload.
func (g *Gateway) startUpload(w http.ResponseWriter, r *request) error {
	if err := allow(r.Context(), Push, r.Repository); err != nil {
		return err
	}
	mount, from, whole := digest.Digest(r.query.Get("mount")), r.query.Get("from"), r.query.Get("digest")
	var expected digest.Digest
	if mount != "" && index.CheckDigest(mount) == nil {
		if from == "" { // from anywhere
			from, _ = g.store.seen.Get(mount)
		}
		if index.CheckRepository(from) == nil && g.store.mount(r.Context(), from, r.Repository, mount) == nil {
			created(w, r.Repository, mount)
			return nil
		}
		// An upload, as the distribution spec wants it ("Mounting a blob from another repository"). What is uploaded then is most
		// likely the blob that was to be mounted.
		expected = mount
	}
	if mount == "" && whole != "" {
		d := digest.Digest(whole)
		if index.CheckDigest(d) != nil {
			return noDigest(whole)
		}
		if err := g.store.pushBlob(r.Context(), r.Repository, d, r.Body); err != nil {
			return err
		}
		created(w, r.Repository, d)
		return nil
	}
	u, err := g.store.beginUpload(r.Context(), r.Repository, expected)
	if err != nil {
		return err
	}
	u.says(w, http.StatusAccepted)
	return nil
}

func created(w http.ResponseWriter, repo string, d digest.Digest) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

// upload says where an upload stands.
func (g *Gateway) upload(w http.ResponseWriter, r *request) error {
	u, err := g.store.findUpload(r.Context(), r.Repository, r.ID)
	if err != nil {
		return err
	}
	u.says(w, http.StatusNoContent)
	return nil
}

func (g *Gateway) patchUpload(w http.ResponseWriter, r *request) error {
	u, err := g.store.findUpload(r.Context(), r.Repository, r.ID)
	if err != nil {
		return err
	}
	if err := u.take(r); err != nil {
		return err
	}
	u.says(w, http.StatusAccepted)
	return nil
}

// putUpload ends an upload, after the last bytes if the request has some.
func (g *Gateway) putUpload(w http.ResponseWriter, r *request) error {
	u, err := g.store.findUpload(r.Context(), r.Repository, r.ID)
	if err != nil {
		return err
	}
	d := digest.Digest(r.query.Get("digest"))
	if index.CheckDigest(d) != nil {
		return noDigest(string(d))
	}
	if err := u.take(r); err != nil {
		return err
	}
	if err := u.commit(d); err != nil {
		return err
	}
	created(w, r.Repository, d)
	return nil
}

func (g *Gateway) deleteUpload(w http.ResponseWriter, r *request) error {
	u, err := g.store.findUpload(r.Context(), r.Repository, r.ID)
	if err != nil {
		return err
	}
	if err := g.store.origin.Cancel(r.Context(), u.id); err != nil {
		return translate(err, noUpload(r.Repository))
	}
	w.Header().Set("Docker-Upload-UUID", r.ID)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func noUpload(repo string) error {
	return notFound(ociregistry.ErrBlobUploadUnknown, "%s has no such upload, or has it no longer: begin again", repo)
}

// upload is one under way. Nothing of it is kept here: any gateway can
// continue it.
type upload struct {
	s    *store
	ctx  context.Context
	repo string
	id   string // at the origins
	at   int64
}

// beginUpload begins an upload of a blob; d is "" if nobody has said yet which one it is. The API has
// no way to say so but for a POST with all of the blob, and a mount; most clients send the
// digest with the PUT that ends the upload, and some do not know it earlier.
func (s *store) beginUpload(ctx context.Context, repo string, d digest.Digest) (*upload, error) {
	if err := allow(ctx, Push, repo); err != nil {
		return nil, err
	}
	id, err := s.origin.BeginUpload(ctx, origin.NewUpload{Namespace: repo, Owner: uploader(ctx), Digest: d})
	if errdefs.IsFailedPrecondition(err) { // no storage takes this namespace
		return nil, ociapi.WithStatus(http.StatusForbidden, ociregistry.ErrDenied.Code(), err)
	}
	if err != nil {
		return nil, translate(err, noUpload(repo))
	}
	return &upload{s: s, ctx: ctx, repo: repo, id: id}, nil
}

// uploader stands for the user whose uploads are begun; "" where nobody is told from anybody. Origins need not know names.
func uploader(ctx context.Context) string {
	c := callerOf(ctx)
	if c.all && c.user == Anonymous {
		return ""
	}
	sum := sha256.Sum256([]byte(c.user))
	return hex.EncodeToString(sum[:16])
}

// findUpload finds the upload that a path names, if it is this repository's, and the caller has begun it. Those that an
// earlier release has begun are anybody's who may push.
func (s *store) findUpload(ctx context.Context, repo, name string) (*upload, error) {
	if err := allow(ctx, Push, repo); err != nil {
		return nil, err
	}
	id, err := base64.RawURLEncoding.DecodeString(name)
	if err != nil {
		return nil, noUpload(repo)
	}
	u, err := s.origin.Upload(ctx, string(id))
	if errdefs.IsInvalidArgument(err) {
		return nil, noUpload(repo)
	}
	if err != nil {
		return nil, translate(err, noUpload(repo))
	}
	if u.Namespace != "" && u.Namespace != repo || u.Owner != "" && u.Owner != uploader(ctx) {
		return nil, noUpload(repo)
	}
	return &upload{s: s, ctx: ctx, repo: repo, id: string(id), at: u.Offset}, nil
}

// says answers with where the upload stands.
func (u *upload) says(w http.ResponseWriter, status int) {
	name := base64.RawURLEncoding.EncodeToString([]byte(u.id))
	h := w.Header()
	h.Set("Location", "/v2/"+u.repo+"/blobs/uploads/"+name)
	h.Set("Range", fmt.Sprintf("0-%d", max(u.at-1, 0)))
	h.Set("Docker-Upload-UUID", name)
	if status != http.StatusNoContent {
		h.Set("Content-Length", "0")
	}
	w.WriteHeader(status)
}

// take appends a request's body.
func (u *upload) take(r *request) error {
	if text := r.Header.Get("Content-Range"); text != "" {
		from, to, ok := contentRange(text)
		switch {
		case !ok:
			return ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrBlobUploadInvalid.Code(),
				"Content-Range: %.100q is not <first byte>-<last byte>", text)
		case from != u.at:
			return ociapi.Refuse(http.StatusRequestedRangeNotSatisfiable, ociregistry.ErrRangeInvalid.Code(),
				"the upload goes on at %d, not at %d", u.at, from)
		case r.ContentLength >= 0 && r.ContentLength != to-from+1:
			return ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrSizeInvalid.Code(),
				"Content-Range has %d bytes, Content-Length %d", to-from+1, r.ContentLength)
		}
	}
	return u.append(r.Body)
}

// contentRange reads the range of a chunk.
func contentRange(text string) (from, to int64, ok bool) {
	first, last, _ := strings.Cut(text, "-")
	from, ferr := strconv.ParseInt(first, 10, 64)
	to, terr := strconv.ParseInt(last, 10, 64)
	return from, to, ferr == nil && terr == nil && from >= 0 && from <= to
}

// append sends all that comes to the origin, in one request; none for nothing.
func (u *upload) append(r io.Reader) error {
	one := make([]byte, 1)
	if n, err := io.ReadFull(r, one); n == 0 {
		if errors.Is(err, io.EOF) {
			return nil // a PUT that only ends the upload
		}
		return ociapi.WithStatus(http.StatusBadRequest, ociregistry.ErrBlobUploadInvalid.Code(), fmt.Errorf("reading the body: %w", err))
	}
	end, err := u.s.origin.Append(u.ctx, u.id, u.at, io.MultiReader(bytes.NewReader(one), r))
	if err != nil {
		return translate(err, noUpload(u.repo))
	}
	u.at = end
	return nil
}

// commit makes the upload a blob of the repository.
func (u *upload) commit(d digest.Digest) (err error) {
	defer func() { audit(u.ctx, Push, u.repo, "blob", d.String(), err) }()
	size, err := u.keep(d)
	if err != nil {
		return err
	}
	err = u.s.index.LinkBlob(u.ctx, u.repo, ocispec.Descriptor{MediaType: blobType, Digest: d, Size: size})
	if err == nil {
		u.s.seen.Add(d, u.repo)
	}
	return translate(err, noBlob(u.repo, d))
}

// keep makes the upload a blob at the origins. One that is something else is over.
func (u *upload) keep(d digest.Digest) (size int64, err error) {
	info, err := u.s.origin.Commit(u.ctx, u.id, d)
	switch {
	case errdefs.IsOutOfRange(err):
		// The origin that took the last bytes is lost, and with them what no other had yet. Clients push again what is unavailable.
		return 0, unavailable(err)
	case errdefs.IsInvalidArgument(err):
		_ = u.s.origin.Cancel(context.WithoutCancel(u.ctx), u.id) // it expires
		return 0, ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrDigestInvalid.Code(), "the bytes have another digest: %w", err)
	case err != nil:
		return 0, translate(err, noUpload(u.repo))
	}
	return info.Size, nil
}

// pushBlob stores a blob that comes in one request.
func (s *store) pushBlob(ctx context.Context, repo string, d digest.Digest, r io.Reader) error {
	u, err := s.beginUpload(ctx, repo, d)
	if err != nil {
		return err
	}
	if err = u.append(r); err == nil {
		err = u.commit(d)
	}
	return u.orCancel(err)
}

// storeBytes stores what is no blob of the repository: a manifest.
func (s *store) storeBytes(ctx context.Context, repo string, raw []byte, d digest.Digest) error {
	u, err := s.beginUpload(ctx, repo, d)
	if err != nil {
		return err
	}
	if err = u.append(bytes.NewReader(raw)); err == nil {
		_, err = u.keep(d)
	}
	return u.orCancel(err)
}

// orCancel ends an upload that nobody can go on with, because its id was told to nobody.
func (u *upload) orCancel(err error) error {
	if err != nil {
		_ = u.s.origin.Cancel(context.WithoutCancel(u.ctx), u.id) // it expires
	}
	return err
}
