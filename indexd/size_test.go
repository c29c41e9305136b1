package indexd

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/file"
)

var (
	sizeTags = flag.Int("index.tags", 4000, "how many tags TestSize has, half of them in one repository; at least 2000")
	sizeFile = flag.Bool("index.file", false, "TestSize has them in a directory")
)

// TestSize says how long an index that has just started takes for the first, middle and last page of many tags and repositories:
//
//	go test ./indexd -run TestSize -v -timeout 0 -index.tags 1000000 [-index.file]
func TestSize(t *testing.T) {
	w := newWorld(t)
	var storage fetcher.Backend = &fetchertest.Memory{}
	if *sizeFile {
		b, err := file.Open(file.Config{Path: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		storage = b
	}
	w.storage.Backend = storage
	d := w.opaque("big", "a")
	ctx, half := t.Context(), *sizeTags/2
	put := func(repo, name string) {
		o := tagObject{Version: formatVersion, Repository: repo, Name: name, Revision: 1, Write: "w", Descriptor: d}
		if err := w.writeIf(ctx, tagKey(repo, name), &o, ""); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	repos := max(1, half/100)
	for i := range half {
		put("big", fmt.Sprintf("v%09d", i))
	}
	for i := range repos {
		repo := fmt.Sprintf("team/r%07d", i)
		if err := w.addRepository(ctx, repo); err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			put(repo, fmt.Sprintf("v%d", n))
		}
	}
	t.Logf("%d tags, %d repositories, written in %v, %s", *sizeTags, repos, time.Since(start).Round(time.Second), rss(t))
	for _, at := range []int{0, half / 2, half - 1000} {
		x := w.another()
		start := time.Now()
		names, _, err := x.Tags(ctx, "big", fmt.Sprintf("v%09d", at), 1000)
		cold := time.Since(start)
		if err != nil || len(names) < 999 {
			t.Fatal(len(names), err)
		}
		start = time.Now()
		if _, _, err := x.Tags(ctx, "big", fmt.Sprintf("v%09d", at), 1000); err != nil {
			t.Fatal(err)
		}
		t.Logf("tags from %d on: %v, again %v", at, cold.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	}
	for _, at := range []int{0, repos / 2, max(0, repos-1000)} {
		start := time.Now()
		if _, _, err := w.Repositories(ctx, fmt.Sprintf("team/r%07d", at), 1000); err != nil {
			t.Fatal(err)
		}
		t.Logf("repositories from %d on: %v", at, time.Since(start).Round(time.Millisecond))
	}
	t.Log(rss(t))
}

// rss is how much memory this process has.
func rss(t *testing.T) string {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	line, _, _ := strings.Cut(after, "\n")
	return "RSS " + strings.TrimSpace(line)
}
