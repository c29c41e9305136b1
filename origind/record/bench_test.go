package record

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// million is a store's size that members must be able to start with. Its records are what pushes make: a home in a backend with two
// namespaces.
const million = 1_000_000

func benchEntry(i int) *Entry {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	d := digest.NewDigestFromBytes(digest.SHA256, sum[:])
	at := Place{"s3-eu", "blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded()}
	s := At(time.UnixMilli(1_700_000_000_000 + int64(i)))
	r := Pushed(d, int64(i+1), at, fmt.Sprintf("team-%d/service-%d", i%50, i%1000), "origin-1", s)
	r.Homes[0].Namespaces[fmt.Sprintf("team-%d/base", i%50)] = s - 1
	return &Entry{Record: r.WithWritten(at, s+1<<20)}
}

// rss is the process's resident memory in bytes, after a garbage collection.
func rss(b *testing.B) float64 {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip(err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return float64(pages * os.Getpagesize())
}

// BenchmarkOpen is the start with a million records in a snapshot that is in memory, on one disk and on four.
func BenchmarkOpen(b *testing.B) {
	for _, disks := range []int{1, 4} {
		b.Run(fmt.Sprint("disks=", disks), func(b *testing.B) { benchOpen(b, disks) })
	}
}

func benchOpen(b *testing.B, disks int) {
	var all []string
	for range disks {
		all = append(all, b.TempDir())
	}
	dirs := NewDirs(all, nil, nil)
	s, err := OpenStore(dirs, "records")
	if err != nil {
		b.Fatal(err)
	}
	for i := range million {
		if err := s.apply(0, 0, packEntry(benchEntry(i))); err != nil {
			b.Fatal(err)
		}
	}
	start := time.Now()
	if err := s.Compact(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(time.Since(start).Seconds(), "s/compaction")
	size := s.snapshot
	s.Close()
	s = nil
	before := rss(b)
	for b.Loop() {
		s = nil //nolint:wastedassign // or there are two at once
		if s, err = OpenStore(dirs, "records"); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
	b.ReportMetric((rss(b)-before)/million, "RSS-B/record")
	b.ReportMetric(float64(size)/million, "disk-B/record")
	start = time.Now()
	n := 0
	if err := s.Each(func(e *Entry) error { n++; return nil }); err != nil || n != million {
		b.Fatal(n, err)
	}
	b.ReportMetric(time.Since(start).Seconds(), "s/each")
	runtime.KeepAlive(s)
}

func BenchmarkGet(b *testing.B) {
	s := &Store{}
	e := benchEntry(1)
	if err := s.apply(0, 0, packEntry(e)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(e.Record.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	r := benchEntry(1).Record
	o := Merge(r, Removed(r.Digest, "team-1/base", r.Latest()))
	b.ReportAllocs()
	for b.Loop() {
		Merge(r, o)
	}
}

func BenchmarkHash(b *testing.B) {
	r := benchEntry(1).Record
	b.ReportAllocs()
	for b.Loop() {
		r.Hash()
	}
}

// BenchmarkPut is of 64 at a time, on the disk of the temporary directory.
func BenchmarkPut(b *testing.B) {
	s := openStore(b, filepath.Join(b.TempDir(), "records"))
	var n atomic.Int64
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Put(benchEntry(int(n.Add(1)))); err != nil {
				b.Error(err)
			}
		}
	})
}
