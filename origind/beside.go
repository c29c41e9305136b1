package origind

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/origind/record"
)

// recordBeside is the record that lies in a backend beside the objects of a digest, under recordKey: format 2, or what an earlier
// release wrote there, format 1. Objects of one digest under several keys share it.
//
// It is changed by compare-and-swap, so that two members that change it at once lose nothing. In a backend that cannot
// do that, the later of two writes replaces the other's: namespaces that a push named may be lost with it, until that
// member looks again.
//
// A record that cannot be read is taken for one that says that the blob is in namespaces that are not named (Home.More), since it was
// last written. So nothing waits for it, and the object stays until it is deleted from all namespaces. One of a later
// format is not touched.
type recordBeside struct {
	b      fetcher.Backend
	digest digest.Digest
	at     record.Place
}

// besideWas is what was read.
type besideWas struct {
	record  *record.Record // nil: none
	version string         // to replace it; "": none
	as      []byte         // its text
}

const (
	// besideTries is how often a change is tried again that others' changes have overtaken.
	besideTries = 10
	// besideFormat is the latest format that is known.
	besideFormat = 2
	// besideBy is who has pushed what is known from the record of an earlier release, or a damaged one.
	besideBy = "unknown"
)

// created has the record know what rec does. There is probably none yet.
func (s *recordBeside) created(ctx context.Context, rec *record.Record) (*record.Record, error) {
	if s.b.Capabilities().CompareAndSwap {
		if err := s.put(ctx, rec, besideWas{}); !errdefs.IsConflict(err) {
			return rec, err
		}
	}
	return s.merged(ctx, rec)
}

// merged has the record know what rec does, and returns it.
func (s *recordBeside) merged(ctx context.Context, rec *record.Record) (*record.Record, error) {
	return s.change(ctx, rec, func(was *record.Record) *record.Record { return record.Merge(was, rec) })
}

// removed has the record, if there is one, know what rec does, but for homes where the blob lives no more: they may be of a deletion that
// knows no more of them. It returns it, or nil.
func (s *recordBeside) removed(ctx context.Context, rec *record.Record) (*record.Record, error) {
	return s.change(ctx, rec, func(was *record.Record) *record.Record {
		if was == nil && !livesAt(rec, s.at.Key) {
			return nil
		}
		all := record.Merge(was, rec)
		c := &record.Record{Digest: all.Digest, Size: all.Size, Removed: all.Removed}
		for i := range all.Homes {
			if h := &all.Homes[i]; all.Lives(h) {
				c.Homes = append(c.Homes, *h)
			}
		}
		return c
	})
}

// change replaces the record by what next makes of it, nil: nothing, and returns that.
func (s *recordBeside) change(
	ctx context.Context, rec *record.Record, next func(was *record.Record) *record.Record,
) (*record.Record, error) {
	for range besideTries {
		was, err := s.read(ctx, rec)
		if err != nil {
			return nil, err
		}
		r := next(was.record)
		if r == nil {
			return nil, nil
		}
		if err := s.put(ctx, r, was); !errdefs.IsConflict(err) {
			return r, err
		}
	}
	return nil, fmt.Errorf("%s was changed by others %d times meanwhile: %w", recordKey(s.digest), besideTries, errdefs.ErrUnavailable)
}

// put makes r the record, if it differs from what was read. errdefs.ErrConflict if somebody has changed that since.
func (s *recordBeside) put(ctx context.Context, r *record.Record, was besideWas) error {
	text, err := r.JSON()
	if err != nil || bytes.Equal(text, was.as) {
		return err
	}
	key := recordKey(s.digest)
	_, err = small(ctx, func(ctx context.Context) (fetcher.Info, error) {
		if s.b.Capabilities().CompareAndSwap {
			return s.b.WriteIf(ctx, key, text, was.version)
		}
		return s.b.Write(ctx, key, int64(len(text)), bytes.NewReader(text))
	})
	return err
}

// read reads the record. rec is what is known here, which a record of an earlier release or a damaged one does not say.
func (s *recordBeside) read(ctx context.Context, rec *record.Record) (besideWas, error) {
	key := recordKey(s.digest)
	var info fetcher.Info
	text, err := small(ctx, func(ctx context.Context) ([]byte, error) {
		rc, i, err := s.b.Open(ctx, key, 0, record.MaxRecord+1)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		info = i
		return io.ReadAll(io.LimitReader(rc, record.MaxRecord+1))
	})
	if errdefs.IsNotFound(err) {
		return besideWas{}, nil
	}
	if err != nil {
		return besideWas{}, err
	}
	r, err := s.parse(text, rec)
	if err == nil && rec.Size > 0 && r.Size > 0 && r.Size != rec.Size {
		err = fmt.Errorf("it says that the blob has %d bytes, and it has %d: %w", r.Size, rec.Size, errdefs.ErrDataLoss)
	}
	if err != nil && !errdefs.IsFailedPrecondition(err) {
		log.G(ctx).WithError(err).WithFields(log.Fields{"backend": s.at.Backend, "key": key}).
			Error("a record beside an object is damaged; its blob stays until it is deleted from all namespaces")
		r, err = s.damaged(ctx, rec, info.Modified)
	}
	if err != nil {
		return besideWas{}, fmt.Errorf("%s beside the object: %w", key, err)
	}
	return besideWas{r, info.Version, text}, nil
}

func (s *recordBeside) parse(text []byte, rec *record.Record) (*record.Record, error) {
	var head struct {
		Format *int `json:"format"`
	}
	if err := json.Unmarshal(text, &head); err == nil {
		switch {
		case head.Format == nil:
			by := besideBy
			if h := rec.Home(s.at); h != nil && h.By != "" {
				by = h.By // so that it says nothing new to who has read the same record on its disk
			}
			return record.FromV1(text, s.digest, by)
		case *head.Format > besideFormat:
			return nil, fmt.Errorf("its format is %d, only %d is known: all origins have to be of the release that wrote it: %w",
				*head.Format, besideFormat, errdefs.ErrFailedPrecondition)
		}
	}
	return record.Parse(text, s.digest)
}

// damaged is what is taken for a record that cannot be read, which was last written at a time.
func (s *recordBeside) damaged(ctx context.Context, rec *record.Record, written time.Time) (*record.Record, error) {
	r := &record.Record{Digest: s.digest, Size: rec.Size}
	if r.Size == 0 { // a home says it
		info, err := small(ctx, func(ctx context.Context) (fetcher.Info, error) { return s.b.Stat(ctx, s.at.Key) })
		if errdefs.IsNotFound(err) {
			return r, nil
		}
		if err == nil && info.Size < 1 {
			err = fmt.Errorf("the backend does not say the size of %s, either: %w", s.at.Key, errdefs.ErrDataLoss)
		}
		if err != nil {
			return nil, err
		}
		r.Size = info.Size
	}
	since := min(max(record.V1, record.At(written)), record.MaxStamp)
	r.Homes = []record.Home{{Place: s.at, By: besideBy, Since: since, More: since}}
	return r, nil
}

// inBackend returns r without homes in backends of other names: somebody else has the same storage by another name, and nobody
// here could do anything about them.
func inBackend(r *record.Record, name string) *record.Record {
	if r == nil {
		return nil
	}
	c := *r
	c.Homes = nil
	for _, h := range r.Homes {
		if h.Backend == name {
			c.Homes = append(c.Homes, h)
		}
	}
	return &c
}
