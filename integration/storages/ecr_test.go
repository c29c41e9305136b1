package storages

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/registry"
	"github.com/capelin-io/capelin/fetcher/registry/ecr/ecrtest"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

const repository = "team/app"

func (e *ECR) open(t *testing.T, url string, retry time.Duration) *registry.Backend {
	t.Helper()
	b, err := registry.Open(registry.Config{
		Host: strings.TrimPrefix(url, "http://"), PlainHTTP: true, Auth: "ecr", Region: ecrtest.Region, Retry: config.Duration(retry),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put pushes a blob past the guard, and returns its key.
func (e *ECR) put(t *testing.T, data []byte) string {
	t.Helper()
	d := digest.FromBytes(data)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(e.URL()+"/v2/"+repository+"/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	at, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	q := at.Query()
	q.Set("digest", d.String())
	at.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, at.String(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = client.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("pushing %d bytes: %s", len(data), resp.Status)
	}
	return repository + "@" + d.String()
}

func TestECR(t *testing.T) {
	e := StartECR(t, t.TempDir())
	o := fetchertest.Options{
		Missing: repository + "@" + digest.FromString("missing").String(),
		Put:     func(t *testing.T, _ fetcher.Backend, data []byte) string { return e.put(t, data) },
	}
	t.Run("suite", func(t *testing.T) {
		before, backends := e.AWS.Asked(), 0
		fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
			backends++
			return e.open(t, e.Guarded, time.Hour)
		}, o)
		if n := e.AWS.Asked() - before; n > backends {
			t.Errorf("AWS was asked %d times by %d backends", n, backends)
		}
	})
	t.Run("faults", func(t *testing.T) {
		fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
			p := fetchertest.NewProxy(t, e.Guarded)
			return e.open(t, p.URL(e.Guarded), time.Second), p
		}, fetchertest.FaultOptions{Options: o})
	})
	t.Run("Check", func(t *testing.T) {
		b := e.open(t, e.Guarded, time.Second)
		defer b.Close()
		if err := b.Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("no permission", func(t *testing.T) {
		e.AWS.Fail(&ecrtest.Failure{Status: 400, Code: "AccessDeniedException", Message: "not authorized to perform: ecr:GetAuthorizationToken"})
		defer e.AWS.Fail(nil)
		b := e.open(t, e.Guarded, time.Second)
		defer b.Close()
		if err := b.Check(t.Context()); !errdefs.IsPermissionDenied(err) {
			t.Error(err)
		}
	})
}

// The registry is killed while a blob is read: the reader goes on when it is back, with the token that it had.
func TestECRKilled(t *testing.T) {
	e := StartECR(t, t.TempDir())
	data := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	key := e.put(t, data)
	b := e.open(t, e.Guarded, time.Hour)
	defer b.Close()
	r, _, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := make([]byte, 1000)
	if _, err := io.ReadFull(r, first); err != nil {
		t.Fatal(err)
	}
	e.Kill()
	e.Restart()
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(slices.Concat(first, rest), data) || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", 1000+len(rest), err)
	}
	if n := e.AWS.Asked(); n != 1 {
		t.Errorf("AWS was asked %d times", n)
	}
}
