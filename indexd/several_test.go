package indexd

import (
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/index"
)

var fullSize = flag.Bool("index.full", false, "64 writers and 1,000 writes instead of 16 and 150")

// Three indexes over one storage, each of which is killed in turn while many write one tag through whichever is there: each
// acknowledged write has a revision that no other has, every index that is asked afterwards has it or a later one, and there is no revision
// that nobody wrote.
func TestSeveralIndexes(t *testing.T) {
	writers, writes := 16, 150
	if *fullSize {
		writers, writes = 64, 1000
	}
	dir := t.TempDir()
	_, images := killOrigins()
	var mu sync.Mutex
	victims := make([]*victimProcess, 3)
	var proxies []string // addresses that stay when an index is another process
	for i := range victims {
		victims[i] = startVictim(t, dir)
		proxies = append(proxies, forward(t, func() string {
			mu.Lock()
			defer mu.Unlock()
			return victims[i].addr
		}))
	}
	c := client(t, proxies...)
	for _, image := range images {
		if err := pushImage(t.Context(), c, image); err != nil {
			t.Fatal(err)
		}
	}
	var next, failed atomic.Int64
	acked := map[uint64]string{}
	start := time.Now()
	var wg sync.WaitGroup
	for w := range writers {
		image := images[w%len(images)]
		c := client(t, proxies[w%3], proxies[(w+1)%3], proxies[(w+2)%3])
		reader := client(t, proxies[(w+1)%3], proxies[(w+2)%3], proxies[w%3])
		wg.Go(func() {
			for next.Add(1) <= int64(writes) {
				var tag index.Tag
				var err error
				for {
					if tag, err = c.PutTag(t.Context(), killRepo, "one", image[len(image)-1]); err == nil {
						break
					}
					failed.Add(1)
				}
				mu.Lock()
				if by, twice := acked[tag.Revision]; twice {
					t.Errorf("revision %d was acknowledged twice, by %s before", tag.Revision, by)
				}
				acked[tag.Revision] = fmt.Sprint("writer ", w)
				mu.Unlock()
				got, err := reader.Tag(t.Context(), killRepo, "one")
				if err == nil && got.Revision < tag.Revision {
					t.Errorf("revision %d after %d was acknowledged", got.Revision, tag.Revision)
				}
			}
		})
	}
	for kill := range 3 {
		for next.Load() < int64(writes*(kill+1)/4) && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		mu.Lock()
		v := victims[kill]
		mu.Unlock()
		v.kill()
		again := startVictim(t, dir)
		mu.Lock()
		victims[kill] = again
		mu.Unlock()
	}
	wg.Wait()
	last := uint64(0)
	for _, addr := range proxies {
		tag, err := client(t, addr).Tag(t.Context(), killRepo, "one")
		if err != nil || last != 0 && tag.Revision != last {
			t.Errorf("%s: %d, %v, another one has %d", addr, tag.Revision, err, last)
		}
		last = tag.Revision
	}
	if len(acked) != writes {
		t.Errorf("%d acknowledged", len(acked))
	}
	unacked := int(last) - writes
	if unacked < 0 || unacked > int(failed.Load())+3*writers {
		t.Errorf("%d revisions for %d writes, of which %d were repeated", last, writes, failed.Load())
	}
	t.Logf("%d writes by %d writers in %v, 3 kills: revision %d, %d done twice or by nobody who waited, %d heard no answer",
		writes, writers, time.Since(start).Round(time.Millisecond), last, unacked, failed.Load())
}
