package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Copied is what a copy did. Sizes are in bytes.
type Copied struct {
	Reference string `json:"reference"` // where it is now
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"`  // of all blobs
	Bytes     int64  `json:"bytes"` // of blobs that moved over the network
	Blobs     int    `json:"blobs"`
	Skipped   int    `json:"skipped"` // blobs that were there already
}

// Options of a copy.
type Options struct {
	// Platform picks one image of an index; nil: all of it is copied, except to a
	// docker archive, which takes the one for this machine.
	Platform *v1.Platform
	// Progress is told now and then how much has been done, in bytes of blobs, what
	// was there already included; nil: nobody is.
	Progress func(done, total int64)
}

// refName is the annotation by which layouts name images.
const refName = "org.opencontainers.image.ref.name"

// Copy brings an image from one place to another.
func (c *Client) Copy(ctx context.Context, from, to Place, o Options) (Copied, error) {
	m := newMeter(c.transport)
	src, done, err := c.open(ctx, from, m)
	if err != nil {
		return Copied{}, fmt.Errorf("reading %s: %w", from, c.explain(ctx, err, from))
	}
	defer done()
	if o.Platform != nil {
		if err := src.suits(*o.Platform); err != nil {
			return Copied{}, fmt.Errorf("reading %s: %w", from, err)
		}
	}
	if o.Platform == nil && to.Kind == DockerArchive {
		o.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	}
	if o.Platform != nil {
		if src, err = src.pick(*o.Platform); err != nil {
			return Copied{}, fmt.Errorf("reading %s: %w", from, err)
		}
	}
	tree, err := src.tree(ctx)
	if err != nil {
		return Copied{}, fmt.Errorf("reading %s: %w", from, err)
	}
	sizes, total := tree.total()
	r := Copied{Reference: to.String(), Digest: tree.Digest, MediaType: tree.MediaType, Size: total, Blobs: len(sizes)}

	stop := report(o.Progress, total, func() int64 { return moved(m, sizes, to.Kind == Registry) })
	err = c.store(ctx, src, to, from, m)
	stop(err == nil)
	if err != nil {
		return Copied{}, fmt.Errorf("writing %s: %w", to, c.explain(ctx, err, to))
	}
	for digest, size := range sizes {
		if to.Kind == Registry && !m.took(digest) || to.Kind != Registry && from.Kind == Registry && !m.gave(digest, size) {
			r.Skipped++
		}
	}
	r.Bytes = m.down.Load()
	if to.Kind == Registry {
		r.Bytes = m.up.Load()
		r.Reference = to.Ref.Context().Name() + "@" + r.Digest
		if _, tag := to.Ref.(name.Tag); tag {
			r.Reference = to.Ref.Name() + "@" + r.Digest
		}
	}
	return r, nil
}

// moved returns how many bytes of blobs are done with.
func moved(m *meter, sizes map[string]int64, up bool) int64 {
	if !up {
		return m.down.Load()
	}
	n := m.up.Load()
	m.mu.Lock()
	defer m.mu.Unlock()
	for d := range m.there {
		n += sizes[d]
	}
	return n
}

// report calls progress five times a second until the returned function is called,
// which waits for the last call.
func report(progress func(done, total int64), total int64, moved func() int64) (stop func(whole bool)) {
	if progress == nil {
		return func(bool) {}
	}
	end, ended := make(chan bool), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				progress(min(moved(), total), total) // retries count twice
			case whole := <-end:
				if whole {
					progress(total, total)
				}
				return
			}
		}
	}()
	return func(whole bool) { end <- whole; <-ended }
}

// open opens an image for reading; done must be called when it has been read.
func (c *Client) open(ctx context.Context, p Place, m *meter) (i item, done func(), err error) {
	done = func() {}
	switch p.Kind {
	case Registry:
		d, err := remote.Get(p.Ref, c.options(ctx, m)...)
		if err != nil {
			return item{}, nil, err
		}
		if d.MediaType.IsIndex() {
			i.index, err = d.ImageIndex()
		} else {
			i.image, err = d.Image()
		}
		return i, done, err
	case DockerArchive:
		var tag *name.Tag
		if p.Name != "" {
			t, err := name.NewTag(p.Name, name.WeakValidation)
			if err != nil {
				return item{}, nil, err
			}
			tag = &t
		}
		i.image, err = tarball.ImageFromPath(p.Path, tag)
		return i, done, err
	case OCIArchive:
		dir, err := os.MkdirTemp("", "capelin-image-*")
		if err != nil {
			return item{}, nil, err
		}
		done = func() { os.RemoveAll(dir) }
		if err = unpackLayout(p.Path, dir); err == nil {
			i, err = fromLayout(dir, p.Name)
		}
		if err != nil {
			done()
		}
		return i, done, err
	case Layout:
		i, err = fromLayout(p.Path, p.Name)
		return i, done, err
	}
	return item{}, nil, fmt.Errorf("%q is no kind of place", p.Kind)
}

// fromLayout opens the image with a name, or the only one.
func fromLayout(dir, named string) (item, error) {
	ii, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return item{}, err
	}
	im, err := ii.IndexManifest()
	if err != nil {
		return item{}, err
	}
	var found []v1.Descriptor
	var names []string
	for _, d := range im.Manifests {
		n := d.Annotations[refName]
		if named == "" || n == named || strings.HasSuffix(n, ":"+named) {
			found = append(found, d)
		}
		names = append(names, n)
	}
	switch {
	case len(found) == 0 && named == "":
		return item{}, errNothing
	case len(found) == 0:
		return item{}, fmt.Errorf("no image is named %q, only %q", named, names)
	case len(found) > 1:
		return item{}, fmt.Errorf("it has %d images, name one of them after a colon: %q", len(found), names)
	}
	i, err := item{index: ii}.child(found[0])
	if err == nil && i == (item{}) {
		err = fmt.Errorf("it has a %s, which is no image", found[0].MediaType)
	}
	return i, err
}

// store writes an image.
func (c *Client) store(ctx context.Context, i item, to, from Place, m *meter) error {
	switch to.Kind {
	case Registry:
		if i.index != nil {
			return remote.WriteIndex(to.Ref, i.index, c.options(ctx, m)...)
		}
		return remote.Write(to.Ref, i.image, c.options(ctx, m)...)
	case Layout:
		return i.toLayout(to.Path, nameFor(to, from))
	case OCIArchive:
		dir, err := os.MkdirTemp(filepath.Dir(to.Path), ".tmp-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := i.toLayout(dir, nameFor(to, from)); err != nil {
			return err
		}
		return packLayout(dir, to.Path)
	case DockerArchive:
		var ref name.Reference
		var err error
		switch {
		case to.Name != "":
			ref, err = name.NewTag(to.Name, name.WeakValidation)
		case from.Kind == Registry:
			ref = from.Ref
		default:
			return errors.New("a docker archive needs a name: docker-archive:FILE:NAME")
		}
		if err != nil {
			return err
		}
		return atomically(to.Path, func(tmp string) error { return tarball.WriteToFile(tmp, ref, i.image) })
	}
	return fmt.Errorf("%q is no kind of place", to.Kind)
}

// nameFor is the name of an image in a layout: the one that was asked for, or its
// tag in the registry that it is from.
func nameFor(to, from Place) string {
	if to.Name != "" {
		return to.Name
	}
	if from.Kind == Registry {
		if t, ok := from.Ref.(name.Tag); ok {
			return t.TagStr()
		}
	}
	return from.Name
}

// toLayout adds an image to a layout, which is made if it is not there. An image of
// the same name, or else the same image, is replaced.
func (i item) toLayout(dir, named string) error {
	p, err := layout.FromPath(dir)
	if err != nil {
		if p, err = layout.Write(dir, empty.Index); err != nil {
			return err
		}
	}
	h, err := i.digest()
	if err != nil {
		return err
	}
	var o []layout.Option
	same := match.Digests(h)
	if named != "" {
		o = append(o, layout.WithAnnotations(map[string]string{refName: named}))
		same = match.Name(named)
	}
	if i.index != nil {
		return p.ReplaceIndex(i.index, same, o...)
	}
	return p.ReplaceImage(i.image, same, o...)
}
