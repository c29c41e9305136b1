package indexdtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
)

// Several are three indexes over one storage, of which each is killed in turn while many write one tag.
type Several struct {
	// Start starts the index of that number, again after it was killed. kill kills it with SIGKILL, and waits for its end.
	Start func(t *testing.T, i int) (addr string, kill func())
	// Repository is where the tag is.
	Repository string
	// Push pushes manifests to it, and returns them. The tag is given to one after the other.
	Push func(ctx context.Context, c *index.Client) ([]ocispec.Descriptor, error)
	// Writers is how many write, and Writes how often all of them do together.
	Writers, Writes int
}

// indexes are its processes.
type indexes struct {
	Several
	t       *testing.T
	proxies []string // addresses that stay when an index is another process

	mu    sync.Mutex
	addrs []string
	kills []func()

	next, failed atomic.Int64
	due          []chan struct{}   // closed when each is to be killed: after a quarter, half and three quarters of the writes
	acked        map[uint64]string // by revision: who wrote it; mu guards it
}

const tag = "one"

// Run is the test: each acknowledged write has a revision that no other has, every index that is asked afterwards has it or a later
// one, and there is no revision that nobody wrote.
func (s Several) Run(t *testing.T) {
	x := &indexes{Several: s, t: t, acked: map[uint64]string{}, addrs: make([]string, 3), kills: make([]func(), 3)}
	for i := range x.addrs {
		x.due = append(x.due, make(chan struct{}))
		x.addrs[i], x.kills[i] = s.Start(t, i)
		x.proxies = append(x.proxies, forward(t, func() string {
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.addrs[i]
		}))
	}
	manifests, err := s.Push(t.Context(), x.client(0))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	var wg sync.WaitGroup
	for w := range s.Writers {
		c, reader := x.client(w), x.client(w+1)
		wg.Go(func() { x.write(fmt.Sprint("writer ", w), c, reader, manifests[w%len(manifests)]) })
	}
	for i := range x.addrs {
		select {
		case <-x.due[i]:
		case <-t.Context().Done():
			t.Fatalf("index %d was never to be killed: %v", i, t.Context().Err())
		}
		x.kills[i]()
		addr, kill := s.Start(t, i)
		x.mu.Lock()
		x.addrs[i], x.kills[i] = addr, kill
		x.mu.Unlock()
	}
	wg.Wait()
	took := time.Since(start)
	last := x.check()
	t.Logf("%d writes by %d writers in %v, 3 kills: revision %d, %d done twice or by nobody who waited, %d heard no answer",
		s.Writes, s.Writers, took.Round(time.Millisecond), last, last-s.Writes, x.failed.Load())
}

// killAt is the write with which an index is to be killed.
func (x *indexes) killAt(i int) int64 { return int64(x.Writes * (i + 1) / 4) }

// client asks all, from one on.
func (x *indexes) client(from int) *index.Client {
	return x.only(x.proxies[from%3], x.proxies[(from+1)%3], x.proxies[(from+2)%3])
}

func (x *indexes) only(addrs ...string) *index.Client {
	x.t.Helper()
	c, err := index.New(index.Config{Indexes: addrs})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(c.Close)
	return c
}

// write writes until all is written, and has another index say what it has.
func (x *indexes) write(who string, c, reader *index.Client, d ocispec.Descriptor) {
	ctx := x.t.Context()
	for n := x.next.Add(1); n <= int64(x.Writes); n = x.next.Add(1) {
		for i := range x.due {
			if n == x.killAt(i) {
				close(x.due[i])
			}
		}
		put, err := c.PutTag(ctx, x.Repository, tag, d)
		for ; err != nil; put, err = c.PutTag(ctx, x.Repository, tag, d) {
			if x.failed.Add(1); ctx.Err() != nil {
				return
			}
		}
		x.mu.Lock()
		if by, twice := x.acked[put.Revision]; twice {
			x.t.Errorf("revision %d was acknowledged twice, by %s before", put.Revision, by)
		}
		x.acked[put.Revision] = who
		x.mu.Unlock()
		got, err := reader.Tag(ctx, x.Repository, tag)
		if err == nil && got.Revision < put.Revision {
			x.t.Errorf("revision %d after %d was acknowledged", got.Revision, put.Revision)
		}
	}
}

// check looks at what all of them have in the end, which it returns.
func (x *indexes) check() (last int) {
	for _, addr := range x.proxies {
		got, err := x.only(addr).Tag(x.t.Context(), x.Repository, tag)
		if err != nil || last != 0 && int(got.Revision) != last {
			x.t.Errorf("%s: %d, %v, another one has %d", addr, got.Revision, err, last)
		}
		last = int(got.Revision)
	}
	if len(x.acked) != x.Writes {
		x.t.Errorf("%d acknowledged", len(x.acked))
	}
	// A write may be done though its answer is lost: the client writes it again, or another index does for it.
	if unacked := last - x.Writes; unacked < 0 || unacked > int(x.failed.Load())+3*x.Writers {
		x.t.Errorf("%d revisions for %d writes, of which %d were repeated", last, x.Writes, x.failed.Load())
	}
	return last
}
