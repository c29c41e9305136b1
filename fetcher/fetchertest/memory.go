package fetchertest

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/tidwall/btree"

	"github.com/capelin-io/capelin/fetcher"
)

// Memory is a backend that forgets all when nobody has it any more. The zero value is ready for use.
type Memory struct {
	// Checksums: a version is the MD5 of an object's bytes, as an ETag of S3 is, and comes back with them.
	Checksums bool

	mu      sync.RWMutex
	objects btree.Map[string, object]
	seq     int64
}

type object struct {
	info fetcher.Info
	data []byte // never changed
}

var _ fetcher.Backend = (*Memory)(nil)

func (m *Memory) Name() string { return "memory:" }

func (m *Memory) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true, Generations: !m.Checksums}
}

func (m *Memory) Check(ctx context.Context) error { return ctx.Err() }

func (m *Memory) Close() error { return nil }

func (m *Memory) get(ctx context.Context, op, key string) (object, error) {
	if err := errors.Join(fetcher.CheckKey(key), ctx.Err()); err != nil {
		return object{}, fmt.Errorf("memory: %s %s: %w", op, key, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects.Get(key)
	if !ok {
		return object{}, fmt.Errorf("memory: %s %s: %w", op, key, errdefs.ErrNotFound)
	}
	return o, nil
}

func (m *Memory) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	o, err := m.get(ctx, "looking for", key)
	return o.info, err
}

func (m *Memory) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	o, err := m.get(ctx, "reading", key)
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	if off < 0 || off > o.info.Size {
		return nil, fetcher.Info{}, fmt.Errorf("memory: reading %s from %d of %d bytes: %w", key, off, o.info.Size, errdefs.ErrOutOfRange)
	}
	data := o.data[off:]
	if n >= 0 && n < int64(len(data)) {
		data = data[:n]
	}
	return &through{ReadCloser: io.NopCloser(bytes.NewReader(data)), before: func(p []byte) ([]byte, error) {
		return p, ctx.Err()
	}}, o.info, nil
}

func (m *Memory) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	if err := errors.Join(fetcher.CheckKey(key), ctx.Err()); err != nil {
		return fetcher.Info{}, fmt.Errorf("memory: writing %s: %w", key, err)
	}
	var buf bytes.Buffer
	for chunk := make([]byte, 64<<10); ; {
		n, err := r.Read(chunk)
		buf.Write(chunk[:n])
		if err == io.EOF {
			break
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fetcher.Info{}, fmt.Errorf("memory: writing %s: %w", key, err)
		}
	}
	if size >= 0 && int64(buf.Len()) != size {
		return fetcher.Info{}, fmt.Errorf("memory: writing %s: %d bytes instead of %d: %w", key, buf.Len(), size, errdefs.ErrInvalidArgument)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.put(key, buf.Bytes()), nil
}

func (m *Memory) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if err := errors.Join(fetcher.CheckKey(key), ctx.Err()); err != nil {
		return fetcher.Info{}, fmt.Errorf("memory: writing %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, _ := m.objects.Get(key)
	if have := o.info.Version; have != version {
		return fetcher.Info{}, fmt.Errorf("memory: writing %s: its version is %q, not %q: %w", key, have, version, errdefs.ErrConflict)
	}
	return m.put(key, bytes.Clone(data)), nil
}

func (m *Memory) put(key string, data []byte) fetcher.Info {
	m.seq++
	info := fetcher.Info{Key: key, Size: int64(len(data)), Version: strconv.FormatInt(m.seq, 10), Modified: time.Now()}
	if m.Checksums {
		info.Version = fmt.Sprintf("%x", md5.Sum(data))
	}
	m.objects.Set(key, object{info, data})
	return info
}

func (m *Memory) List(ctx context.Context, prefix, after string, limit int) (page []fetcher.Info, more bool, err error) {
	if prefix != "" {
		dir, ok := strings.CutSuffix(prefix, "/")
		if !ok || fetcher.CheckKey(dir) != nil {
			err = errdefs.ErrInvalidArgument
		}
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, false, fmt.Errorf("memory: listing %q: %w", prefix, err)
	}
	if limit < 1 || limit > 1000 {
		limit = 1000
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.objects.Ascend(max(prefix, after), func(key string, o object) bool {
		switch {
		case key == after:
			return true
		case !strings.HasPrefix(key, prefix):
			return false
		case len(page) == limit:
			more = true
			return false
		}
		page = append(page, o.info)
		return true
	})
	return page, more, nil
}

func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := errors.Join(fetcher.CheckKey(key), ctx.Err()); err != nil {
		return fmt.Errorf("memory: deleting %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects.Delete(key)
	return nil
}
