package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"github.com/capelin-io/capelin/plugin/unpack/treetest"
)

func applyBytes(ctx context.Context, root string, blob []byte, o Options) (Result, error) {
	return Layer(ctx, bytes.NewReader(blob), int64(len(blob)), true, root, o)
}

// TestConfined applies layers that try to get out next to files that must not
// change. That they mean what they mean to containerd is TestSameTree's matter.
func TestConfined(t *testing.T) {
	needRoot(t)
	outside := []string{"secret", "dir/inner"}
	for name, entries := range map[string][]entry{
		"dots":           {reg("../secret", "x"), reg("../../../../../../../../tmp/x/secret", "x"), reg("d/../../secret", "x")},
		"absolute":       {reg("OUT/secret", "x"), directory("OUT/dir").with(func(h *tar.Header) { h.Mode = 0 })},
		"symlink":        {symlink("l", "OUT"), reg("l/secret", "x"), reg("l/dir/inner", "x"), reg("l/new", "x")},
		"symlink dots":   {symlink("l", "../"), reg("l/secret", "x"), reg("l/new", "x")},
		"symlink chain":  {symlink("a", "OUT"), symlink("b", "a/dir"), symlink("c", "b/../.."), reg("c/secret", "x"), reg("b/inner", "x")},
		"through itself": {symlink("l", "../secret"), reg("l", "x")},
		"dir over link":  {symlink("l", "OUT/dir"), directory("l").with(func(h *tar.Header) { h.Mode = 0; h.Uid = 7 })},
		"times via link": {
			directory("d"), symlink("d", "OUT/dir"), directory("../dir").with(func(h *tar.Header) { h.ModTime = time.Unix(1, 0) }),
		},
		"hardlink abs":  {hardlink("h", "OUT/secret").with(func(h *tar.Header) { h.Mode = 0o777 })},
		"hardlink dots": {hardlink("h", "../secret").with(func(h *tar.Header) { h.Mode = 0o777 })},
		"hardlink link": {symlink("l", "OUT"), hardlink("h", "l/secret").with(func(h *tar.Header) { h.Mode = 0o777 })},
		"hardlink symlnk": {
			symlink("l", "OUT/secret"), hardlink("h", "l").with(func(h *tar.Header) { h.Mode = 0o777; h.Uid = 9 }), reg("h", "x"),
		},
		"whiteout": {
			reg("../.wh.secret", ""), symlink("l", "OUT"), reg("l/.wh.secret", ""), reg("l/dir/.wh.inner", ""),
			reg("l/.wh.dir", ""),
		},
		"whiteout dots": {reg(".wh...", "")},
		"opaque":        {symlink("l", "OUT"), reg("l/.wh..wh..opq", ""), reg("../.wh..wh..opq", "")},
		"device": {
			{Header: tar.Header{Name: "../dev", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 8}},
			{Header: tar.Header{Name: "dev", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 1}}, reg("dev/x", "x"),
		},
		"write to device": {
			{Header: tar.Header{Name: "full", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 7}},
			reg("full", "not to the device"),
		},
		"fifo": {
			{Header: tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o666}}, reg("p", "does not block"),
			{Header: tar.Header{Name: "q", Typeflag: tar.TypeFifo, Mode: 0o666}}, reg("q/x", ""),
		},
		"xattr via link": {
			symlink("l", "OUT/secret").with(func(h *tar.Header) { h.PAXRecords = map[string]string{paxXattr + "security.x": "y"} }),
		},
		"proc": {symlink("l", "/proc/self/root"), reg("l/OUT/secret", "x"), symlink("m", "/proc/self/cwd"), reg("m/x", "x")},
	} {
		for _, o := range []Options{{}, {Overlay: true}} {
			t.Run(fmt.Sprint(name, o.Overlay), func(t *testing.T) {
				tmp := t.TempDir()
				root := filepath.Join(tmp, "root")
				os.MkdirAll(filepath.Join(tmp, "dir"), 0o755)
				os.Mkdir(root, 0o755)
				for _, f := range outside {
					if err := os.WriteFile(filepath.Join(tmp, f), []byte("untouched"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				var es []entry
				for _, e := range entries {
					e.Name = strings.ReplaceAll(e.Name, "OUT", strings.TrimPrefix(tmp, "/"))
					e.Linkname = strings.ReplaceAll(e.Linkname, "OUT", tmp)
					es = append(es, e)
				}
				before := describe(t, tmp, time.Unix(1<<40, 0))
				_, err := applyBytes(t.Context(), root, layer(t, es...), o)
				t.Log(err)
				after := describe(t, tmp, time.Unix(1<<40, 0))
				for _, m := range []map[string]string{before, after} {
					for p := range m {
						if p == "root" || strings.HasPrefix(p, "root/") {
							delete(m, p)
						}
					}
				}
				if d := treetest.Diff(before, after); d != "" {
					t.Errorf("outside the root:\n%s", d)
				}
			})
		}
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	many := make([]entry, 100)
	for i := range many {
		many[i] = reg(fmt.Sprint(i), "")
	}
	zeros := gzipped(layer(t, reg("zeros", strings.Repeat("\x00", 8<<20))))
	behind := gzipped(append(layer(t, reg("f", "x")), make([]byte, 8<<20)...))
	for _, c := range []struct {
		name string
		blob []byte
		o    Options
		want error
	}{
		{"bomb", zeros, Options{MaxBytes: 1 << 20}, ErrTooLarge},
		{"bomb just fits", zeros, Options{MaxBytes: 8<<20 + 512 + 1024}, nil},
		{"one less", zeros, Options{MaxBytes: 8<<20 + 512 + 1023}, ErrTooLarge},
		{"bomb behind the end", behind, Options{MaxBytes: 1 << 20}, ErrTooLarge},
		{"holes", sparseLayer(t, 1<<50), Options{}, ErrTooLarge},
		{"entries", layer(t, many...), Options{MaxEntries: 99}, ErrTooLarge},
		{"all entries", layer(t, many...), Options{MaxEntries: 100}, nil},
		{"a link's size", states(layer(t, hardlink("h", "f")), 300<<30), Options{}, os.ErrNotExist},
		{"a directory's", states(layer(t, directory("d")), 300<<30), Options{}, nil},
		{"a file's", states(layer(t, reg("f", "")), 300<<30), Options{}, ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			_, err := applyBytes(t.Context(), root, c.blob, c.o)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if c.want == ErrTooLarge && !errdefs.IsResourceExhausted(err) {
				t.Errorf("%v is not of containerd's class", err)
			}
		})
	}
}

// sparseLayer has a file of the given size with one byte in it, as GNU tar
// writes it in format PAX, sparse version 1.0.
func sparseLayer(t *testing.T, size int64) []byte {
	t.Helper()
	var pax strings.Builder
	record := func(k, v string) {
		r := fmt.Sprintf(" %s=%s\n", k, v)
		n := len(r) + 1
		for len(fmt.Sprint(n))+len(r) != n {
			n++
		}
		fmt.Fprint(&pax, n, r)
	}
	record("GNU.sparse.major", "1")
	record("GNU.sparse.minor", "0")
	record("GNU.sparse.name", "sparse")
	record("GNU.sparse.realsize", fmt.Sprint(size))
	m := fmt.Sprintf("2\n%d\n1\n%d\n0\n", size/2, size)
	body := m + strings.Repeat("\x00", 512-len(m)) + "x"
	// archive/tar writes no sparse files; two plain ones look the same but for the type.
	b := layer(t, reg("PaxHeaders/sparse", pax.String()).with(func(h *tar.Header) { h.Format = tar.FormatUSTAR }),
		reg("GNUSparseFile/sparse", body).with(func(h *tar.Header) { h.Format = tar.FormatUSTAR }), reg("next", "file"))
	b[156] = tar.TypeXHeader
	return checksummed(b)
}

// states has the header of the first entry state a size.
func states(b []byte, size uint64) []byte {
	copy(b[124:136], append([]byte{0x80, 0, 0, 0}, binary.BigEndian.AppendUint64(nil, size)...))
	return checksummed(b)
}

// checksummed sets the checksum of the first header.
func checksummed(b []byte) []byte {
	var sum int
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// However many attributes are left out, the log says it once a layer.
func TestRefusedAttributes(t *testing.T) {
	needRoot(t)
	var entries []entry
	for i := range 100 {
		e := reg(fmt.Sprint(i), "x")
		e.PAXRecords = map[string]string{paxXattr + "trusted.no": "x"}
		entries = append(entries, e)
	}
	var said bytes.Buffer
	l := logrus.New()
	l.SetOutput(&said)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(l))
	if _, err := applyBytes(ctx, t.TempDir(), layer(t, entries...), Options{}); err != nil {
		t.Fatal(err)
	}
	if s := said.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "count=100") || !strings.Contains(s, "trusted.no") {
		t.Errorf("the log says:\n%s", s)
	}
}

func TestSparse(t *testing.T) {
	needRoot(t)
	for _, k := range []kind{bind, overlay} {
		d, stockErr, ourErr := applyBoth(t, k, [][]byte{sparseLayer(t, 3<<20), sparseLayer(t, 10)})
		if d != "" || stockErr != nil {
			t.Error(stockErr, ourErr, d)
		}
	}
}

// TestDamaged applies what is not, or not only, an archive. Whether that is an
// error is containerd's decision (compared); its class is ours.
func TestDamaged(t *testing.T) {
	needRoot(t)
	plain := layer(t, directory("d"), reg("d/f", strings.Repeat("content", 5000)), reg("g", "x"))
	zipped := gzipped(plain)
	enc, _ := zstd.NewWriter(nil)
	zst := enc.EncodeAll(plain, nil)
	flipped := bytes.Clone(zipped)
	flipped[len(flipped)/2] ^= 0x10
	for _, c := range []struct {
		name  string
		blob  []byte
		fails bool
	}{
		{"nothing", nil, false},
		{"whole gzip", zipped, false},
		{"whole zstd", zst, false},
		{"two members", append(bytes.Clone(zipped[:]), gzipped([]byte("behind the end"))...), false},
		{"two frames", append(bytes.Clone(zst), enc.EncodeAll(make([]byte, 1000), nil)...), false},
		{"skippable frame", append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2}, zst...), false},
		{"no end", plain[:len(plain)-1024], false},
		{"cut in padding", plain[:len(plain)-1100], false},
		{"data behind the end", append(bytes.Clone(plain), "trailing"...), false},
		{"cut in a file", plain[:3000], true},
		{"cut in a header", plain[:700], true},
		{"cut gzip", zipped[:len(zipped)/2], true},
		{"cut trailer", zipped[:len(zipped)-4], true},
		{"cut zstd", zst[:len(zst)/2], true},
		{"only magic", zipped[:3], true},
		{"flipped bit", flipped, true},
		{"bytes behind gzip", append(bytes.Clone(zipped), "trailing"...), true},
		{"bytes behind zstd", append(bytes.Clone(zst), "trailing"...), true},
		{"noise", []byte(strings.Repeat("noise", 500)), true},
		{"bad checksum", append([]byte("x"), plain[1:]...), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := applyBytes(t.Context(), t.TempDir(), c.blob, Options{})
			if (err != nil) != c.fails {
				t.Fatalf("got %v", err)
			}
			if c.fails && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not of containerd's class", err)
			}
			want, werr := stockApply(t, c.blob)
			if (werr != nil) != c.fails {
				t.Errorf("containerd's error is %v", werr)
			}
			if err == nil && (res.DiffID != want.Digest || res.Size != want.Size) {
				t.Errorf("got %v, containerd %v", res, want)
			}
		})
	}
}

func TestBlobError(t *testing.T) {
	needRoot(t)
	zipped := gzipped(layer(t, reg("f", strings.Repeat("content", 5000))))
	broken := errors.New("broken disk")
	_, err := Layer(t.Context(), failingReaderAt{zipped[:len(zipped)/2], broken}, int64(len(zipped)), true, t.TempDir(), Options{})
	if !errors.Is(err, broken) || errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

type failingReaderAt struct {
	b   []byte
	err error
}

func (r failingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(r.b)) {
		return 0, r.err
	}
	n := copy(p, r.b[off:])
	if n < len(p) {
		return n, r.err
	}
	return n, nil
}

// TestDiskError is a file that cannot be made while the rest of a long layer is on its way.
func TestDiskError(t *testing.T) {
	needRoot(t)
	es := []entry{reg(strings.Repeat("n", 256), "x")}
	for i := range 2000 {
		es = append(es, reg(fmt.Sprint(i), strings.Repeat("x", 10000)))
	}
	_, err := applyBytes(t.Context(), t.TempDir(), layer(t, es...), Options{})
	var pe *os.PathError
	if !errors.As(err, &pe) || errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

// TestCancel cancels in the middle: of an endless blob, so that returning at
// all is the test; goleak looks for what is left.
func TestCancel(t *testing.T) {
	needRoot(t)
	head := layer(t, reg("a", "x"), reg("big", ""))
	for name, size := range map[string]int64{"large file": 1 << 37, "trailing data": 0} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(head[:2*512+512])
			if size > 0 {
				b = layer(t, reg("a", "x"))[:1024]
				var hdr bytes.Buffer
				tw := tar.NewWriter(&hdr)
				tw.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Size: size, Format: tar.FormatGNU})
				b = append(b, hdr.Bytes()...)
			}
			ctx, cancel := context.WithCancel(t.Context())
			r := &endless{head: b, after: 16 << 20, f: cancel}
			_, err := Layer(ctx, r, 1<<37, false, t.TempDir(), Options{})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if r.read > 64<<20 {
				t.Errorf("read %d bytes", r.read)
			}
		})
	}
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := applyBytes(ctx, t.TempDir(), head, Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// endless is head and zeros; f is called when after bytes were read.
type endless struct {
	head        []byte
	read, after int64
	f           func()
}

func (e *endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	e.read += int64(len(p))
	if e.read >= e.after {
		e.f()
	}
	return len(p), nil
}

func FuzzLayer(f *testing.F) {
	if !Able() {
		f.Skip("needs root")
	}
	plain := func(es ...entry) []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, e := range es {
			e.Size = int64(len(e.body))
			tw.WriteHeader(&e.Header)
			io.WriteString(tw, e.body)
		}
		tw.Close()
		return b.Bytes()
	}
	f.Add(plain(reg("a/b", "x"), symlink("l", "a"), hardlink("l/h", "a/b"), reg("a/.wh.b", ""), reg("a/.wh..wh..opq", "")))
	f.Add(plain(directory("d"), symlink("d", "/"), reg("../x", "y")))
	f.Add(gzipped(plain(reg("f", "x"))))
	f.Fuzz(func(t *testing.T, blob []byte) {
		for _, o := range []Options{{MaxBytes: 1 << 20}, {MaxBytes: 1 << 20, Overlay: true}} {
			tmp := t.TempDir()
			root := filepath.Join(tmp, "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			res, err := applyBytes(t.Context(), root, blob, o)
			if err == nil && len(blob) > 0 && blob[0] != 0x1f && res.DiffID != digest.FromBytes(blob) && res.Size == int64(len(blob)) {
				t.Errorf("diff ID %s", res.DiffID)
			}
			if names, _ := os.ReadDir(tmp); len(names) != 1 {
				t.Errorf("outside the root: %v", names)
			}
		}
	})
}

// A full disk is of containerd's class, but not one that the blob was read from.
func TestFullDisk(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "f", Err: syscall.EDQUOT}
	if err := classify(fmt.Errorf("making files: %w", full)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("writing to a full disk: %v", err)
	}
	if err := classify(blobError{full}); errdefs.IsResourceExhausted(err) {
		t.Errorf("reading the blob: %v", err)
	}
}
