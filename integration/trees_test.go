package integration

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/plugin/unpack/treetest"
)

// trees makes layers below a directory.
type trees struct {
	*testing.T
	dir string
	n   int
}

func (t *trees) blob(b []byte, c harness.Compression) harness.LayerBlob {
	t.Helper()
	t.n++
	path := filepath.Join(t.dir, fmt.Sprint("layer", t.n))
	must(t.T, os.WriteFile(path, b, 0o644))
	return harness.LayerBlob{Path: path, Compression: c}
}

func (t *trees) gzip(b []byte) harness.LayerBlob {
	t.Helper()
	var buf bytes.Buffer
	w := get(gzip.NewWriterLevel(&buf, gzip.BestSpeed))(t.T)
	get(w.Write(b))(t.T)
	must(t.T, w.Close())
	return t.blob(buf.Bytes(), harness.Gzip)
}

func (t *trees) zstd(b []byte) harness.LayerBlob {
	t.Helper()
	return t.blob(get(zstd.NewWriter(nil))(t.T).EncodeAll(b, nil), harness.Zstd)
}

// archive makes one of entries; those without a type are regular files.
func (t *trees) archive(entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		body := h.Gname // of a regular file
		h.Gname = ""
		switch {
		case strings.HasSuffix(h.Name, "/"):
			h.Typeflag = tar.TypeDir
		case h.Typeflag == 0:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		must(t.T, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			get(io.WriteString(w, body))(t.T)
		}
	}
	must(t.T, w.Close())
	return buf.Bytes()
}

// file is a regular file: its content travels in a field that images never have.
func file(name, body string) tar.Header { return tar.Header{Name: name, Gname: body} }

// gnutar is what Debian's tar makes of files of this machine's packages, and of a tree
// with holes, hard links and odd names.
func (t *trees) gnutar(format string) []byte {
	t.Helper()
	odd := filepath.Join(t.dir, "odd")
	if _, err := os.Stat(odd); err != nil {
		must(t.T, os.MkdirAll(filepath.Join(odd, "sub"), 0o2775))
		must(t.T, os.WriteFile(filepath.Join(odd, "empty"), nil, 0o4755))
		must(t.T, os.Chmod(filepath.Join(odd, "empty"), 0o755|os.ModeSetuid))
		must(t.T, os.Link(filepath.Join(odd, "empty"), filepath.Join(odd, "sub", "link")))
		must(t.T, os.WriteFile(filepath.Join(odd, "\xff\xfe not UTF-8"), []byte("x"), 0o600))
		f := get(os.Create(filepath.Join(odd, "sparse")))(t.T)
		for _, at := range []int64{0, 5 << 20, 9<<20 + 17} {
			get(f.WriteAt([]byte("data"), at))(t.T)
		}
		must(t.T, f.Truncate(16<<20))
		must(t.T, f.Close())
	}
	args := []string{"--create", "--format=" + format, "--numeric-owner", "-C", "/", "usr/sbin", "usr/share/doc",
		"etc/alternatives", "-C", t.dir, "odd"}
	if format != "ustar" { // which has no room for such names
		must(t.T, os.WriteFile(filepath.Join(odd, strings.Repeat("n", 255)), []byte("x"), 0o644))
		defer os.Remove(filepath.Join(odd, strings.Repeat("n", 255)))
	}
	if format == "pax" {
		args = append([]string{"--xattrs", "--xattrs-include=*", "--sparse"}, args...) // containerd knows no other sparse format
	}
	cmd := exec.CommandContext(t.Context(), "tar", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar: %v: %s", err, stderr.String())
	}
	return out
}

// chunked is a layer that can also be pulled lazily, as its tools make it.
func (t *trees) chunked(b []byte, c harness.Compression) harness.LayerBlob {
	t.Helper()
	var opts []estargz.Option
	if c == harness.Zstd {
		opts = append(opts, estargz.WithCompression(&struct {
			*zstdchunked.Compressor
			*zstdchunked.Decompressor
		}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: map[string]string{}}, &zstdchunked.Decompressor{}}))
	}
	blob := get(estargz.Build(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), opts...))(t.T)
	defer blob.Close()
	return t.blob(get(io.ReadAll(blob))(t.T), c)
}

// What the agent unpacks is what a stock containerd unpacks.
func TestTrees(t *testing.T) {
	e := newEnv(t)
	stock := e.node(t, "stock", harness.NodeOptions{Stock: true})
	ours := e.node(t, "ours", harness.NodeOptions{})
	mk := &trees{T: t, dir: t.TempDir()}

	caps := map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.k":              "v\x00\xff",
	}
	base := mk.archive(
		tar.Header{Name: "d/"}, file("d/a", "1"), file("d/b", "2"),
		tar.Header{Name: "d/sub/", Mode: 0o2770, Uid: 7, Gid: 8}, file("d/sub/x", "3"),
		tar.Header{Name: "e/"}, file("e/x", "4"), file("top", "5"),
		tar.Header{Name: "cap", Gname: "x", PAXRecords: caps, Uid: 3}, tar.Header{Name: "suid", Gname: "x", Mode: 0o6755, Uid: 1, Gid: 2},
		tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "suid", Mode: 0o6755, Uid: 1, Gid: 2},
		tar.Header{Name: "soft", Typeflag: tar.TypeSymlink, Linkname: "../../d", Mode: 0o777, Uid: 5},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 300, Mode: 0o660},
		tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600, Gid: 9}, tar.Header{Name: "tmp/", Mode: 0o1777},
	)
	whiteouts := [][]byte{
		base,
		mk.archive(file("d/.wh.a", ""), file(".wh.top", ""), file("e/.wh..wh..opq", ""), file("e/y", "6"), file("d/.wh.sub", ""),
			file("tmp/in/it", "7"), file("d/c", "8")),
		mk.archive(file("d/a", "again"), tar.Header{Name: "d/sub/"}, file("d/sub/z", "9"), file("top/now", "a directory"),
			file("e/x", "back"), file(".wh.hard", ""), file("tmp/other", "10")),
	}
	many := make([]tar.Header, 0, 200_400)
	for i := range 200_000 {
		if i%500 == 0 {
			many = append(many, tar.Header{Name: fmt.Sprintf("m/%d/", i/500)})
		}
		many = append(many, file(fmt.Sprintf("m/%d/%d", i/500, i), fmt.Sprint(i)))
	}
	var forty []harness.LayerBlob
	for i := range 40 {
		n := fmt.Sprint(i)
		es := []tar.Header{file("layer/"+n, n), file("same", n), file(fmt.Sprintf("in/%d/f", i%7), n)}
		if i > 0 {
			es = append(es, file(fmt.Sprintf("layer/.wh.%d", i-1), ""))
		}
		forty = append(forty, mk.gzip(mk.archive(es...)))
	}
	layers := func(c func([]byte) harness.LayerBlob, tars ...[]byte) (all []harness.LayerBlob) {
		for _, b := range tars {
			all = append(all, c(b))
		}
		return all
	}
	two, everywhere := []string{"overlayfs", "native"}, []string{"overlayfs", "native"}
	if erofs(t, stock) {
		everywhere = append(everywhere, "erofs")
	}
	for _, tt := range []struct {
		name         string
		layers       []harness.LayerBlob
		snapshotters []string
	}{
		// Debian's mkfs.erofs has no room for names of 255 bytes, a stock containerd's either.
		{"gnu", layers(mk.gzip, mk.gnutar("gnu")), two},
		{"pax", layers(mk.zstd, mk.gnutar("pax")), two},
		{"ustar", layers(mk.gzip, mk.gnutar("ustar")), everywhere},
		{"whiteouts", layers(mk.gzip, whiteouts...), everywhere},
		{"estargz", layers(func(b []byte) harness.LayerBlob { return mk.chunked(b, harness.Gzip) }, whiteouts...), everywhere},
		{"zstd-chunked", layers(func(b []byte) harness.LayerBlob { return mk.chunked(b, harness.Zstd) }, whiteouts...), everywhere},
		{"forty", forty, everywhere},
		{"tiny", layers(mk.gzip, mk.archive(many...)), two[:1]},
	} {
		img := get(harness.ImageOf(tt.layers...))(t)
		ref := get(e.reg.Push(e.ctx, img, "trees/"+tt.name+":1"))(t)
		for _, sn := range tt.snapshotters {
			t.Run(tt.name+"-"+sn, func(t *testing.T) {
				start := time.Now()
				want := e.tree(t, stock, sn, ref, start)
				before := e.unpacked(t, ours)
				got := e.tree(t, ours, sn, ref, start)
				if d := treetest.Diff(want, got); d != "" {
					t.Errorf("%.4000s", d)
				}
				n := 0
				for who, count := range e.unpacked(t, ours) {
					if strings.HasPrefix(who, "capelin ") {
						n += count - before[who]
					}
				}
				if want := len(tt.layers); n != want && sn != "erofs" || n > want {
					t.Errorf("%d of %d layers were unpacked by the agent", n, want)
				}
				t.Logf("%d files and directories, %v", len(got), time.Since(start).Round(time.Millisecond))
			})
		}
	}
	e.noMounts(t, ours)
}

// tree pulls and describes an image.
func (e *env) tree(t *testing.T, n *harness.Node, snapshotter, ref string, since time.Time) (tree map[string]string) {
	t.Helper()
	get(n.PullClient(e.ctx, ref, nil, containerd.WithPullSnapshotter(snapshotter)))(t)
	must(t, n.Mounted(e.ctx, snapshotter, ref, func(root string) (err error) {
		tree, err = treetest.Describe(root, since.Add(-time.Minute))
		return err
	}))
	return tree
}

// erofs reports whether this machine can unpack to erofs: its kernel and Debian's mkfs.
func erofs(t *testing.T, n *harness.Node) bool {
	t.Helper()
	c := get(n.Client())(t)
	p := get(c.IntrospectionService().Plugins(t.Context(), "type==io.containerd.snapshotter.v1,id==erofs"))(t)
	for _, p := range p.Plugins {
		if p.InitErr != nil {
			t.Logf("no erofs: %s", p.InitErr.Message)
			return false
		}
	}
	return len(p.Plugins) > 0
}
