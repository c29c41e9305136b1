package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	gobuild "go/build"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	kgzip "github.com/klauspost/compress/gzip"
)

func pack(level int, members ...[]byte) []byte {
	var b bytes.Buffer
	for _, m := range members {
		w, err := gzip.NewWriterLevel(&b, level)
		if err != nil {
			panic(err)
		}
		w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
		w.Write(m)
		w.Close()
	}
	return b.Bytes()
}

// compare reads gz with this package and with compress/gzip.
func compare(t *testing.T, gz []byte, r io.Reader) {
	t.Helper()
	want, werr := func() ([]byte, error) {
		z, err := gzip.NewReader(bytes.NewReader(gz))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}()
	if errors.Is(werr, io.EOF) {
		werr = nil // NewReader of nothing
	}
	got, err := io.ReadAll(r)
	if err != nil && werr == nil && klauspostRefuses(gz) {
		return // the stricter of the two counts
	}
	if (err == nil) != (werr == nil) {
		t.Fatalf("error %v, compress/gzip %v", err, werr)
	}
	if err != nil && (err == io.ErrUnexpectedEOF) != (werr == io.ErrUnexpectedEOF) {
		t.Logf("error %v, compress/gzip %v", err, werr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d, equal up to %d", len(got), len(want), common(got, want))
	}
	if err != nil && common(got, want) < min(len(got), len(want)) {
		t.Fatalf("different before the error, at %d", common(got, want))
	}
}

func klauspostRefuses(gz []byte) bool {
	z, err := kgzip.NewReader(bytes.NewReader(gz))
	if err == nil {
		_, err = io.Copy(io.Discard, z)
	}
	return err != nil
}

func common(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// contains checks that what r expands is want.
func contains(t *testing.T, want []byte, r io.Reader) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d, equal up to %d: %v", len(got), len(want), common(got, want), err)
	}
}

// samples are not to be changed.
var samples = sync.OnceValue(func() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 700_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	text := make([]byte, 0, 600_000)
	for len(text) < 600_000 {
		text = fmt.Appendf(text, "line %d of %x\n", len(text), r.Uint32N(5000))
	}
	skewed := make([]byte, 600_000)
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 3)
	}
	far := append(bytes.Clone(noise[:window]), noise[:window]...)
	m := map[string][]byte{
		"nothing": {}, "one": {'x'}, "noise": noise, "text": text, "skewed": skewed,
		"zeros": make([]byte, 3_000_000), "far": far,
		"mixed": append(append(append(append([]byte{}, noise[:100_000]...), text[:300_000]...), make([]byte, 100_000)...), skewed[:200_000]...),
	}
	for p := 1; p < 20; p += 2 {
		m[fmt.Sprint("period ", p)] = bytes.Repeat(noise[:p], 40_000/p)
	}
	if b, err := os.ReadFile("/proc/self/exe"); err == nil {
		m["binary"] = b[:min(len(b), 1_000_000)]
	}
	var source bytes.Buffer
	filepath.WalkDir(filepath.Join(gobuild.Default.GOROOT, "src", "net"), func(path string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".go") && source.Len() < 1_000_000 {
			b, _ := os.ReadFile(path)
			source.Write(b)
		}
		return err
	})
	m["source"] = source.Bytes()
	return m
})

func TestSamples(t *testing.T) {
	for name, b := range samples() {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			t.Run(fmt.Sprint(name, level), func(t *testing.T) {
				gz := pack(level, b)
				contains(t, b, NewReader(bytes.NewReader(gz)))
				contains(t, b, small(gz))
			})
		}
		t.Run(name+" klauspost", func(t *testing.T) {
			var z bytes.Buffer
			w, _ := kgzip.NewWriterLevel(&z, kgzip.BestCompression)
			w.Write(b)
			w.Close()
			contains(t, b, NewReader(&z))
		})
	}
}

func TestReaders(t *testing.T) {
	s := samples()
	gz := pack(6, s["mixed"][:200_000], nil, s["text"], s["far"])
	compare(t, gz, NewReader(iotest.OneByteReader(bytes.NewReader(gz))))
	compare(t, gz, NewReader(iotest.DataErrReader(bytes.NewReader(gz))))
	compare(t, gz, iotest.OneByteReader(NewReader(bytes.NewReader(gz))))
	broken := errors.New("broken disk")
	_, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(gz[:len(gz)/2]), iotest.ErrReader(broken))))
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestDamage cuts a stream everywhere and flips every bit.
func TestDamage(t *testing.T) {
	text := []byte(strings.Repeat("abcdefgh ijklmnop ", 20) + "the end; ÄÖÜ 0123456789")
	var fixed bytes.Buffer
	for _, gz := range [][]byte{pack(9, text), pack(0, text), pack(flate.HuffmanOnly, text), pack(6, []byte("x"), text[:40]), fixed.Bytes()} {
		for i := range gz {
			compare(t, gz[:i], NewReader(bytes.NewReader(gz[:i])))
			for bit := range 8 {
				b := bytes.Clone(gz)
				b[i] ^= 1 << bit
				compare(t, b, small(b))
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(pack(9, []byte("hello hello hello")))
	f.Add(pack(0, []byte("stored")))
	f.Add(pack(6, []byte("two"), []byte("members")))
	f.Add(pack(6, samples()["binary"][:20_000]))
	f.Add(pack(9, samples()["mixed"][99_000:120_000]))
	f.Add(pack(flate.HuffmanOnly, []byte(strings.Repeat("huffman only", 20))))
	f.Fuzz(func(t *testing.T, b []byte) {
		compare(t, b, small(b))
		// The same as the blocks of a proper member, so that the fuzzer need not
		// find the header; the checksum is wrong.
		gz := append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), b...)
		compare(t, gz, small(gz))
	})
}

// small has the smallest buffers, so that little input gets to their ends.
func small(gz []byte) io.Reader { return newReader(bytes.NewReader(gz), 2*inSlack, 500) }

func cpu() time.Duration {
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func Benchmark(b *testing.B) {
	s := samples()
	for _, name := range []string{"source", "text", "binary", "skewed", "noise", "zeros"} {
		gz := pack(6, s[name])
		for impl, open := range map[string]func(io.Reader) io.Reader{
			"ours":      func(r io.Reader) io.Reader { return NewReader(r) },
			"klauspost": func(r io.Reader) io.Reader { z, _ := kgzip.NewReader(r); return z },
			"stdlib":    func(r io.Reader) io.Reader { z, _ := gzip.NewReader(r); return z },
		} {
			b.Run(name+"/"+impl, func(b *testing.B) {
				b.SetBytes(int64(len(s[name])))
				before := cpu()
				for b.Loop() {
					io.Copy(io.Discard, open(bytes.NewReader(gz)))
				}
				// Says more than MB/s does on a machine with other work.
				b.ReportMetric(float64(len(s[name]))*float64(b.N)/1e6/(cpu()-before).Seconds(), "MB/cpu-s")
			})
		}
	}
}

// TestGiveBack has many small blocks behind each other, so that bits are given
// back right after the input buffer was moved.
func TestGiveBack(t *testing.T) {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(3, 4))
	for range 1500 {
		w, _ := gzip.NewWriterLevel(&b, []int{0, 1, 6, flate.HuffmanOnly}[r.IntN(4)])
		for range r.IntN(3) {
			fmt.Fprint(w, strings.Repeat("ab", r.IntN(40)), r.Uint64())
			w.Flush()
		}
		w.Close()
	}
	gz := b.Bytes()
	compare(t, gz, NewReader(bytes.NewReader(gz)))
	compare(t, gz, small(gz))
	for size := range 10 {
		compare(t, gz, NewReader(shortReader{bytes.NewReader(gz), 1 + size*size*997}))
	}
}

type shortReader struct {
	r io.Reader
	n int
}

func (r shortReader) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), r.n)]) }
