package gcs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/storage/v1"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/parts"
)

const (
	// nonceKey is the metadata by which a write finds out whether an object is its own.
	nonceKey = "capelin-write"
	// maxReplace is how often a write tries to replace what others replace meanwhile.
	maxReplace = 20

	mediaType = "application/octet-stream"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is a CRC32C as the storage writes it.
func checksum(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// writing is an object that is being written.
type writing struct {
	b     *Backend
	name  string
	nonce string // in its metadata
	sum   uint32 // CRC32C of what was sent
}

func (b *Backend) writing(ctx context.Context, key string) (*writing, error) {
	name, err := b.object(key)
	if err == nil {
		err = ctx.Err()
	}
	return &writing{b: b, name: name, nonce: rand.Text()}, err
}

// Write implements fetcher.Backend. What fits into a chunk is sent at once, under the condition that nobody
// else writes meanwhile, so that a repeated request never undoes what came after it; what is larger, in a session.
func (b *Backend) Write(ctx context.Context, key string, size int64, r io.Reader) (info fetcher.Info, err error) {
	w, err := b.writing(ctx, key)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	var s *session
	var o *storage.Object
	options := parts.Options{Size: b.chunk, Parallel: 1, Budget: b.budget}
	_, err = parts.Send(ctx, r, size, options, func(ctx context.Context, p parts.Part) (err error) {
		w.sum = crc32.Update(w.sum, castagnoli, p.Data)
		switch {
		case p.Number == 0 && p.Last:
			o, err = w.replace(ctx, p.Data)
			return err
		case p.Number == 0:
			if s, err = w.begin(ctx); err != nil {
				return err
			}
		}
		o, err = s.send(ctx, p)
		return err
	})
	if err == nil {
		info, err = infoOf(key, o)
	}
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	return info, nil
}

// WriteIf implements fetcher.Backend, by the generation.
func (b *Backend) WriteIf(ctx context.Context, key string, data []byte, version string) (info fetcher.Info, err error) {
	w, err := b.writing(ctx, key)
	generation := int64(0)
	if err == nil && version != "" {
		if generation, err = strconv.ParseInt(version, 10, 64); err != nil || generation <= 0 {
			err = fmt.Errorf("version %.40q is none of this storage's: %w", version, errdefs.ErrConflict)
		}
	}
	if err == nil {
		w.sum = crc32.Checksum(data, castagnoli)
		var o *storage.Object
		if o, err = w.put(ctx, data, generation); err == nil {
			info, err = infoOf(key, o)
		}
	}
	if err != nil {
		return fetcher.Info{}, b.fail("replacing", key, err)
	}
	return info, nil
}

// Delete implements fetcher.Backend: of the generation that is there now, so that a repeated request never
// removes what was written after it.
func (b *Backend) Delete(ctx context.Context, key string) error {
	name, err := b.object(key)
	var o *storage.Object
	if err == nil {
		o, err = b.get(ctx, name)
	}
	if err == nil {
		err = b.remove(ctx, name, o.Generation)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return b.fail("deleting", key, err)
	}
	return nil
}

// remove removes a generation. It is no error if that is not there any more.
func (b *Backend) remove(ctx context.Context, name string, generation int64) error {
	err := b.ask(ctx, func(s *api) error {
		return s.Objects.Delete(b.cfg.Bucket, name).IfGenerationMatch(generation).Context(ctx).Do()
	})
	if code := statusOf(err); code == http.StatusNotFound || code == http.StatusPreconditionFailed {
		return nil
	}
	return err
}

// replace writes over whatever is there.
func (w *writing) replace(ctx context.Context, data []byte) (*storage.Object, error) {
	for range maxReplace {
		generation := int64(0)
		o, err := w.b.get(ctx, w.name)
		switch {
		case err == nil && o.Metadata[nonceKey] == w.nonce:
			return o, nil
		case err == nil:
			generation = o.Generation
		case !errdefs.IsNotFound(err):
			return nil, err
		}
		if o, err = w.put(ctx, data, generation); !errdefs.IsConflict(err) {
			return o, err
		}
	}
	return nil, fmt.Errorf("others replaced it %d times meanwhile: %w", maxReplace, errdefs.ErrUnavailable)
}

var errLost = fmt.Errorf("it has another generation by now: %w", errdefs.ErrConflict)

// put writes data if what is there has that generation; 0: if there is nothing. It is errLost otherwise.
func (w *writing) put(ctx context.Context, data []byte, generation int64) (o *storage.Object, err error) {
	doubt := false // an earlier try may have been carried out
	err = w.b.ask(ctx, func(s *api) (err error) {
		o, err = w.insert(ctx, s, data, generation)
		err = classed(ctx, err)
		lost := statusOf(err) == http.StatusPreconditionFailed
		switch {
		case err == nil:
			return nil
		case lost && !doubt:
			return errLost
		case !lost && !unclear(err):
			return err
		}
		doubt = true
		own, oerr := w.own(ctx)
		switch {
		case oerr == nil && own != nil:
			o = own
			return nil
		case oerr == nil && lost:
			return errLost // unless others have replaced ours meanwhile, of which nothing is left
		}
		return err
	})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil, w.b.noBucket()
	case err != nil:
		return nil, err
	}
	w.b.answered()
	return o, nil
}

// insert sends data once.
func (w *writing) insert(ctx context.Context, s *api, data []byte, generation int64) (*storage.Object, error) {
	meta := w.meta()
	meta.Crc32c = checksum(w.sum)
	return s.Objects.Insert(w.b.cfg.Bucket, meta).IfGenerationMatch(generation).Fields(objectFields).
		Media(bytes.NewReader(data), googleapi.ChunkSize(0)).Context(ctx).Do()
}

func (w *writing) meta() *storage.Object {
	return &storage.Object{Name: w.name, ContentType: mediaType, Metadata: map[string]string{nonceKey: w.nonce}}
}

// own asks once whether what is there is what was written; nil: it is not.
func (w *writing) own(ctx context.Context) (o *storage.Object, err error) {
	err = w.b.once(ctx, func(s *api) (err error) {
		o, err = s.Objects.Get(w.b.cfg.Bucket, w.name).Fields(objectFields).Context(ctx).Do()
		return err
	})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	case o.Metadata[nonceKey] != w.nonce:
		return nil, nil
	}
	return o, nil
}
