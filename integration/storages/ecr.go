package storages

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/capelin-io/capelin/fetcher/registry/ecr/ecrtest"
)

// ECR is a registry, distribution's, before which stands what lets nobody pass without a token of AWS's, which an
// ecrtest.AWS gives.
type ECR struct {
	*Process
	AWS *ecrtest.AWS
	// Guarded is the URL that wants tokens. The one of Process does not.
	Guarded string
}

const registryConfig = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}
http: {addr: "127.0.0.1:%d"}
`

// StartECR starts one that keeps its blobs below dir, and points AWS's library to its AWS.
func StartECR(t testing.TB, dir string) *ECR {
	t.Helper()
	e := &ECR{AWS: ecrtest.Start(t)}
	tool := Tool(t, "registry")
	e.Process = Start(t, Command{
		Name: "registry", Dir: dir, Env: []string{"OTEL_TRACES_EXPORTER=none"},
		Args: func(port int) []string {
			config := filepath.Join(dir, "registry.yml")
			if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, dir, port), 0o644); err != nil {
				t.Fatalf("%v", err)
			}
			return []string{tool, "serve", config}
		},
	})
	to, err := url.Parse(e.URL())
	if err != nil {
		t.Fatalf("%v", err)
	}
	pass := &httputil.ReverseProxy{
		Transport: &http.Transport{DisableKeepAlives: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Header.Del("Authorization")
		},
	}
	guard := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e.AWS.Valid(r) {
			pass.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="https://`+r.Host+`/",service="ecr.amazonaws.com"`)
		http.Error(w, "Not Authorized", http.StatusUnauthorized)
	}))
	t.Cleanup(guard.Close)
	e.Guarded = guard.URL
	return e
}
