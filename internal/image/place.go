package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Kind says what kind of Place.
type Kind string

// The kinds, with the prefixes that name them.
const (
	Registry      Kind = "docker://"
	Layout        Kind = "oci:"
	OCIArchive    Kind = "oci-archive:"
	DockerArchive Kind = "docker-archive:"
)

// Place is where an image is or goes.
type Place struct {
	Kind Kind
	Path string         // of a layout or an archive
	Name string         // which image there; "": the only one
	Ref  name.Reference // in a registry
}

func (p Place) String() string {
	if p.Kind == Registry {
		return p.Ref.String()
	}
	s := string(p.Kind) + p.Path
	if p.Name != "" {
		s += ":" + p.Name
	}
	return s
}

// Source reads a place where an image is: one of the prefixes and what belongs to
// it, "PATH:NAME" choosing among several images; or else a directory or a file that
// exists; or else a reference.
func (c *Client) Source(s string) (Place, error) {
	if p, ok, err := c.prefixed(s); ok {
		return p, err
	}
	switch fi, err := os.Stat(s); {
	case err == nil && fi.IsDir():
		return Place{Kind: Layout, Path: s}, nil
	case err == nil:
		kind, err := archiveKind(s)
		return Place{Kind: kind, Path: s}, err
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "."), strings.HasSuffix(s, "/"): // no reference does
		return Place{}, err
	}
	return c.reference(s)
}

// Target reads a place where an image shall go: one of the prefixes; or else a
// directory that exists or a name that ends with "/", for a layout; or else a name
// that ends with ".tar", for an OCI archive; or else a reference with its registry: what
// has none is rather a directory that is to be made than an image on Docker Hub.
func (c *Client) Target(s string) (Place, error) {
	if p, ok, err := c.prefixed(s); ok {
		return p, err
	}
	switch fi, err := os.Stat(s); {
	case strings.HasSuffix(s, "/"), err == nil && fi.IsDir():
		return Place{Kind: Layout, Path: s}, nil
	case strings.HasSuffix(s, ".tar"):
		return Place{Kind: OCIArchive, Path: s}, nil
	}
	host, rest, _ := strings.Cut(s, "/")
	if rest == "" || host != "localhost" && !strings.ContainsAny(host, ".:") {
		hub := "docker.io/"
		if rest == "" {
			hub += "library/"
		}
		return Place{}, fmt.Errorf("%q is no directory that is there, and names no registry: say oci:%[1]s, or %[2]s%[1]s", s, hub)
	}
	return c.reference(s)
}

// Reference reads a reference to a registry's image.
func (c *Client) Reference(s string) (Place, error) {
	return c.reference(strings.TrimPrefix(s, string(Registry)))
}

func (c *Client) reference(s string) (Place, error) {
	ref, err := name.ParseReference(s, c.naming()...)
	if err != nil {
		return Place{}, err
	}
	return Place{Kind: Registry, Ref: ref}, nil
}

func (c *Client) prefixed(s string) (p Place, ok bool, err error) {
	for _, kind := range []Kind{Registry, OCIArchive, DockerArchive, Layout} {
		rest, ok := strings.CutPrefix(s, string(kind))
		if !ok {
			continue
		}
		if kind == Registry {
			p, err := c.reference(rest)
			return p, true, err
		}
		p := Place{Kind: kind, Path: rest}
		if kind == DockerArchive { // its names are references, with slashes and colons
			p.Path, p.Name, _ = strings.Cut(rest, ":")
		} else if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
			p.Path, p.Name = rest[:i], rest[i+1:]
		}
		if p.Path == "" {
			return p, true, fmt.Errorf("%q names no file", s)
		}
		return p, true, nil
	}
	return Place{}, false, nil
}

// archiveKind looks into an archive: docker save writes both formats into one, and
// then the layout is the better one.
func archiveKind(path string) (Kind, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	kind := Kind("")
	for r, n := tar.NewReader(f), 0; n < maxEntries; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("%s is not an archive: %w", path, err)
		}
		switch strings.TrimPrefix(h.Name, "./") {
		case "oci-layout":
			return OCIArchive, nil
		case "manifest.json":
			kind = DockerArchive
		}
	}
	if kind == "" {
		return "", fmt.Errorf("%s is neither an OCI nor a docker archive", path)
	}
	return kind, nil
}
