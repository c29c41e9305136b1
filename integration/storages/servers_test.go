package storages

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// Server is a `capelin server` that keeps tags and blobs in a bucket, on an address of its own.
type Server struct {
	*Process
	dir string
}

// StartServer starts one, which reaches the bucket at a URL. A push is acknowledged when the bucket has it.
func (v *Versitygw) StartServer(t *testing.T, name, url string) *Server {
	t.Helper()
	bin, s := capelin(t), &Server{dir: t.TempDir()}
	// Its ports are fixed: another test, or somebody else on this machine, has other addresses.
	host := address()
	s.Process = Start(t, Command{Name: name, Dir: s.dir, Host: host, Args: func(port int) []string {
		config := filepath.Join(s.dir, "server.toml")
		toml := fmt.Sprintf("data = %q\naddress = %q\nname = %q\nmetrics = \"\"\norigin.durability = \"backend\"\n", s.dir+"/data", host, name) +
			fmt.Sprintf("gateway.listen = \"%s:%d\"\norigin.cache.free_floor = -1.0\n", host, port) + v.storage(url)
		if err := os.WriteFile(config, []byte(toml), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{bin, "server", "--config", config}
	}})
	return s
}

// answers is what a registry has said to a client of one try.
type answers struct {
	*http.Transport
	mu  sync.Mutex
	all map[string]int // "METHOD what status"
}

func newAnswers() *answers { return &answers{Transport: &http.Transport{}, all: map[string]int{}} }

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.Transport.RoundTrip(r)
	if err == nil {
		a.mu.Lock()
		what := "blob"
		if strings.Contains(r.URL.Path, "/manifests/") {
			what = "manifest"
		}
		a.all[fmt.Sprint(r.Method, " ", what, " ", resp.StatusCode)]++
		a.mu.Unlock()
	}
	return resp, err
}

// only fails the test if there were other answers than good ones, 5xx, "come again", and these.
func (a *answers) only(t *testing.T, what string, others ...string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for answer, n := range a.all {
		status := answer[strings.LastIndexByte(answer, ' ')+1:]
		if strings.HasPrefix(status, "2") || strings.HasPrefix(status, "5") || status == "429" || slices.Contains(others, answer) {
			continue
		}
		t.Errorf("%s: %d × %s", what, n, answer)
	}
	t.Logf("%s: %v", what, a.all)
}

func (a *answers) push(ctx context.Context, s *Process, repoTag string, img v1.Image) error {
	ref, err := name.ParseReference(s.addr()+"/"+repoTag, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithTransport(a), remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
}

// pull reads an image, and says whether it is the one that is wanted.
func (a *answers) pull(ctx context.Context, s *Process, repoTag string, want v1.Image) error {
	ref, err := name.ParseReference(s.addr()+"/"+repoTag, name.Insecure)
	if err != nil {
		return err
	}
	img, err := remote.Image(ref, remote.WithTransport(a), remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
	if err != nil {
		return err
	}
	got, gerr := img.Digest()
	d, werr := want.Digest()
	if got != d {
		return errors.Join(gerr, werr, fmt.Errorf("%s is %s, not %s", repoTag, got, d))
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed() // whose reader verifies it
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// storms are faults of all kinds for requests to S3, the same for the same seed. Of three requests for one thing one is let through at
// least, as a storage that never does anything is no storage.
type storms struct {
	seed uint64
	mu   sync.Mutex
	seen map[string]*[2]int // requests, and faults since the last that went through
	hits map[string]int
}

func (s *storms) fault(r *http.Request) *fetchertest.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.Method + " " + r.URL.Path + "?" + r.URL.Query().Get("partNumber")
	n := s.seen[id]
	if n == nil {
		n = new([2]int)
		s.seen[id] = n
	}
	n[0]++
	h := fnv.New64a()
	fmt.Fprint(h, s.seed, id, n[0])
	rnd := rand.New(rand.NewPCG(s.seed, h.Sum64()))
	if n[1] == 2 || rnd.IntN(2) == 0 {
		n[1] = 0
		return nil
	}
	n[1]++
	conditional := r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != ""
	switch kind := rnd.IntN(5); {
	case kind == 0 && r.Method == http.MethodPut && r.ContentLength > 1:
		s.hits["body cut"]++
		return &fetchertest.Fault{BodyAfter: 1 + rnd.Int64N(r.ContentLength-1)}
	case kind == 0 && r.Method == http.MethodGet:
		s.hits["answer cut"]++
		return &fetchertest.Fault{AnswerAfter: 1 + rnd.Int64N(1<<20)}
	case kind == 1 && conditional:
		s.hits["409"]++
		f := s3Fault(409, "ConditionalRequestConflict")
		return &f
	case kind == 2 && conditional:
		s.hits["412"]++
		f := s3Fault(412, "PreconditionFailed")
		return &f
	case kind < 4:
		s.hits["lost"]++
		return &fetchertest.Fault{Lost: true}
	}
	s.hits["503"]++
	f := s3Fault(503, "SlowDown")
	return &f
}

// TestServersInStorms: images are pushed to one server and pulled from another, while half of all that they ask of their bucket fails.
// Nobody is told that something is not there, or that somebody else was faster, and nothing is left behind.
func TestServersInStorms(t *testing.T) {
	ctx, images := t.Context(), 3
	if *full {
		images = 30
	}
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	p := fetchertest.NewProxy(t, v.URL())
	a, b := v.StartServer(t, "a", p.URL(v.URL())), v.StartServer(t, "b", p.URL(v.URL()))
	pushes, repushes, pulls := newAnswers(), newAnswers(), newAnswers()
	for _, c := range []*answers{pushes, repushes, pulls} {
		defer c.CloseIdleConnections()
	}
	storm := &storms{seed: 1, seen: map[string]*[2]int{}, hits: map[string]int{}}
	poll(t, "the first push", func() error { // before the storm: indexes prove the storage
		return pushes.push(ctx, a.Process, "team/app:first", randomImage(t, 1000, 1))
	})
	p.Fail(storm.fault)
	for i := range images {
		img := randomImage(t, s3Large, 3)
		for n, tag := range []string{"one", fmt.Sprint("v", i)} {
			tag, c := "team/app:"+tag, []*answers{pushes, repushes}[n] // the second time it is there
			poll(t, "pushing "+tag, func() error { return c.push(ctx, a.Process, tag, img) })
			for _, s := range []*Process{b.Process, a.Process} { // the first has nothing yet
				poll(t, "pulling "+tag, func() error { return pulls.pull(ctx, s, tag, img) })
			}
		}
	}
	p.Fail(nil)
	pushes.only(t, "pushes", "HEAD blob 404", "HEAD manifest 404")
	repushes.only(t, "second pushes", "HEAD manifest 404")
	pulls.only(t, "pulls")
	for _, kind := range []string{"body cut", "answer cut", "409", "412", "lost", "503"} {
		if storm.hits[kind] == 0 {
			t.Errorf("no %s: that is no storm", kind)
		}
	}
	t.Logf("faults: %v", storm.hits)
	a.Kill()
	b.Kill()
	v.noUploads(t)
}

func randomImage(t *testing.T, size, layers int64) v1.Image {
	t.Helper()
	img, err := random.Image(size, layers)
	if err != nil {
		t.Fatal(err)
	}
	return img
}
