package storages

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// distribution is the reference registry with its S3 driver, as its documentation configures it: with its cache of descriptors, and
// clients are sent to the bucket for blobs.
const distribution = `version: 0.1
log: {level: error}
storage:
  s3: {accesskey: %q, secretkey: %q, region: %q, regionendpoint: %q, bucket: %q,
       rootdirectory: /distribution, secure: false, forcepathstyle: true}
  cache: {blobdescriptor: inmemory}
http: {addr: "127.0.0.1:%d"}
`

func (v *Versitygw) startDistribution(t *testing.T, name, url string) *Process {
	t.Helper()
	dir, tool := t.TempDir(), Tool(t, "registry")
	return Start(t, Command{Name: name, Dir: dir, Env: []string{"OTEL_TRACES_EXPORTER=none"}, Args: func(port int) []string {
		config := filepath.Join(dir, "config.yml")
		if err := os.WriteFile(config, fmt.Appendf(nil, distribution, v.Access, v.Secret, v.Region, url, v.Bucket, port), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{tool, "serve", config}
	}})
}

// TestImageRequests: what an image of ten layers of 1 MiB costs in requests to S3, with its config, its manifest and its tag, beside the
// reference registry on the same server. docs/storages.md has the table. What a server does by the clock is left out: whether the bucket
// can be used, whether uploads were left behind.
func TestImageRequests(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	img := randomImage(t, 1<<20, 10)
	table := map[string][]string{}
	steps := []string{"push", "push again, another tag", "pull", "pull where nothing is yet", "pull again there"}
	measure := func(who string, start func(name, url string) *Process) (total []int) {
		p := fetchertest.NewProxy(t, v.URL())
		one, other := start(who, p.URL(v.URL())), start(who+"-other", p.URL(v.URL()))
		c := newAnswers()
		defer c.CloseIdleConnections()
		for _, at := range []*Process{one, other} { // what is asked once after a start
			poll(t, "the first push", func() error { return c.push(t.Context(), at, "team/first:"+at.name, randomImage(t, 10, 1)) })
		}
		for _, step := range []struct {
			at  *Process
			tag string
			do  bool // push
		}{{one, "1", true}, {one, "2", true}, {one, "1", false}, {other, "1", false}, {other, "1", false}} {
			repo := "team/app:" + step.tag
			var err error
			p.Requests()
			if step.do {
				err = c.push(t.Context(), step.at, repo, img)
			} else {
				err = c.pull(t.Context(), step.at, repo, img)
			}
			if err != nil {
				t.Fatalf("%s: %v", who, err)
			}
			got := map[string]int{}
			for _, r := range p.Requests() {
				if kind := operation(r); kind != "" {
					got[kind]++
				}
			}
			var all []string
			n := 0
			for _, kind := range slices.Sorted(maps.Keys(got)) {
				all = append(all, fmt.Sprintf("%d %s", got[kind], kind))
				n += got[kind]
			}
			table[who] = append(table[who], fmt.Sprintf("%d: %s", n, strings.Join(all, ", ")))
			total = append(total, n)
		}
		return total
	}
	measure("distribution", func(name, url string) *Process { return v.startDistribution(t, name, url) })
	ours := measure("capelin", func(name, url string) *Process { return v.StartServer(t, name, url).Process })
	for i, step := range steps {
		for _, who := range slices.Sorted(maps.Keys(table)) {
			t.Logf("%-26s %-13s %s", step, who, table[who][i])
		}
	}
	for i, most := range []int{99, 46, 11, 33, 11} { // those who ask the index for one thing at once share a read
		if ours[i] > most || ours[i] < most*3/4 {
			t.Errorf("%s: %d requests, docs/storages.md says %d", steps[i], ours[i], most)
		}
	}
}

// operation is S3's for a request; "" for what servers do by the clock.
func operation(r fetchertest.Request) string {
	switch _, key, _ := strings.Cut(strings.TrimPrefix(r.Path, "/"), "/"); {
	case r.Header.Get("X-Amz-Copy-Source") != "":
		return "copy"
	case r.Query != "" && strings.Contains(r.Query, "partNumber="):
		return "part"
	case strings.Contains(r.Query, "list-type"):
		if strings.Contains(r.Query, "max-keys=1&") || strings.Contains(r.Query, "prefix=index%2Freplication%2F") {
			return ""
		}
		return "list"
	case key == "capelin-check", key == "capelin-storage":
		return ""
	case strings.Contains(r.Query, "uploads") && r.Method == http.MethodGet:
		return "list of uploads"
	case key == "":
		return r.Method + " bucket"
	}
	return r.Method
}
