package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	markKey = "capelin-backup"
	format  = 1
	maxMark = 16 << 20
	// maxIndexObject is more than an index's object has, in bytes.
	maxIndexObject = 16 << 20
	// maxMissing is how many blobs a report names at most.
	maxMissing = 1000
	parallel   = 16 // objects at once
	streams    = 4  // blobs at once
	batch      = 1000
)

// Report is what was done, and what is missing.
type Report struct {
	Format   int       `json:"format"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	// Whole: all that the index named when the back-up began is there. Of a Restore: all is in the cluster.
	Whole bool   `json:"whole"`
	Phase string `json:"phase"` // objects, tags, blobs, done

	Objects int64 `json:"objects"` // of the index, but tags: looked at
	Tags    int64 `json:"tags"`    // looked at
	Written int64 `json:"written"` // objects and tags that were copied
	Kept    int64 `json:"kept"`    // tags that a restore found in the cluster, and newer or of the same revision
	Removed int64 `json:"removed"` // objects that the index has no more

	Blobs       int64 `json:"blobs"`        // names of blobs that were looked at; several may name the same
	BlobsCopied int64 `json:"blobs_copied"` //
	Bytes       int64 `json:"bytes"`        // of blobs that were copied
	Mended      int64 `json:"mended"`       // blobs of the back-up that had other bytes than their digest says, and were copied anew

	MissingBlobs int64     `json:"missing_blobs"`
	Missing      []Missing `json:"missing,omitempty"` // the first thousand of them
}

// Missing is a blob that could not be copied.
type Missing struct {
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
	Why        string `json:"why"`
}

func (r *Report) miss(p parsed, err error) {
	r.MissingBlobs++
	if len(r.Missing) < maxMissing {
		r.Missing = append(r.Missing, Missing{p.repo, string(p.digest), err.Error()})
	}
}

// readReport returns what a storage says of the back-up in it; nil if there is none.
func readReport(ctx context.Context, b fetcher.Backend) (*Report, error) {
	data, _, err := walk.Read(ctx, b, markKey, maxMark)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: object %s is damaged: %w: %w", b.Name(), markKey, err, errdefs.ErrDataLoss)
	}
	if r.Format != format {
		return nil, fmt.Errorf("%s is a back-up of format %d, and only %d is known here; was it made by a newer release?: %w",
			b.Name(), r.Format, format, errdefs.ErrFailedPrecondition)
	}
	return &r, nil
}

func (r *Report) write(ctx context.Context, b fetcher.Backend) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	_, err = b.Write(ctx, markKey, int64(len(data)), bytes.NewReader(data))
	return err
}

// read returns nil if there is no object.
func read(ctx context.Context, b fetcher.Backend, key string) ([]byte, fetcher.Info, error) {
	data, info, err := walk.Read(ctx, b, key, maxIndexObject)
	if errdefs.IsNotFound(err) {
		return nil, fetcher.Info{}, nil
	}
	return data, info, err
}
