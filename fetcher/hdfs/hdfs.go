package hdfs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// Backend is a directory of a Hadoop file system.
type Backend struct {
	cfg       Config
	namenodes []*namenode
	active    atomic.Int32 // index of the namenode that answered last
	http      *http.Client
	transport *http.Transport
	backoff   time.Duration // the first pause; the others grow
	tries     uint          // how many rounds at most; 0: as many as Retry allows

	// noInodes: the servers do not know files by their inodes.
	noInodes atomic.Bool

	sweep sweeper

	wg      sync.WaitGroup  // what goes on after its caller: tickets being fetched, temporary files being removed
	closing context.Context // it ends with it
	closed  context.CancelFunc
}

var _ fetcher.Backend = (*Backend)(nil)

// Open returns a backend. It asks nobody, but reads the file of certificates.
func Open(cfg Config) (*Backend, error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("hdfs backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	b := &Backend{cfg: cfg.withDefaults(), backoff: 100 * time.Millisecond, sweep: sweeper{mu: make(chan struct{}, 1)}}
	var err error
	if b.transport, err = newTransport(b.cfg); err != nil {
		return nil, fmt.Errorf("hdfs backend: %w", err)
	}
	b.http = &http.Client{
		Transport:     b.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for _, s := range cfg.Namenodes {
		u, err := parseNamenode(s)
		if err != nil {
			return nil, fmt.Errorf("hdfs backend: namenode %q %w: %w", s, err, errdefs.ErrInvalidArgument)
		}
		n := &namenode{url: u}
		if cfg.kerberos() {
			n.token = newToken()
		}
		b.namenodes = append(b.namenodes, n)
	}
	b.closing, b.closed = context.WithCancel(context.Background())
	return b, nil
}

// Close ends what goes on in the background. Readers that are open stay usable.
func (b *Backend) Close() error {
	b.closed()
	b.wg.Wait()
	b.transport.CloseIdleConnections()
	return nil
}

// Name implements fetcher.Backend.
func (b *Backend) Name() string { return "hdfs:" + b.namenodes[0].url.Host + b.cfg.Path }

// Capabilities implements fetcher.Backend: HDFS cannot compare and swap.
func (b *Backend) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true}
}

// Check implements fetcher.Backend: the path is a directory, where whoever asks may do all.
func (b *Backend) Check(ctx context.Context) error {
	err := b.check(ctx)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("there is no %[1]s; make it by \"hdfs dfs -mkdir -p %[1]s\" and give it to %[2]s: %[3]w",
			b.cfg.Path, b.who(), errdefs.ErrFailedPrecondition)
	}
	if errdefs.IsPermissionDenied(err) {
		err = fmt.Errorf("%s needs rwx in %s: %w", b.who(), b.cfg.Path, err)
	}
	if err != nil {
		return fmt.Errorf("%s: checking: %w", b.Name(), err)
	}
	return nil
}

func (b *Backend) check(ctx context.Context) error {
	st, err := b.status(ctx, b.cfg.Path)
	if err != nil {
		return err
	}
	if st.Type != "DIRECTORY" {
		return fmt.Errorf("%s is no directory: %w", b.cfg.Path, errdefs.ErrFailedPrecondition)
	}
	return b.call(ctx, request{method: http.MethodGet, op: "CHECKACCESS", path: b.cfg.Path, query: url.Values{"fsaction": {"rwx"}}}, nil)
}

// who is the user, for messages.
func (b *Backend) who() string {
	switch {
	case b.cfg.Principal != "":
		return b.cfg.Principal
	case b.cfg.CCache != "":
		return "the owner of " + b.cfg.CCache
	case b.cfg.User != "":
		return b.cfg.User
	}
	return "dr.who (there is no user in the configuration)"
}

// fail names the backend, the operation and the key.
func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.Name(), op, key, err)
}

// locate returns the path of a key's file.
func (b *Backend) locate(ctx context.Context, key string) (string, error) {
	p, err := pathOf(key)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return "", err
	}
	return b.cfg.Path + "/" + p, nil
}

// Stat implements fetcher.Backend.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	path, err := b.locate(ctx, key)
	if err == nil {
		var st fileStatus
		if st, err = b.file(ctx, path); err == nil {
			return infoOf(key, st), nil
		}
	}
	return fetcher.Info{}, b.fail("looking for", key, err)
}

// file is status of a file; what is none is errdefs.ErrNotFound.
func (b *Backend) file(ctx context.Context, path string) (fileStatus, error) {
	st, err := b.status(ctx, path)
	if err == nil && !st.isFile() {
		err = fmt.Errorf("%s is no file: %w", path, errdefs.ErrNotFound)
	}
	return st, err
}

func infoOf(key string, st fileStatus) fetcher.Info {
	return fetcher.Info{Key: key, Size: st.Length, Modified: time.UnixMilli(st.ModificationTime)}
}

// WriteIf implements fetcher.Backend: it is refused.
func (b *Backend) WriteIf(_ context.Context, key string, _ []byte, _ string) (fetcher.Info, error) {
	return fetcher.Info{}, b.fail("writing", key, fmt.Errorf("HDFS does not compare and swap: %w", errdefs.ErrNotImplemented))
}

// Delete implements fetcher.Backend. Directories that have become empty stay.
func (b *Backend) Delete(ctx context.Context, key string) error {
	path, err := b.locate(ctx, key)
	if err == nil {
		_, err = b.remove(ctx, path, nil)
	}
	switch {
	case err == nil, errdefs.IsNotFound(err), inTheWay(err):
		return nil // a part of a key is a directory, or an object's key goes on
	}
	return b.fail("deleting", key, err)
}

// remove removes a file, and reports whether it was there.
func (b *Backend) remove(ctx context.Context, path string, doubt *bool) (bool, error) {
	var a boolean
	r := request{method: http.MethodDelete, op: "DELETE", path: path, query: url.Values{"recursive": {"false"}}, doubt: doubt}
	err := b.call(ctx, r, &a)
	return a.is(true), err
}
