package harness

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression of a layer.
type Compression int

const (
	Gzip Compression = iota
	Zstd
	Uncompressed
)

// mediaType returns OCI's.
func (c Compression) mediaType() types.MediaType {
	return [...]types.MediaType{types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer}[c]
}

// ImageOptions say what to make. The same options make the same image.
type ImageOptions struct {
	Seed        uint64
	Layers      int         // 1 if 0; the runnable layer not counted
	LayerBytes  int64       // of files in each layer; 4 MiB if 0
	Files       int         // in each layer; 20 if 0
	Compression Compression // of all layers
	Docker      bool        // Docker's media types instead of OCI's (gzip only)
	Runnable    bool        // one more layer at the bottom, with the probe as entrypoint
	Command     string      // of the probe, if Runnable; "check" if empty
	Whiteouts   bool        // each layer removes files and directories of those below it
	Incompress  bool        // random bytes only, so that LayerBytes is also about the blob's size
}

// Image is an image and what a container made from it must contain.
type Image struct {
	V1    v1.Image
	Files map[string]string // path, absolute, of each regular file → sha256, hex

	Manifest string   // its digest
	Config   string   // its config's digest
	Layers   []string // digests, bottom first
	Sizes    []int64  // of the layers' blobs

	Entries      int   // of all layers' archives, and
	Uncompressed int64 // their bytes: of a Debian image
}

// Bytes is the size of all layers' blobs.
func (img *Image) Bytes() (n int64) {
	for _, s := range img.Sizes {
		n += s
	}
	return n
}

// MakeImage makes an image of real files below dir, where its blobs stay.
func MakeImage(dir string, o ImageOptions) (*Image, error) {
	o.Layers = max(o.Layers, 1)
	if o.LayerBytes == 0 {
		o.LayerBytes = 4 << 20
	}
	if o.Files == 0 {
		o.Files = 20
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	img := &Image{Files: map[string]string{}}
	base := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	base = mutate.ConfigMediaType(base, types.OCIConfigJSON)
	if o.Docker {
		base = mutate.MediaType(empty.Image, types.DockerManifestSchema2)
		base = mutate.ConfigMediaType(base, types.DockerConfigJSON)
	}
	var adds []mutate.Addendum
	add := func(fill func(*layerWriter) error) error {
		l, err := writeLayer(dir, o, img.Files, fill)
		if err != nil {
			return fmt.Errorf("making a layer: %w", err)
		}
		adds = append(adds, mutate.Addendum{Layer: l, MediaType: l.mediaType, History: v1.History{CreatedBy: "capelin's integration tests"}})
		img.Layers = append(img.Layers, l.digest.String())
		img.Sizes = append(img.Sizes, l.size)
		return nil
	}
	if o.Runnable {
		probe, err := Built("probe")
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(probe)
		if err != nil {
			return nil, err
		}
		if err := add(func(w *layerWriter) error {
			// No two images share a layer: containerd would not pull it again.
			return errors.Join(w.file("/probe", 0o755, b), w.file("/seed", 0o644, fmt.Append(nil, o.Seed)))
		}); err != nil {
			return nil, err
		}
	}
	for i := range o.Layers {
		if err := add(func(w *layerWriter) error {
			if err := fillLayer(w, o, i); err != nil {
				return err
			}
			if i < o.Layers-1 {
				return nil
			}
			return w.file("/checksums", 0o644, checksums(img.Files))
		}); err != nil {
			return nil, err
		}
	}
	delete(img.Files, "/checksums")
	cfg := v1.Config{}
	if o.Runnable {
		cfg.Entrypoint = []string{"/probe"}
		cfg.Cmd = []string{cmp.Or(o.Command, "check")}
	}
	return img, img.assemble(base, adds, o.Seed, cfg)
}

// assemble makes the manifest and the config.
func (img *Image) assemble(base v1.Image, adds []mutate.Addendum, seed uint64, c v1.Config) error {
	m, err := mutate.Append(base, adds...)
	if err != nil {
		return err
	}
	cf, err := m.ConfigFile()
	if err != nil {
		return err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", runtime.GOARCH, c
	cf.Created = v1.Time{Time: time.Unix(int64(seed), 0).UTC()}
	if img.V1, err = mutate.ConfigFile(m, cf); err != nil {
		return err
	}
	manifest, err := img.V1.Digest()
	if err != nil {
		return err
	}
	config, err := img.V1.ConfigName()
	if err != nil {
		return err
	}
	img.Manifest, img.Config = manifest.String(), config.String()
	return nil
}

// A LayerBlob is a layer that was made elsewhere.
type LayerBlob struct {
	Path        string // of the blob
	Compression Compression
	DiffID      string // in the image's config; "": the right one
}

// ImageOf makes an image of layers, bottom first; its Files are not known.
func ImageOf(layers ...LayerBlob) (*Image, error) {
	base := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	base = mutate.ConfigMediaType(base, types.OCIConfigJSON)
	img := &Image{}
	var adds []mutate.Addendum
	for _, b := range layers {
		l, err := layerOf(b)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", b.Path, err)
		}
		adds = append(adds, mutate.Addendum{Layer: l, MediaType: l.mediaType})
		img.Layers = append(img.Layers, l.digest.String())
		img.Sizes = append(img.Sizes, l.size)
	}
	return img, img.assemble(base, adds, 0, v1.Config{})
}

func layerOf(b LayerBlob) (*layerFile, error) {
	l := &layerFile{path: b.Path, mediaType: b.Compression.mediaType()}
	f, err := os.Open(b.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if l.size, err = io.Copy(h, f); err != nil {
		return nil, err
	}
	l.digest = toHash(h)
	u, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer u.Close()
	h.Reset()
	if _, err := io.Copy(h, u); err != nil {
		return nil, err
	}
	l.diffID = toHash(h)
	if b.DiffID != "" {
		l.diffID, err = v1.NewHash(b.DiffID)
	}
	return l, err
}

// checksums is what the probe reads in the container.
func checksums(files map[string]string) []byte {
	var b bytes.Buffer
	for p, sum := range files {
		fmt.Fprintf(&b, "%s  %s\n", sum, p)
	}
	lines := strings.SplitAfter(b.String(), "\n")
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}

// fillLayer writes files of many sizes: a quarter of the bytes in one big file,
// the rest in shares that shrink; and one that every layer overwrites.
func fillLayer(w *layerWriter, o ImageOptions, i int) error {
	rnd := rand.New(rand.NewChaCha8(seed(o.Seed, uint64(i))))
	left := o.LayerBytes
	for f := range o.Files {
		n := left / 4
		if f == o.Files-1 {
			n = left
		}
		left -= n
		name := fmt.Sprintf("/data/layer-%d/%d/file-%d", i, f%3, f)
		if err := w.file(name, 0o644, randomBytes(rnd, n, o.Incompress || f%3 == 0)); err != nil {
			return err
		}
	}
	if err := w.link(fmt.Sprintf("/data/layer-%d/link", i), "0/file-0"); err != nil {
		return err
	}
	if o.Whiteouts {
		if err := whiteouts(w, i); err != nil {
			return err
		}
	}
	return w.file("/data/overwritten", 0o600, fmt.Appendf(nil, "by layer %d of image %d\n", i, o.Seed))
}

// whiteouts removes a file and a directory of the layer below, replaces the
// content of a directory, and brings back what the layer below has removed.
func whiteouts(w *layerWriter, i int) error {
	errs := []error{w.opaque("/data/opaque")}
	if i > 0 {
		errs = append(errs, w.whiteout(fmt.Sprintf("/data/w/file-%d", i-1)), w.whiteout(fmt.Sprintf("/data/w/dir-%d", i-1)))
	}
	for _, f := range []string{
		"/data/opaque/same", fmt.Sprintf("/data/opaque/below/%d", i),
		fmt.Sprintf("/data/w/file-%d", i), fmt.Sprintf("/data/w/dir-%d/gone", i),
	} {
		errs = append(errs, w.file(f, 0o644, fmt.Append(nil, f, i)))
	}
	if i > 1 {
		errs = append(errs,
			w.file(fmt.Sprintf("/data/w/file-%d", i-2), 0o644, fmt.Append(nil, i)),
			w.file(fmt.Sprintf("/data/w/dir-%d/back", i-2), 0o644, fmt.Append(nil, i)))
	}
	return errors.Join(errs...)
}

func seed(a, b uint64) (s [32]byte) {
	binary.LittleEndian.PutUint64(s[:], a)
	binary.LittleEndian.PutUint64(s[8:], b)
	return s
}

// randomBytes returns n bytes, of words (which compress to a third or so) or at random.
func randomBytes(rnd *rand.Rand, n int64, random bool) []byte {
	b := make([]byte, 0, n+16)
	if random {
		for int64(len(b)) < n {
			b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
		}
		return b[:n]
	}
	const letters = "etaoin shrdlu, cmfwyp.\n"
	for int64(len(b)) < n {
		r := rnd.Uint64()
		for range 12 {
			b = append(b, letters[r%uint64(len(letters))])
			r /= uint64(len(letters))
		}
		if r&1 == 0 {
			b = append(b, "the swarm "...)
		}
	}
	return b[:n]
}

// layerFile is a v1.Layer in a file.
type layerFile struct {
	path           string
	digest, diffID v1.Hash
	size           int64
	uncompressed   int64 // bytes of its archive
	mediaType      types.MediaType
}

func (l *layerFile) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layerFile) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layerFile) Size() (int64, error)                { return l.size, nil }
func (l *layerFile) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l *layerFile) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }
func (l *layerFile) Uncompressed() (_ io.ReadCloser, e error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	var r io.Reader = f
	switch {
	case strings.HasSuffix(string(l.mediaType), "zstd"):
		d, err := zstd.NewReader(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		r = d
	case strings.HasSuffix(string(l.mediaType), "gzip"):
		if r, err = gzip.NewReader(f); err != nil {
			f.Close()
			return nil, err
		}
	}
	return struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

type layerWriter struct {
	tar   *tar.Writer
	files map[string]string
	dirs  map[string]bool
}

var epoch = time.Unix(1_700_000_000, 0)

func (w *layerWriter) mkdirs(p string) error {
	for i, c := range p {
		if c != '/' || i == 0 || w.dirs[p[:i]] {
			continue
		}
		w.dirs[p[:i]] = true
		if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p[1:i] + "/", Mode: 0o755, ModTime: epoch}); err != nil {
			return err
		}
	}
	return nil
}

func (w *layerWriter) file(p string, mode int64, b []byte) error {
	if err := w.mkdirs(p); err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	w.files[p] = hex.EncodeToString(sum[:])
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p[1:], Mode: mode, Size: int64(len(b)), ModTime: epoch}); err != nil {
		return err
	}
	_, err := w.tar.Write(b)
	return err
}

// whiteout removes a file or directory of the layers below.
func (w *layerWriter) whiteout(p string) error {
	w.forget(p)
	return w.mark(filepath.Dir(p) + "/.wh." + filepath.Base(p))
}

// opaque removes what the layers below have in a directory.
func (w *layerWriter) opaque(dir string) error {
	w.forget(dir)
	return w.mark(dir + "/.wh..wh..opq")
}

func (w *layerWriter) mark(p string) error {
	if err := w.mkdirs(p); err != nil {
		return err
	}
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p[1:], ModTime: epoch})
}

func (w *layerWriter) forget(p string) {
	for f := range w.files {
		if f == p || strings.HasPrefix(f, p+"/") {
			delete(w.files, f)
		}
	}
}

func (w *layerWriter) link(p, target string) error {
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: p[1:], Linkname: target, Mode: 0o777, ModTime: epoch})
}

// compressor is how a layer's blob is made from its archive.
type compressor struct {
	mediaType types.MediaType
	writer    func(io.Writer) (io.WriteCloser, error)
}

// compressor returns the quickest, since tests wait for it.
func (o *ImageOptions) compressor() compressor {
	c := compressor{mediaType: o.Compression.mediaType()}
	switch o.Compression {
	case Zstd:
		c.writer = func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		}
	case Uncompressed:
		c.writer = func(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil }
	default:
		if o.Docker {
			c.mediaType = types.DockerLayer
		}
		c.writer = func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }
	}
	return c
}

func writeLayer(dir string, o ImageOptions, files map[string]string, fill func(*layerWriter) error) (*layerFile, error) {
	return compressLayer(dir, o.compressor(), func(t *tar.Writer) error {
		return fill(&layerWriter{tar: t, files: files, dirs: map[string]bool{}})
	})
}

// compressLayer makes a layer in a file of dir that is named by its digest.
func compressLayer(dir string, c compressor, fill func(*tar.Writer) error) (*layerFile, error) {
	f, err := os.CreateTemp(dir, "layer-*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l := &layerFile{path: f.Name(), mediaType: c.mediaType}
	digest, diffID := sha256.New(), sha256.New()
	z, err := c.writer(io.MultiWriter(f, digest))
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(io.MultiWriter(z, diffID, (*byteCount)(&l.uncompressed)))
	if err := errors.Join(fill(w), w.Close(), z.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l.size, l.digest, l.diffID = st.Size(), toHash(digest), toHash(diffID)
	l.path = filepath.Join(dir, l.digest.Hex)
	return l, os.Rename(f.Name(), l.path)
}

// byteCount counts what is written to it.
type byteCount int64

func (n *byteCount) Write(p []byte) (int, error) {
	*n += byteCount(len(p))
	return len(p), nil
}

func toHash(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
