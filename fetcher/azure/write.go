package azure

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/parts"
)

const (
	// nonceKey is the metadata by which a write finds out whether a blob is its own.
	nonceKey = "capelin_write"
	// maxReplace is how often a write tries to replace what others replace meanwhile.
	maxReplace = 20
)

// writing is a blob that is being written.
type writing struct {
	b       *Backend
	key     string
	name    string
	nonce   string // in its metadata, and in the names of its blocks
	headers *blob.HTTPHeaders
	blobs   *blockblob.Client
}

func (b *Backend) writing(ctx context.Context, key string) (*writing, error) {
	name, err := b.name(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	c, err := b.connect()
	if err != nil {
		return nil, err
	}
	return &writing{
		b: b, key: key, name: name, nonce: rand.Text(), blobs: c.NewBlockBlobClient(name),
		headers: &blob.HTTPHeaders{BlobContentType: to.Ptr("application/octet-stream")},
	}, nil
}

func (w *writing) metadata() map[string]*string { return map[string]*string{nonceKey: &w.nonce} }

// blockOf returns how large the blocks of an object of that size are (negative: unknown): at
// least least, and so that there are not too many.
func blockOf(size, least int64) int64 {
	return max(least, (size+maxBlocks-1)/maxBlocks)
}

// Write implements fetcher.Backend. What fits into a block is sent at once, under the condition that nobody
// else writes meanwhile, so that a repeated request never undoes what came after it; what is larger, in blocks, which then
// become the object at once.
func (b *Backend) Write(ctx context.Context, key string, size int64, r io.Reader) (info fetcher.Info, err error) {
	w, err := b.writing(ctx, key)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	o := parts.Options{Size: blockOf(size, b.block), Parallel: parallel, Budget: b.budget}
	n, err := parts.Send(ctx, r, size, o, func(ctx context.Context, p parts.Part) (err error) {
		if p.Number == 0 && p.Last {
			info, err = w.replace(ctx, p.Data)
			return err
		}
		if err := w.stage(ctx, p); err != nil || !p.Last {
			return err
		}
		info, err = w.commit(ctx, p.Number+1)
		return err
	})
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	info.Size = n
	return info, nil
}

// WriteIf implements fetcher.Backend, by the ETag.
func (b *Backend) WriteIf(ctx context.Context, key string, data []byte, version string) (info fetcher.Info, err error) {
	w, err := b.writing(ctx, key)
	if err == nil && versionOf(version) != version {
		err = fmt.Errorf("version %.40q is none of this storage's: %w", version, errdefs.ErrConflict)
	}
	if err == nil {
		info, err = w.put(ctx, data, version)
	}
	if err != nil {
		return fetcher.Info{}, b.fail("replacing", key, err)
	}
	return info, nil
}

// Delete implements fetcher.Backend: of the version that is there now, so that a repeated request never
// removes what was written after it.
func (b *Backend) Delete(ctx context.Context, key string) error {
	name, err := b.name(key)
	var p blob.GetPropertiesResponse
	if err == nil {
		p, err = b.properties(ctx, name, b.ask)
	}
	if err == nil {
		var info fetcher.Info
		if info, err = infoOf(key, p.ContentLength, p.ETag, p.LastModified); err == nil {
			err = b.remove(ctx, name, info.Version)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return b.fail("deleting", key, err)
	}
	return nil
}

// remove removes a version, with its snapshots. It is no error if that is not there any more.
func (b *Backend) remove(ctx context.Context, name, version string) error {
	c, err := b.connect()
	if err != nil {
		return err
	}
	blobs := c.NewBlobClient(name)
	err = b.ask(ctx, func() error {
		_, err := blobs.Delete(ctx, &blob.DeleteOptions{
			DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude), AccessConditions: conditions(version),
		})
		return err
	})
	if lost(err) {
		return nil
	}
	return err
}

// replace writes over whatever is there.
func (w *writing) replace(ctx context.Context, data []byte) (fetcher.Info, error) {
	for range maxReplace {
		version := ""
		p, err := w.b.properties(ctx, w.name, w.b.ask)
		if err == nil {
			info, ierr := infoOf(w.key, p.ContentLength, p.ETag, p.LastModified)
			if ierr != nil || w.isOwn(p) {
				return info, ierr
			}
			version = info.Version
		} else if !errdefs.IsNotFound(err) {
			return fetcher.Info{}, err
		}
		info, err := w.put(ctx, data, version)
		if !errdefs.IsConflict(err) {
			return info, err
		}
	}
	return fetcher.Info{}, fmt.Errorf("others replaced it %d times meanwhile: %w", maxReplace, errdefs.ErrUnavailable)
}

// put writes data if what is there has that version; "": if there is nothing. It is errLost otherwise.
func (w *writing) put(ctx context.Context, data []byte, version string) (info fetcher.Info, err error) {
	doubt := false // an earlier try may have been carried out
	err = w.b.ask(ctx, func() error {
		r, err := w.blobs.Upload(ctx, streaming.NopCloser(bytes.NewReader(data)), &blockblob.UploadOptions{
			Metadata: w.metadata(), HTTPHeaders: w.headers, AccessConditions: conditions(version),
		})
		if err == nil {
			info, err = w.written(int64(len(data)), r.ETag, r.LastModified)
			return err
		}
		err = classed(ctx, err)
		lost := lost(err) || version != "" && errdefs.IsNotFound(err)
		switch {
		case lost && !doubt:
			return errLost
		case !lost && !unclear(err):
			return err
		}
		doubt = true
		own, oerr := w.own(ctx)
		switch {
		case oerr == nil && own != nil:
			info = *own
			return nil
		case oerr == nil && lost:
			return errLost // unless others have replaced ours meanwhile, of which nothing is left
		}
		return err
	})
	return info, err
}

func (w *writing) written(size int64, etag *azcore.ETag, modified *time.Time) (fetcher.Info, error) {
	return infoOf(w.key, &size, etag, modified)
}

// own asks once whether what is there is what was written; nil: it is not.
func (w *writing) own(ctx context.Context) (*fetcher.Info, error) {
	p, err := w.b.properties(ctx, w.name, func(ctx context.Context, f func() error) error { return classed(ctx, f()) })
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case !w.isOwn(p):
		return nil, nil
	}
	info, err := infoOf(w.key, p.ContentLength, p.ETag, p.LastModified)
	return &info, err
}

func (w *writing) isOwn(p blob.GetPropertiesResponse) bool {
	for k, v := range p.Metadata { // the storage's answer has it in a header, whose case nobody keeps
		if len(k) == len(nonceKey) && v != nil && *v == w.nonce {
			return true
		}
	}
	return false
}

// blockID returns the name of a block, which is unlike those of all other writes. All have one length.
func (w *writing) blockID(number int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%08d", w.nonce, number))
}

// stage sends a block.
func (w *writing) stage(ctx context.Context, p parts.Part) error {
	if p.Number >= maxBlocks {
		return fmt.Errorf("it is larger than %d blocks of %d bytes, and nobody said its size before: %w",
			maxBlocks, p.Offset/int64(p.Number), errdefs.ErrFailedPrecondition)
	}
	err := w.b.ask(ctx, func() error {
		_, err := w.blobs.StageBlock(ctx, w.blockID(p.Number), streaming.NopCloser(bytes.NewReader(p.Data)), nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("block %d: %w", p.Number, err)
	}
	return nil
}

// commit makes the blob of its blocks.
func (w *writing) commit(ctx context.Context, blocks int) (info fetcher.Info, err error) {
	ids := make([]string, blocks)
	for i := range ids {
		ids[i] = w.blockID(i)
	}
	err = w.b.ask(ctx, func() error {
		r, err := w.blobs.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{Metadata: w.metadata(), HTTPHeaders: w.headers})
		if err == nil {
			info, err = w.written(0, r.ETag, r.LastModified)
			return err
		}
		err = classed(ctx, err)
		others := codeOf(err) == bloberror.InvalidBlockList
		if unclear(err) || others {
			if own, oerr := w.own(ctx); oerr == nil && own != nil {
				info = *own
				return nil
			}
		}
		if others {
			return fmt.Errorf("another write of it ended meanwhile, for which the storage gave up this one's blocks: %w", err)
		}
		return err
	})
	if err != nil {
		return info, fmt.Errorf("committing %d blocks: %w", blocks, err)
	}
	return info, nil
}
