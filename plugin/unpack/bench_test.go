package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"go/build"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// fileProvider serves one blob from a local file, as containerd's store and ours do.
type fileProvider string

type fileReaderAt struct {
	*os.File
	size int64
}

func (f fileReaderAt) Size() int64 { return f.size }

func (p fileProvider) ReaderAt(context.Context, ocispec.Descriptor) (ctrdcontent.ReaderAt, error) {
	f, err := os.Open(string(p))
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return fileReaderAt{f, fi.Size()}, nil
}

// tarOf writes up to limit files below dir, thrice if they are small, as gzip
// and zstd layers in out.
func tarOf(tb testing.TB, dir, out string) (files int, size int64) {
	tb.Helper()
	g, err := os.Create(filepath.Join(out, "gzip"))
	if err != nil {
		tb.Fatal(err)
	}
	z, err := os.Create(filepath.Join(out, "zstd"))
	if err != nil {
		tb.Fatal(err)
	}
	u, err := os.Create(filepath.Join(out, "tar"))
	if err != nil {
		tb.Fatal(err)
	}
	gw := gzip.NewWriter(g)
	zw, _ := zstd.NewWriter(z)
	tw := tar.NewWriter(io.MultiWriter(gw, zw, u))
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fi, err := d.Info()
		if err != nil || rel == "." || rel == "pkg" {
			return err
		}
		var to string
		if fi.Mode()&fs.ModeSymlink != 0 {
			to, _ = os.Readlink(path)
		}
		hdr, err := tar.FileInfoHeader(fi, to)
		if err != nil {
			return err
		}
		hdr.Name = rel
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		files++
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(tw, f)
		size += n
		return err
	})
	for _, c := range []io.Closer{tw, gw, zw, g, z, u} {
		if cerr := c.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	return files, size
}

// TestBench compares this package with containerd's own applier, in turns on
// the same disk. UNPACK_BENCH is the number of rounds; UNPACK_DIR is the
// directory whose files make the layer (default: GOROOT), UNPACK_KINDS
// (default "gzip zstd tar") are the formats. For a profile, UNPACK_ONLY is "stock" or "ours".
// UNPACK_WORKERS is Options.Workers.
func TestBench(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("UNPACK_BENCH"))
	if rounds == 0 {
		t.Skip("set UNPACK_BENCH to a number of rounds")
	}
	needRoot(t)
	dir := os.Getenv("UNPACK_DIR")
	if dir == "" {
		dir = build.Default.GOROOT
	}
	kinds := strings.Fields(os.Getenv("UNPACK_KINDS"))
	if len(kinds) == 0 {
		kinds = []string{"gzip", "zstd", "tar"}
	}
	workers, _ := strconv.Atoi(os.Getenv("UNPACK_WORKERS"))
	tmp := t.TempDir()
	files, size := tarOf(t, dir, tmp)
	fmt.Printf("%d entries, %.0f MB\n", files, float64(size)/1e6)
	types := map[string]string{"gzip": ocispec.MediaTypeImageLayerGzip, "zstd": ocispec.MediaTypeImageLayerZstd,
		"tar": ocispec.MediaTypeImageLayer}
	cpu := func() time.Duration {
		var sum time.Duration
		for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
			var ru unix.Rusage
			unix.Getrusage(who, &ru)
			sum += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
		}
		return sum
	}
	var line strings.Builder
	for _, kind := range kinds {
		p := fileProvider(filepath.Join(tmp, kind))
		fi, err := os.Stat(string(p))
		if err != nil {
			t.Fatal(err)
		}
		desc := ocispec.Descriptor{MediaType: types[kind], Size: fi.Size()}
		wall, cpus := map[string][]float64{}, map[string][]float64{}
		var ids []digest.Digest
		for round := range rounds {
			for i := range 2 {
				name := []string{"stock", "ours"}[(i+round)%2]
				if only := os.Getenv("UNPACK_ONLY"); only != "" {
					name = only
				}
				a := map[string]diff.Applier{"stock": apply.NewFileSystemApplier(p),
					"ours": NewApplier(p, Config{Options: Options{Workers: workers}})}[name]
				// Nothing is deleted until the end: ext4 looks for minutes at
				// each inode that was deleted before it takes another, which
				// makes creating files ten times slower for whoever comes next.
				upper := filepath.Join(tmp, fmt.Sprint(kind, round, i, name))
				if err := os.Mkdir(upper, 0o755); err != nil {
					t.Fatal(err)
				}
				runtime.GC()
				start, c := time.Now(), cpu()
				d, err := a.Apply(t.Context(), desc, []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + upper}}})
				if err != nil {
					t.Fatal(err)
				}
				wall[name] = append(wall[name], time.Since(start).Seconds())
				cpus[name] = append(cpus[name], (cpu() - c).Seconds())
				ids = append(ids, d.Digest)
			}
		}
		for _, id := range ids {
			if id != ids[0] {
				t.Errorf("diff IDs %v", ids)
			}
		}
		median := func(v []float64) float64 {
			slices.Sort(v)
			return slices.Concat(v, []float64{0})[len(v)/2]
		}
		for _, name := range []string{"stock", "ours"} {
			fmt.Printf("%-5s %-5s wall %.2f s %.2f  cpu %.2f s %.2f\n", kind, name, median(wall[name]), wall[name], median(cpus[name]), cpus[name])
		}
		fmt.Fprintf(&line, "%s_wall=%.2f %s_cpu=%.2f ", kind, median(wall["ours"])/median(wall["stock"]), kind,
			median(cpus["ours"])/median(cpus["stock"]))
	}
	fmt.Println(strings.TrimSpace(line.String()))
}

// BenchmarkInflate is decoders alone: ours, and those of others beside it. UNPACK_BLOB may
// name a layer in gzip that is read instead of files from GOROOT.
func BenchmarkInflate(b *testing.B) {
	var blobs = map[string][]byte{}
	if path := os.Getenv("UNPACK_BLOB"); path != "" {
		blob, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		blobs["gzip"] = blob
	} else {
		tmp := b.TempDir()
		tarOf(b, filepath.Join(build.Default.GOROOT, "src"), tmp)
		for _, kind := range []string{"gzip", "zstd"} {
			blob, err := os.ReadFile(filepath.Join(tmp, kind))
			if err != nil {
				b.Fatal(err)
			}
			blobs[kind] = blob
		}
	}
	ours := func(blob []byte) (io.Reader, error) {
		d, err := decompress(context.Background(), bytes.NewReader(blob), int64(len(blob)), true, &Options{})
		return d, err
	}
	for _, d := range []struct {
		kind, name string
		open       func(blob []byte) (io.Reader, error)
	}{
		{"gzip", "ours", ours},
		{"gzip", "klauspost", func(blob []byte) (io.Reader, error) { return kgzip.NewReader(bytes.NewReader(blob)) }},
		{"gzip", "standard", func(blob []byte) (io.Reader, error) { return gzip.NewReader(bytes.NewReader(blob)) }},
		{"zstd", "ours", ours},
	} {
		blob := blobs[d.kind]
		if blob == nil {
			continue
		}
		b.Run(d.kind+"/"+d.name, func(b *testing.B) {
			buf := make([]byte, chunkSize)
			var size int64
			for b.Loop() {
				r, err := d.open(blob)
				if err != nil {
					b.Fatal(err)
				}
				size = 0
				for err == nil {
					var n int
					n, err = r.Read(buf)
					size += int64(n)
				}
				if err != io.EOF {
					b.Fatal(err)
				}
			}
			b.SetBytes(size)
		})
	}
}
