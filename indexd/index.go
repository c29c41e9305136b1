package indexd

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/indexd/replicate"
)

// Origin is what an Index asks of the origins; control/origin has a client. An error
// other than errdefs.ErrNotFound means that they cannot say.
type Origin interface {
	Stat(ctx context.Context, ref origin.Ref) (origin.Info, error)
	Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error)
}

// parallel is how many objects or blobs one operation looks at at once.
const parallel = 16

// maxMemory is how many bytes of objects and manifests are read at once.
const maxMemory = 128 << 20

// Index is the index over one storage. It has the methods of index.Client.
type Index struct {
	backend fetcher.Backend
	origins Origin
	cluster string
	now     func() time.Time
	newID   func() string // of a write of a tag

	// tags is what versions of tag objects say, by key, for listings. A version's
	// content never changes, and listings have the versions.
	tags *lru.Cache[string, tagState]
	// locks make this process write a tag once at a time; other processes are
	// seen by the storage's compare-and-swap.
	locks [64]chan struct{}

	// memory bounds the bytes of objects and manifests that are read at once.
	memory    *semaphore.Weighted
	conflicts atomic.Uint64 // compare-and-swaps lost

	outbox *replicate.Outbox
}

// New returns the index that is in a storage. cluster is written into tags. The
// storage must be able to write, list, delete, and compare and swap
// (errdefs.ErrFailedPrecondition otherwise).
func New(backend fetcher.Backend, origins Origin, cluster string) (*Index, error) {
	caps := backend.Capabilities()
	var lacks []string
	for _, c := range []struct {
		name string
		has  bool
	}{
		{"compare and swap", caps.CompareAndSwap}, {"write", caps.Write},
		{"list", caps.List}, {"delete", caps.Delete},
	} {
		if !c.has {
			lacks = append(lacks, c.name)
		}
	}
	if len(lacks) > 0 {
		return nil, fmt.Errorf("storage %s cannot keep an index: it cannot %s; choose one that can, such as file: %w",
			backend.Name(), strings.Join(lacks, ", "), errdefs.ErrFailedPrecondition)
	}
	cache, err := lru.New[string, tagState](1 << 16) // about 16 MiB
	if err != nil {
		return nil, err
	}
	x := &Index{
		backend: backend, origins: origins, cluster: cluster, now: time.Now, newID: rand.Text,
		tags: cache, memory: semaphore.NewWeighted(maxMemory), outbox: replicate.NewOutbox(backend),
	}
	for i := range x.locks {
		x.locks[i] = make(chan struct{}, 1)
	}
	return x, nil
}

// Repositories lists the repositories that have, or had, a manifest: those after the
// string after in lexical order, at most limit (1..1000, otherwise 1000).
func (x *Index) Repositories(ctx context.Context, after string, limit int) (names []string, more bool, err error) {
	if err := checkAfter(after, "/"); err != nil {
		return nil, false, err
	}
	if after != "" {
		after = catalogPrefix + catalogPath(after)
	}
	page, more, err := x.list(ctx, catalogPrefix, after, index.Limit(limit))
	if err != nil {
		return nil, false, err
	}
	names = make([]string, len(page))
	for i, info := range page {
		names[i] = catalogName(info.Key)
		if err := index.CheckRepository(names[i]); err != nil {
			return nil, false, fmt.Errorf("index storage %s: unknown object %q: %w", x.backend.Name(), info.Key, errdefs.ErrDataLoss)
		}
	}
	return names, more, nil
}

// checkAfter refuses what names are not compared with.
func checkAfter(after, extra string) error {
	bad := strings.ContainsFunc(after, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-"+extra, r))
	})
	if bad || len(after) > index.MaxRepository {
		return fmt.Errorf("%.300q is no name to list from: %w", after, errdefs.ErrInvalidArgument)
	}
	return nil
}

// addRepository puts a repository into the catalog.
func (x *Index) addRepository(ctx context.Context, repo string) error {
	key := catalogPrefix + catalogPath(repo)
	if there, err := x.exists(ctx, key); there || err != nil {
		return err
	}
	if err := x.writeIf(ctx, key, &catalogObject{formatVersion, repo}, ""); err != nil && !errdefs.IsConflict(err) {
		return err
	}
	return nil
}

// checkKnown is errdefs.ErrNotFound for a repository that is not in the catalog.
func (x *Index) checkKnown(ctx context.Context, repo string) error {
	there, err := x.exists(ctx, catalogPrefix+catalogPath(repo))
	if err == nil && !there {
		err = fmt.Errorf("repository %s: %w", repo, errdefs.ErrNotFound)
	}
	return err
}
