package storages

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/s3"
)

// s3Large is more than one part.
const s3Large = 16<<20 + 17

// newPrefix returns a place in the bucket where nothing is yet.
func newPrefix() string { return fmt.Sprintf("p%d/", prefixes.Add(1)) }

var prefixes atomic.Int64

func openS3(t testing.TB, cfg s3.Config) *s3.Backend {
	t.Helper()
	b, err := s3.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestS3(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	open := func(checksums string) func(t *testing.T) fetcher.Backend {
		return func(t *testing.T) fetcher.Backend {
			cfg := v.Config(v.URL(), newPrefix())
			cfg.Checksums = checksums
			return openS3(t, cfg)
		}
	}
	o := fetchertest.Options{Large: s3Large, Again: func(t *testing.T, b fetcher.Backend) fetcher.Backend {
		return openS3(t, v.Config(v.URL(), strings.TrimPrefix(b.Name(), "s3:"+strings.TrimPrefix(v.URL(), "http://")+"/"+v.Bucket+"/")+"/"))
	}}
	t.Run("auto", func(t *testing.T) { fetchertest.Run(t, open("auto"), o) })
	t.Run("when_supported", func(t *testing.T) { fetchertest.Run(t, open("when_supported"), o) })
	v.noUploads(t)
}

func TestS3Faults(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		p := fetchertest.NewProxy(t, v.URL())
		return openS3(t, v.Config(p.URL(v.URL()), newPrefix())), p
	}, fetchertest.FaultOptions{
		Options:     fetchertest.Options{Large: s3Large},
		WritesAgain: true,
		Once: map[string]fetchertest.Fault{
			"SlowDown": s3Fault(503, "SlowDown"), "InternalError": s3Fault(500, "InternalError"),
			"RequestTimeout": s3Fault(400, "RequestTimeout"), "conflict": s3Fault(409, "ConditionalRequestConflict"),
		},
		Denied: s3Fault(403, "AccessDenied"),
		Clean:  func(t *testing.T, _ fetcher.Backend) { v.noUploads(t) },
	})
}

// s3Fault is an answer with a code of S3's.
func s3Fault(status int, code string) fetchertest.Fault {
	return fetchertest.Fault{
		Status: status, Header: map[string][]string{"Content-Type": {"application/xml"}},
		Body: "<Error><Code>" + code + "</Code><Message>said the proxy</Message></Error>",
	}
}

// TestS3Proves: what is promised of compare-and-swap holds between two gateways of one directory, too.
func TestS3Proves(t *testing.T) {
	dir := t.TempDir()
	v, other := StartVersitygw(t, dir), StartVersitygw(t, dir)
	v.Setenv(t)
	prefix := newPrefix()
	a, b := openS3(t, v.Config(v.URL(), prefix)), openS3(t, v.Config(other.URL(), prefix))
	if err := fetcher.Prove(t.Context(), a, b); err != nil {
		t.Error(err)
	}
	if left, _, err := a.List(context.Background(), "", "", 0); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

// noUploads fails if there are multipart uploads that were neither completed nor aborted.
func (v *Versitygw) noUploads(t *testing.T) {
	t.Helper()
	for _, name := range v.uploads(t) {
		t.Errorf("an upload was left behind: %s", name)
	}
}

// uploads returns the directories in which the server keeps unfinished uploads.
func (v *Versitygw) uploads(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(v.dir, "data", v.Bucket), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "/multipart/") && strings.Count(path[strings.Index(path, "/multipart/"):], "/") == 3 {
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
