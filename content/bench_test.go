package content

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

// makeBlobs puts n tiny files named like blobs into blobs/sha256, and a sums
// file for every tenth.
func makeBlobs(t testing.TB, root string, n int) {
	t.Helper()
	dir := filepath.Join(root, "blobs/sha256")
	sums := filepath.Join(root, "swarm/sums/sha256")
	for _, d := range []string{dir, sums} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var b [8]byte
	for i := range n {
		binary.BigEndian.PutUint64(b[:], uint64(i))
		h := sha256.Sum256(b[:])
		name := hex.EncodeToString(h[:])
		err := os.WriteFile(filepath.Join(dir, name), b[:], 0o444)
		if err == nil && i%10 == 0 {
			err = os.WriteFile(filepath.Join(sums, name), nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyBlobs(t *testing.T) {
	const n = 1500
	root := t.TempDir()
	makeBlobs(t, root, n)
	s := openStore(t, Config{Root: root})
	got := 0
	last := digest.Digest("")
	err := s.Walk(t.Context(), func(i ctrdcontent.Info) error {
		if got++; i.Digest <= last || i.Size != 8 {
			t.Errorf("%+v after %s", i, last)
		}
		last = i.Digest
		return nil
	})
	if err != nil || got != n {
		t.Errorf("%d blobs listed, %v", got, err)
	}
	announced := 0
	s.Blobs(func(piece.ID, Presence) bool { announced++; return true })
	if announced != n {
		t.Errorf("%d announced", announced)
	}
}

// BenchmarkOpen opens a directory of 100,000 blobs, with dropped caches if it
// may drop them: the goal is a second.
func BenchmarkOpen(b *testing.B) {
	root := b.TempDir()
	makeBlobs(b, root, 100_000)
	for _, cold := range []bool{true, false} {
		b.Run(fmt.Sprintf("cold=%t", cold), func(b *testing.B) {
			for b.Loop() {
				if cold {
					b.StopTimer()
					dropCaches(b)
					b.StartTimer()
				}
				s, err := Open(b.Context(), Config{Root: root})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if !cold {
					var before, after runtime.MemStats
					runtime.GC()
					runtime.ReadMemStats(&before)
					s.Close()
					s = nil //nolint:wastedassign // what is collected is measured
					runtime.GC()
					runtime.ReadMemStats(&after)
					b.ReportMetric(float64(before.HeapAlloc-after.HeapAlloc)/100_000, "heap-B/blob")
				} else {
					s.Close()
				}
				b.StartTimer()
			}
		})
	}
}

func dropCaches(b *testing.B) {
	f, err := os.OpenFile("/proc/sys/vm/drop_caches", os.O_WRONLY, 0)
	if err != nil {
		b.Skipf("dropping caches: %v", err)
	}
	defer f.Close()
	unix.Sync() // what is dirty cannot be dropped
	if _, err := f.WriteString("3"); err != nil {
		b.Skipf("dropping caches: %v", err)
	}
}

// BenchmarkAnswers measures what containerd calls under its locks, while blobs
// arrive piece by piece at 300 MB/s, are synced and dropped.
func BenchmarkAnswers(b *testing.B) {
	root := b.TempDir()
	s, err := Open(context.Background(), Config{Root: root, CacheBytes: 4 << 30})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	runStore(b, s)
	id, data := testBlob(b, piece.SHA256, 20_000, 1)
	d := digest.Digest(id.Digest())
	bl := fetch(b, s, id, data)
	if err := bl.Publish(b.Context()); err != nil {
		b.Fatal(err)
	}
	bl.Close()

	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	big, bigData := testBlob(b, piece.SHA256, 64<<20, 2)
	sums := piece.NewSums(big)
	piece.NewHasher(sums).Write(sums, bigData)
	load.Go(func() {
		for ctx.Err() == nil {
			start := time.Now()
			bl, err := s.Blob(ctx, big, true)
			if err != nil {
				return
			}
			for i := range big.Pieces() {
				if ctx.Err() != nil {
					break
				}
				bl.WritePiece(piece.NewClaim(sums, i, pieceOf(big, bigData, i)))
				time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second * time.Duration(big.Length()) / 300e6)))
			}
			bl.st.checkpoint()
			bl.Drop()
			bl.Close()
		}
	})
	missing := digest.FromString("missing")
	for _, tt := range []struct {
		name string
		prep func()
		call func() error
	}{
		{"Info", nil, func() error { _, err := s.Info(ctx, d); return err }},
		{"InfoMissing", nil, func() error { s.Info(ctx, missing); return nil }},
		{"ReadAt32KiB", nil, func() error {
			ra, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
			if err != nil {
				return err
			}
			defer ra.Close()
			_, err = ra.ReadAt(make([]byte, 20_000), 0)
			return err
		}},
		{"ListStatuses", nil, func() error { _, err := s.ListStatuses(ctx); return err }},
		{"Delete", func() { s.Info(ctx, d) }, func() error { return s.Delete(ctx, d) }},
		{"InfoOfCached", func() { s.Delete(ctx, d) }, func() error { _, err := s.Info(ctx, d); return err }},
		{"Publish", func() {
			s.Delete(ctx, d)
			bl, _ = s.Blob(ctx, id, false)
		}, func() error { defer bl.Close(); return bl.Publish(ctx) }},
	} {
		b.Run(tt.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				if tt.prep != nil {
					b.StopTimer()
					tt.prep()
					b.StartTimer()
				}
				t := time.Now()
				if err := tt.call(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(t))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
		})
	}
}

func BenchmarkWritePiece(b *testing.B) {
	for _, size := range []int{64 << 20, 512 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			id, data := testBlob(b, piece.SHA256, size, 1)
			sums := piece.NewSums(id)
			piece.NewHasher(sums).Write(sums, data)
			b.SetBytes(int64(size))
			benchmarkIngest(b, id, func(bl *Blob) error {
				var wg sync.WaitGroup
				for w := range 2 {
					wg.Go(func() {
						for i := w; i < id.Pieces(); i += 2 {
							if err := bl.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				return nil
			})
		})
	}
}

func BenchmarkAppender(b *testing.B) {
	id, data := testBlob(b, piece.SHA256, 512<<20, 1)
	b.SetBytes(id.Size)
	benchmarkIngest(b, id, func(bl *Blob) error {
		a, err := bl.Append(b.Context(), 0)
		if err != nil {
			return err
		}
		defer a.Close()
		for a.Offset() < id.Size { // containerd's WRITEs carry up to 1 MiB
			if _, err := a.Write(data[a.Offset():][:min(1<<20, id.Size-a.Offset())]); err != nil {
				return err
			}
		}
		return nil
	})
}

// benchmarkIngest times taking a blob in, and reports what Complete takes more.
func benchmarkIngest(b *testing.B, id piece.ID, ingest func(*Blob) error) {
	s, err := Open(context.Background(), Config{Root: b.TempDir(), FreeFloor: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var complete time.Duration
	n := 0
	for b.Loop() {
		bl, err := s.Blob(b.Context(), id, true)
		if err == nil {
			err = ingest(bl)
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		t := time.Now()
		if err := bl.Complete(b.Context()); err != nil {
			b.Fatal(err)
		}
		complete += time.Since(t)
		n++
		bl.Close()
		s.makeRoom(b.Context(), id.Size)
		b.StartTimer()
	}
	b.ReportMetric(complete.Seconds()/float64(n), "complete-s")
}
