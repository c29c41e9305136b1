package harness

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// debianFormat is part of the name under which layers are kept. Raise it when
// the same packages would make other layers.
const debianFormat = 1

// debianLayer is what is kept of a layer besides its blob.
type debianLayer struct {
	Packages  []string // files of Debian's, with their versions
	MediaType types.MediaType
	Digest    v1.Hash
	DiffID    v1.Hash
	Size      int64
	Entries   int
	Bytes     int64 // of the uncompressed archive
}

// MakeDebianImage makes an image with one layer of the contents of each list of
// Debian's packages, bottom first, compressed with gzip as Docker does or with
// zstd at its default level. It is downloaded and built once: the blobs stay in
// dir, which is a content directory of containerd's (blobs/sha256/...).
func MakeDebianImage(ctx context.Context, dir string, layers [][]string, compression Compression) (*Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	made := make([]*debianLayer, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, packages := range layers {
		g.Go(func() (err error) {
			made[i], err = madeDebianLayer(gctx, dir, packages, compression)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	img := &Image{}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	var adds []mutate.Addendum
	for _, l := range made {
		adds = append(adds, mutate.Addendum{
			Layer: &layerFile{
				path:   filepath.Join(dir, "blobs", "sha256", l.Digest.Hex),
				digest: l.Digest, diffID: l.DiffID, size: l.Size, mediaType: l.MediaType,
			},
			MediaType: l.MediaType,
			History:   v1.History{CreatedBy: strings.Join(l.Packages, " ")},
		})
		img.Layers, img.Sizes = append(img.Layers, l.Digest.String()), append(img.Sizes, l.Size)
		img.Entries += l.Entries
		img.Uncompressed += l.Bytes
	}
	return img, img.assemble(base, adds, 0, v1.Config{})
}

// madeDebianLayer returns the layer that is in dir, or makes it.
func madeDebianLayer(ctx context.Context, dir string, packages []string, compression Compression) (*debianLayer, error) {
	kind := map[Compression]string{Gzip: "gzip", Zstd: "zstd"}[compression]
	key := sha256.Sum256([]byte(fmt.Sprintf("%d %s %s", debianFormat, kind, strings.Join(packages, " "))))
	about := filepath.Join(dir, hex.EncodeToString(key[:8])+".json")
	l := &debianLayer{}
	if b, err := os.ReadFile(about); err == nil {
		if err := json.Unmarshal(b, l); err != nil {
			return nil, fmt.Errorf("%s: %w", about, err)
		}
		st, err := os.Stat(filepath.Join(dir, "blobs", "sha256", l.Digest.Hex))
		if err == nil && st.Size() == l.Size {
			return l, nil
		}
	}
	tmp, err := os.MkdirTemp(dir, "debs-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	debs, err := downloadDebs(ctx, tmp, packages)
	if err != nil {
		return nil, err
	}
	w := &debianWriter{layer: l, seen: map[string]bool{}}
	file, err := compressLayer(filepath.Join(dir, "blobs", "sha256"), debianCompressors[compression], func(t *tar.Writer) error {
		w.tar = t
		for _, deb := range debs {
			l.Packages = append(l.Packages, filepath.Base(deb))
			if err := w.add(ctx, deb); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.MediaType, l.Digest, l.DiffID, l.Size, l.Bytes = file.mediaType, file.digest, file.diffID, file.size, file.uncompressed
	b, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return nil, err
	}
	return l, os.WriteFile(about, b, 0o644)
}

// debianCompressors are what builders of images use: Docker's gzip, and
// BuildKit's zstd.
var debianCompressors = map[Compression]compressor{
	Gzip: {Gzip.mediaType(), func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }},
	Zstd: {Zstd.mediaType(), func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }},
}

func downloadDebs(ctx context.Context, dir string, packages []string) ([]string, error) {
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "APT::Sandbox::User=root"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLines(string(out), 3))
		}
		return nil
	}
	download := append([]string{"download"}, packages...)
	if apt(download...) != nil { // the lists may be old, or not there
		if err := apt("update"); err != nil {
			return nil, fmt.Errorf("an image is made of Debian's packages: %w", err)
		}
		if err := apt(download...); err != nil {
			return nil, fmt.Errorf("an image is made of Debian's packages: %w", err)
		}
	}
	debs := make([]string, len(packages))
	for i, p := range packages {
		found, err := filepath.Glob(filepath.Join(dir, p+"_*.deb"))
		if err != nil || len(found) != 1 {
			return nil, fmt.Errorf("apt-get downloaded %d files for %s: %w", len(found), p, cmp.Or(err, errors.ErrUnsupported))
		}
		debs[i] = found[0]
	}
	return debs, nil
}

// debianWriter merges the archives of packages into one.
type debianWriter struct {
	tar   *tar.Writer
	layer *debianLayer
	seen  map[string]bool
}

func (w *debianWriter) add(ctx context.Context, deb string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = w.copy(tar.NewReader(out))
	_, copyErr := io.Copy(io.Discard, out)
	if err := errors.Join(err, copyErr, cmd.Wait()); err != nil {
		return fmt.Errorf("reading %s: %w", filepath.Base(deb), err)
	}
	return nil
}

func (w *debianWriter) copy(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if name == "." || w.seen[name] {
			continue
		}
		w.seen[name] = true
		h.Name = name
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = path.Clean(h.Linkname)
		}
		h.Format = tar.FormatUnknown
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		if err := w.tar.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w.tar, r); err != nil {
			return err
		}
		w.layer.Entries++
	}
}
