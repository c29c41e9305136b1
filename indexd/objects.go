package indexd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher"
)

// formatVersion is in every object. Others are refused.
const formatVersion = 1

// maxObject bounds what is read of an object, in bytes: a manifest's record with
// its JSON escaped.
const maxObject = 12 << 20

// What is in the storage; FORMAT.md has the fields.
type (
	tagObject struct {
		Version    int                `json:"version"`
		Repository string             `json:"repository"`
		Name       string             `json:"name"`
		Revision   uint64             `json:"revision"`
		Write      string             `json:"write,omitempty"`
		Cluster    string             `json:"cluster"`
		Stamp      uint64             `json:"stamp,omitempty"`
		Updated    time.Time          `json:"updated"`
		Deleted    bool               `json:"deleted,omitempty"`
		Descriptor ocispec.Descriptor `json:"descriptor,omitzero"`
		Previous   []digest.Digest    `json:"previous,omitempty"`
	}
	manifestObject struct {
		Version  int            `json:"version"`
		Manifest index.Manifest `json:"manifest"`
	}
	blobObject struct {
		Version    int                `json:"version"`
		Descriptor ocispec.Descriptor `json:"descriptor"`
	}
	// catalogObject and referrerObject say something by being there.
	catalogObject struct {
		Version    int    `json:"version"`
		Repository string `json:"repository"`
	}
	referrerObject struct {
		Version int `json:"version"`
	}
	// tokenKeysObject has the secrets of the cluster's gateways, the newest first.
	tokenKeysObject struct {
		Version int              `json:"version"`
		Keys    []index.TokenKey `json:"keys"`
	}
	// proofObject remembers that a storage compares and swaps.
	proofObject struct {
		Version int       `json:"version"`
		Storage string    `json:"storage"`
		Proved  time.Time `json:"proved"`
		By      string    `json:"by"`
	}
)

// errNewer is of an object that a later release has written.
var errNewer = fmt.Errorf("its format is not known: %w", errdefs.ErrDataLoss)

func (t *tagObject) tag() index.Tag {
	return index.Tag{Repository: t.Repository, Name: t.Name, Descriptor: t.Descriptor,
		Revision: t.Revision, Cluster: t.Cluster, Stamp: t.source().Stamp, Updated: t.Updated, Previous: t.Previous, Deleted: t.Deleted}
}

// source says which write a tag is; a zero Source if there is none. Objects of earlier releases have no stamp.
func (t *tagObject) source() index.Source {
	s := index.Source{Cluster: t.Cluster, Stamp: t.Stamp}
	if s.Stamp == 0 && t.Version != 0 {
		s.Stamp = index.Stamp(t.Updated)
	}
	return s
}

// read decodes an object into a pointer to one of the types above. Its Info has
// the version that was read. It is errdefs.ErrNotFound if there is no such object.
func (x *Index) read(ctx context.Context, key string, into any) (fetcher.Info, error) {
	r, info, err := x.backend.Open(ctx, key, 0, -1)
	if errdefs.IsNotFound(err) {
		return info, err
	}
	if err != nil {
		return info, x.storageError("reading", key, err)
	}
	defer r.Close()
	size := info.Size
	if size < 0 || size > maxObject {
		size = maxObject
	}
	if err := x.memory.Acquire(ctx, size); err != nil {
		return info, x.storageError("reading", key, err)
	}
	defer x.memory.Release(size)
	data, err := io.ReadAll(io.LimitReader(r, maxObject+1))
	if err != nil {
		return info, x.storageError("reading", key, err)
	}
	bad := func(format string, args ...any) (fetcher.Info, error) {
		return info, fmt.Errorf("index storage %s: object %s %s: %w", x.backend.Name(), key, fmt.Sprintf(format, args...), errdefs.ErrDataLoss)
	}
	if len(data) > maxObject {
		return bad("has more than %d bytes", maxObject)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return bad("is damaged: %v", err)
	}
	if head.Version > formatVersion {
		return info, fmt.Errorf("index storage %s: object %s has format version %d, only %d is known here; was it written by a newer indexd? %w",
			x.backend.Name(), key, head.Version, formatVersion, errNewer)
	}
	if head.Version != formatVersion {
		return bad("has format version %d, only %d is known here; was it written by a newer indexd?", head.Version, formatVersion)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return bad("is damaged: %v", err)
	}
	return info, nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("index storage: %w", err)
	}
	return b.Bytes(), nil
}

// write stores an object, whatever was there.
func (x *Index) write(ctx context.Context, key string, v any) error {
	data, err := encode(v)
	if err != nil {
		return err
	}
	if _, err := x.backend.Write(ctx, key, int64(len(data)), bytes.NewReader(data)); err != nil {
		return x.storageError("writing", key, err)
	}
	return nil
}

// writeIf stores an object if the version that is there has not changed
// (errdefs.ErrConflict if it has).
func (x *Index) writeIf(ctx context.Context, key string, v any, version string) error {
	data, err := encode(v)
	if err != nil {
		return err
	}
	_, err = x.backend.WriteIf(ctx, key, data, version)
	if err != nil && !errdefs.IsConflict(err) {
		return x.storageError("writing", key, err)
	}
	return err
}

func (x *Index) exists(ctx context.Context, key string) (bool, error) {
	_, err := x.backend.Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, x.storageError("looking for", key, err)
	}
	return true, nil
}

func (x *Index) remove(ctx context.Context, key string) error {
	if err := x.backend.Delete(ctx, key); err != nil {
		return x.storageError("deleting", key, err)
	}
	return nil
}

func (x *Index) list(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	page, more, err := x.backend.List(ctx, prefix, after, limit)
	if err != nil {
		return nil, false, x.storageError("listing", prefix, err)
	}
	return page, more && len(page) > 0, nil
}

// storageError says that the storage gave no answer. What may be wrong with it (rights,
// for one) is not the fault of whoever asked the index, so that the class is always
// the same.
func (x *Index) storageError(what, key string, err error) error {
	//nolint:errorlint // its class must not show
	return fmt.Errorf("index storage %s: %s %s: %v: %w", x.backend.Name(), what, key, err, errdefs.ErrUnavailable)
}
