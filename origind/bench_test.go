package origind

import (
	"context"
	"io"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// How fast one client pushes and reads on loopback.
func BenchmarkPush(b *testing.B) {
	cfg := testConfig(b, b.TempDir(), nil)
	o := start(b, cfg)
	const size = 64 << 20
	b.SetBytes(size)
	seed := uint64(0)
	for b.Loop() {
		b.StopTimer()
		seed++
		data, d := testBlob(size, seed)
		b.StartTimer()
		if _, err := o.push("any/app", data, d); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := o.client.Delete(b.Context(), origin.Ref{Digest: d}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkRead(b *testing.B) {
	o := start(b, testConfig(b, b.TempDir(), nil))
	data, d := testBlob(64<<20, 1)
	if _, err := o.push("any/app", data, d); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 << 20)
	for b.Loop() {
		r, _, err := o.client.Open(b.Context(), origin.Ref{Digest: d}, 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != 64<<20 {
			b.Fatal(n, err)
		}
		r.Close()
	}
}

func BenchmarkStat(b *testing.B) {
	o := start(b, testConfig(b, b.TempDir(), nil))
	data, d := testBlob(1000, 1)
	if _, err := o.push("any/app", data, d); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := o.client.Stat(b.Context(), origin.Ref{Digest: d}); err != nil {
			b.Fatal(err)
		}
	}
}

// line is a backend of one blob, a block repeated, behind a line of so many bytes
// per second, which are counted from when it was opened.
type line struct {
	fetcher.Backend
	block []byte
	size  int64
	rate  float64
}

func (l *line) Stat(_ context.Context, key string) (fetcher.Info, error) {
	return fetcher.Info{Key: key, Size: l.size}, nil
}

func (l *line) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	return &lineReader{l: l, off: off, begin: time.Now(), from: off}, fetcher.Info{Key: key, Size: l.size}, nil
}

type lineReader struct {
	l         *line
	off, from int64
	begin     time.Time
}

func (r *lineReader) Read(p []byte) (int, error) {
	if r.off == r.l.size {
		return 0, io.EOF
	}
	for {
		if left := int64(time.Since(r.begin).Seconds()*r.l.rate) - (r.off - r.from); left > 0 {
			at := r.off % int64(len(r.l.block))
			n := copy(p[:min(int64(len(p)), left, r.l.size-r.off)], r.l.block[at:])
			r.off += int64(n)
			return n, nil
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (r *lineReader) Close() error { return nil }

// A cold blob of 2 GB from a backend of 200 MB/s: how much longer it takes than the
// line, and when the first byte is there.
func BenchmarkCold(b *testing.B) {
	block, _ := testBlob(1<<20, 1)
	l := &line{Backend: &fetchertest.Memory{}, block: block, size: 2_000_000_000, rate: 200e6}
	h := digest.SHA256.Digester()
	for left := l.size; left > 0; left -= int64(len(block)) {
		h.Hash().Write(block[:min(left, int64(len(block)))])
	}
	d := h.Digest()
	b.SetBytes(l.size)
	var n, first, all float64
	for b.Loop() {
		b.StopTimer() // so that it is cold
		o := start(b, testConfig(b, b.TempDir(), stores{"line": l}))
		b.StartTimer()
		begin := time.Now()
		r, _, err := o.client.Open(b.Context(), origin.Ref{Digest: d}, 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		first += time.Since(begin).Seconds()
		if m, err := io.Copy(io.Discard, r); err != nil || m != l.size-1 {
			b.Fatal(m, err)
		}
		all += time.Since(begin).Seconds()
		r.Close()
		n++
		b.StopTimer()
		o.stop()
		b.StartTimer()
	}
	b.ReportMetric(first/n*1000, "ms/first-byte")
	b.ReportMetric(all/n/(float64(l.size)/l.rate), "times-the-line")
}
