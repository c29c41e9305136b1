package storages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/hdfs"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// hdfsTest has one cluster for all: it takes a quarter of a minute to start.
type hdfsTest struct {
	*HDFS
	paths atomic.Int32
}

func TestHDFS(t *testing.T) {
	t.Parallel()
	c := &hdfsTest{HDFS: StartHDFS(t, t.TempDir(), nil)}
	t.Run("WebHDFS", func(t *testing.T) {
		fetchertest.Run(t, func(t *testing.T) fetcher.Backend { return c.open(t, hdfs.Config{Namenodes: c.urls()}) },
			fetchertest.Options{Again: c.again, Without: []string{"ListLong"}}) // a minute; pages are of five entries here
	})
	t.Run("HttpFS", c.testHTTPFS)
	t.Run("Faults", c.testFaults)
	t.Run("Requests", c.testRequests)
	t.Run("Synced", c.testSynced)
	t.Run("Large", c.testLarge)
	t.Run("ThereAndBack", c.testThereAndBack)
	t.Run("DatanodeKilled", c.testDatanodeKilled)
	t.Run("NamenodeKilled", c.testNamenodeKilled)
}

// urls are the namenodes', of which the first is in standby.
func (c *hdfsTest) urls() []string { return []string{c.Namenodes[1].URL(), c.Namenodes[0].URL()} }

// open returns a backend in a directory of its own.
func (c *hdfsTest) open(t *testing.T, cfg hdfs.Config) *hdfs.Backend {
	t.Helper()
	cfg.Path, cfg.User, cfg.BlockSize = fmt.Sprintf("%s/%d", c.Path, c.paths.Add(1)), c.User, 1<<20
	if cfg.Retry == 0 { // on a busy machine a namenode takes its time
		cfg.Retry = config.Duration(startLimit)
	}
	c.Ask(http.MethodPut, cfg.Path, "op=MKDIRS")
	c.Ask(http.MethodPut, cfg.Path, "op=SETOWNER&owner="+c.User)
	b, err := hdfs.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *hdfsTest) again(t *testing.T, b fetcher.Backend) fetcher.Backend {
	t.Helper()
	_, path, _ := strings.Cut(b.Name(), "/")
	other, err := hdfs.Open(hdfs.Config{Namenodes: c.urls(), Path: "/" + path, User: c.User})
	if err != nil {
		t.Fatal(err)
	}
	return other
}

func (c *hdfsTest) testHTTPFS(t *testing.T) {
	open := func(t *testing.T) *hdfs.Backend { return c.open(t, hdfs.Config{Namenodes: []string{c.HTTPFS.URL()}}) }
	fetchertest.Run(t, func(t *testing.T) fetcher.Backend { return open(t) }, fetchertest.Options{Without: []string{"Overwrite", "ListLong"}})

	// It cannot replace in one step. What is the same needs not be replaced.
	b := open(t)
	defer b.Close()
	const key = "blobs/a_b%+é"
	for _, tt := range []struct {
		data string
		ok   bool
	}{{"as it was", true}, {"as it was", true}, {"as it is!", false}, {"longer than it was", false}} {
		_, err := b.Write(t.Context(), key, int64(len(tt.data)), strings.NewReader(tt.data))
		if tt.ok && err != nil || !tt.ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("writing %q: %v", tt.data, err)
		}
	}
	holds(t, b, key, "as it was")
	// A directory by an object's name swallows no file.
	if _, err := b.Write(t.Context(), "blobs", 1, strings.NewReader("x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("writing to a directory: %v", err)
	}
	if page, _, err := b.List(t.Context(), "", "", 0); err != nil || len(page) != 1 || page[0].Key != key {
		t.Errorf("listed %v, %v", page, err)
	}
	_, path, _ := strings.Cut(b.Name(), "/")
	if left := c.Ask(http.MethodGet, "/"+path+"/_tmp", "op=LISTSTATUS"); strings.Contains(left, "FILE") {
		t.Errorf("left behind: %s", left)
	}
}

func (c *hdfsTest) testFaults(t *testing.T) {
	exception := func(status int, name string) fetchertest.Fault {
		return fetchertest.Fault{Status: status, Header: http.Header{"Content-Type": {"application/json"}},
			Body: fmt.Sprintf(`{"RemoteException":{"exception":%q,"javaClassName":"x.%s","message":"of the test"}}`, name, name)}
	}
	urls := c.urls()
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		p := fetchertest.NewProxy(t, urls[0])
		p.Add(urls[1])
		p.Add(c.Datanode.URL())
		return c.open(t, hdfs.Config{Namenodes: []string{p.URL(urls[1]), p.URL(urls[0])}}), p
	}, fetchertest.FaultOptions{
		// What is away for good costs Retry each time, which is long here: a fake of fetcher/hdfs has that.
		Options: fetchertest.Options{Large: 2<<20 + 17, Without: []string{"Away"}},
		Once: map[string]fetchertest.Fault{
			"standby": exception(http.StatusForbidden, "StandbyException"), "starting": exception(http.StatusForbidden, "RetriableException"),
		},
		Denied: exception(http.StatusForbidden, "AccessControlException"),
	})
}

// testRequests counts what a push and a cold read cost, once the active namenode is known.
func (c *hdfsTest) testRequests(t *testing.T) {
	urls := c.urls()
	p := fetchertest.NewProxy(t, urls[0])
	p.Add(urls[1])
	p.Add(c.Datanode.URL())
	b := c.open(t, hdfs.Config{Namenodes: []string{p.URL(urls[0]), p.URL(urls[1])}})
	defer b.Close()
	write := func(key string) {
		if _, err := b.Write(t.Context(), key, 5, strings.NewReader("bytes")); err != nil {
			t.Fatal(err)
		}
	}
	write("blobs/1") // and finds the active one, makes a directory, sweeps
	for _, tt := range []struct {
		what string
		do   func()
		want string
	}{
		{"Write", func() { write("blobs/2") }, "PUT CREATE, PUT CREATE, GET GETFILESTATUS, PUT RENAME"},
		{"Write to a new directory", func() { write("new/2") },
			"PUT CREATE, PUT CREATE, GET GETFILESTATUS, PUT RENAME, GET GETFILESTATUS, PUT MKDIRS, PUT RENAME"},
		{"Open", func() { holds(t, b, "blobs/2", "bytes") }, "GET GETFILESTATUS, GET OPEN, GET OPEN"},
		{"Delete", func() { _ = b.Delete(t.Context(), "blobs/2") }, "DELETE DELETE"},
		{"Check", func() { _ = b.Check(t.Context()) }, "GET GETFILESTATUS, GET CHECKACCESS"},
	} {
		p.Requests()
		tt.do()
		var got []string
		for _, r := range p.Requests() {
			_, op, _ := strings.Cut("&"+r.Query, "&op=")
			op, _, _ = strings.Cut(op, "&")
			got = append(got, r.Method+" "+op)
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s: %s; want %s", tt.what, s, tt.want)
		}
	}
}

// testSynced: the datanode syncs each block.
func (c *hdfsTest) testSynced(t *testing.T) {
	syncs := func() float64 {
		bean, err := Metrics(c.Datanode, "Hadoop:service=DataNode,name=DataNodeActivity-*")
		if err != nil {
			t.Fatal(err)
		}
		return bean["FsyncCount"].(float64)
	}
	b := c.open(t, hdfs.Config{Namenodes: c.urls()})
	defer b.Close()
	before := syncs()
	if _, err := b.Write(t.Context(), "x", 2<<20+1, io.LimitReader(generated(), 2<<20+1)); err != nil {
		t.Fatal(err)
	}
	poll(t, "three blocks are synced", func() error { // the numbers are some seconds old
		if n := syncs() - before; n < 3 {
			return fmt.Errorf("%v syncs", n)
		}
		return nil
	})
}

// testLarge has a large object there and back.
func (c *hdfsTest) testLarge(t *testing.T) {
	size := int64(200e6)
	if *full {
		size = 5e9
	}
	b := c.open(t, hdfs.Config{Namenodes: c.urls()})
	defer b.Close()
	heap := newHeap()
	sum := sha256.New()
	if _, err := b.Write(t.Context(), "large", size, io.TeeReader(io.LimitReader(generated(), size), io.MultiWriter(sum, heap))); err != nil {
		t.Fatal(err)
	}
	r, info, err := b.Open(t.Context(), "large", 0, -1)
	if err != nil || info.Size != size {
		t.Fatal(info, err)
	}
	defer r.Close()
	back := sha256.New()
	if n, err := io.Copy(io.MultiWriter(back, heap), r); err != nil || n != size || !equal(sum, back) {
		t.Errorf("%d bytes came back, the same %v, %v", n, equal(sum, back), err)
	}
	t.Logf("at most %d KiB of heap above idle", heap.most>>10)
	if heap.most > 64<<20 {
		t.Errorf("it took %d bytes of heap", heap.most)
	}
}

func (c *hdfsTest) testThereAndBack(t *testing.T) {
	b := c.open(t, hdfs.Config{Namenodes: c.urls(), Retry: config.Duration(time.Second)})
	defer b.Close()
	thereAndBack(t, b, func() {
		c.Datanode.Kill()
		c.Datanode.Restart()
	})
}

func equal(a, b hash.Hash) bool { return bytes.Equal(a.Sum(nil), b.Sum(nil)) }

// testDatanodeKilled: a write that its datanode does not survive fails, and what was there stays.
func (c *hdfsTest) testDatanodeKilled(t *testing.T) {
	b := c.open(t, hdfs.Config{Namenodes: c.urls(), Retry: config.Duration(time.Second)})
	defer b.Close()
	write(t, b, "old", "what was there")
	for _, key := range []string{"old", "new"} {
		const size = 20 << 20
		_, err := b.Write(t.Context(), key, size, &midway{r: io.LimitReader(generated(), size), left: 10 << 20, then: c.Datanode.Kill})
		if !errdefs.IsUnavailable(err) {
			t.Errorf("writing %s: %v", key, err)
		}
		c.Datanode.Restart()
		poll(t, "the datanode is back", func() error {
			r, _, err := b.Open(t.Context(), "old", 0, -1)
			if err != nil {
				return err
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || string(got) != "what was there" {
				return fmt.Errorf("%q, %w", got, err)
			}
			return nil
		})
		if _, err := b.Stat(t.Context(), "new"); !errdefs.IsNotFound(err) {
			t.Errorf("after writing %s, new is there: %v", key, err)
		}
	}
	poll(t, "it can be written to", func() error {
		_, err := b.Write(t.Context(), "new", 1, strings.NewReader("x"))
		return err
	})
}

// testNamenodeKilled: the other namenode takes over, and nothing is half there.
func (c *hdfsTest) testNamenodeKilled(t *testing.T) {
	b := c.open(t, hdfs.Config{Namenodes: c.urls()})
	defer b.Close()
	write(t, b, "old", "what was there")
	const size = 5 << 20
	_, err := b.Write(t.Context(), "new", size, &midway{r: io.LimitReader(generated(), size), left: 3 << 20, then: func() {
		c.Namenodes[0].Kill()
		c.Activate(1)
	}})
	switch info, serr := b.Stat(t.Context(), "new"); {
	case err == nil && serr == nil && info.Size == size:
	case errdefs.IsUnavailable(err) && errdefs.IsNotFound(serr):
		t.Logf("it was not written: %v", err)
	default:
		t.Errorf("written: %v; then there is %+v, %v", err, info, serr)
	}
	holds(t, b, "old", "what was there")
	write(t, b, "old", "what is there now")
	c.Namenodes[0].Restart() // in standby
	// No request of this one is lost between the two.
	c.Standby(1)
	done := make(chan error, 1)
	go func() {
		_, err := b.Write(context.WithoutCancel(t.Context()), "between", 1, strings.NewReader("x"))
		done <- err
	}()
	c.Activate(0)
	if err := <-done; err != nil {
		t.Errorf("written while no namenode is active: %v", err)
	}
	holds(t, b, "old", "what is there now")
}

func TestHDFSKerberos(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := StartKerberos(t, dir)
	c := &hdfsTest{HDFS: StartHDFS(t, dir, k)}
	var urls []string
	for _, u := range c.urls() {
		urls = append(urls, strings.Replace(u, "127.0.0.1", "localhost", 1)) // tickets are for HTTP/localhost
	}
	p := fetchertest.NewProxy(t, urls[0])
	p.Add(urls[1])
	base := hdfs.Config{Namenodes: urls, Path: c.Path, Krb5Conf: k.Conf}
	keytab, ccache, nobody, broken := base, base, base, base
	keytab.Principal, keytab.Keytab = k.Principal, k.Keytab
	named := func(url string) string { return strings.Replace(p.URL(url), "127.0.0.1", "localhost", 1) }
	keytab.Namenodes = []string{named(urls[0]), named(urls[1])}
	ccache.CCache = k.CCache
	nobody.User = "capelin"
	broken.Principal, broken.Keytab = "nobody@"+realm, k.Keytab
	for name, cfg := range map[string]hdfs.Config{"keytab": keytab, "ccache": ccache} {
		b, err := hdfs.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		poll(t, "it can be written to", func() error {
			_, err := b.Write(t.Context(), "first", 1, strings.NewReader("x"))
			if err != nil && !errdefs.IsUnavailable(err) {
				t.Fatal(err)
			}
			return err
		})
		for i := range 3 {
			key := fmt.Sprintf("%s/%d", name, i)
			write(t, b, key, key)
			holds(t, b, key, key)
		}
		if page, _, err := b.List(t.Context(), name+"/", "", 0); err != nil || len(page) != 3 {
			t.Errorf("%s: listed %v, %v", name, page, err)
		}
		if err := b.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// One token for all, and one ticket for the token.
	tokens := 0
	for _, r := range p.Requests() {
		switch {
		case r.Header.Get("Authorization") != "":
			if tokens++; !strings.Contains(r.Query, "GETDELEGATIONTOKEN") {
				t.Errorf("a ticket was sent for %s", r.Path)
			}
		case !strings.Contains(r.Query, "delegation="):
			t.Errorf("%s %s without a token", r.Method, r.Path)
		}
	}
	if tokens != 2 { // the first one in vain, at the namenode in standby
		t.Errorf("%d tokens", tokens)
	}
	for name, cfg := range map[string]hdfs.Config{"nobody": nobody, "another's keytab": broken} {
		b, err := hdfs.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, err := b.Stat(t.Context(), "keytab/0"); !errdefs.IsUnauthorized(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func write(t *testing.T, b fetcher.Backend, key, data string) {
	t.Helper()
	if _, err := b.Write(t.Context(), key, int64(len(data)), strings.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, b fetcher.Backend, key, want string) {
	t.Helper()
	r, info, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != want || info.Size != int64(len(want)) {
		t.Errorf("%s: %d bytes, %q, %v", key, info.Size, got, err)
	}
}

// poll waits until f has no error. Its limit is for what never happens.
func poll(t *testing.T, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(startLimit); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// midway does something after some bytes.
type midway struct {
	r    io.Reader
	left int
	then func()
}

func (m *midway) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if m.left -= n; m.left <= 0 && m.then != nil {
		then := m.then
		m.then = nil
		then()
	}
	return n, err
}

// generated is an endless stream, always the same.
func generated() io.Reader { return rand.NewChaCha8([32]byte{1}) }

// heap is a writer that looks at the heap now and then.
type heap struct {
	idle, most, next, n uint64
}

func newHeap() *heap {
	runtime.GC()
	return &heap{idle: alloc()}
}

func alloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func (h *heap) Write(p []byte) (int, error) {
	if h.n += uint64(len(p)); h.n >= h.next {
		h.next += 4 << 20
		if a := alloc(); a > h.idle {
			h.most = max(h.most, a-h.idle)
		}
	}
	return len(p), nil
}
