package content

import (
	"context"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// load builds the index from directory names and puts right what it finds.
func (s *Store) load(ctx context.Context) error {
	var blobs, cache, sums, labels map[string][]string // by algorithm
	var parts, trash, top []string
	g, _ := errgroup.WithContext(ctx)
	tree := func(dst *map[string][]string, dir string) {
		g.Go(func() (err error) {
			*dst, err = readTree(s.path(dir))
			return err
		})
	}
	tree(&blobs, "blobs")
	tree(&cache, "cache")
	tree(&sums, "swarm/sums")
	tree(&labels, "swarm/labels")
	g.Go(func() (err error) {
		if parts, err = readNames(s.path("swarm/partial")); err == nil {
			trash, err = readNames(s.path("swarm/trash"))
		}
		if err == nil {
			top, err = readNames(s.path("swarm"))
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	n := 0
	for _, names := range blobs {
		n += len(names)
	}
	s.index = make(map[digest.Digest]*entry, n+n/8)
	for _, t := range trash {
		s.trash = append(s.trash, s.path("swarm/trash", t))
	}
	for _, name := range top {
		if durable.IsTemp(name) {
			s.junk = append(s.junk, s.path("swarm", name))
		}
	}
	for alg, names := range blobs {
		for _, name := range names {
			if d, ok := blobDigest(alg, name); ok {
				s.put(&entry{dgst: d, place: Committed, size: -1})
			}
		}
	}
	for alg, names := range cache {
		for _, name := range names {
			d, ok := blobDigest(alg, name)
			if !ok || s.index[d] != nil {
				s.report(s.toTrash(s.path("cache", alg, name)))
				continue
			}
			e := &entry{dgst: d, place: Cached, size: -1}
			s.put(e)
			s.keep(e)
		}
	}
	for alg, names := range sums {
		for _, name := range names {
			hex, bad := strings.CutSuffix(name, ".bad")
			d, ok := blobDigest(alg, hex)
			e := s.index[d]
			switch {
			case !ok || e == nil:
				s.junk = append(s.junk, s.path("swarm/sums", alg, name))
			case bad:
				if s.cfg.Wrong != nil && e.place == Committed {
					e.wrong = readWrong(s.path("swarm/sums", alg, name))
				}
				e.bad = len(e.wrong) == 0
			default:
				e.sums = true
			}
		}
	}
	for alg, names := range labels {
		for _, name := range names {
			d, ok := blobDigest(alg, name)
			if e := s.index[d]; !ok || e == nil || e.place != Committed {
				_ = disk.Remove(s.path("swarm/labels", alg, name))
			} else {
				s.labels.known(d)
			}
		}
	}
	s.loadPartials(parts)
	s.unsized = make([]digest.Digest, 0, len(s.index))
	for _, place := range []Presence{Cached, Committed} { // eviction needs those of cache/ first
		for d, e := range s.index {
			if e.place == place {
				s.unsized = append(s.unsized, d)
			}
		}
	}
	return nil
}

func (s *Store) loadPartials(names []string) {
	have := make(map[string]bool, len(names))
	for _, name := range names {
		have[name] = true
	}
	whole := func(id piece.ID) bool {
		e := s.index[digest.Digest(id.Digest())]
		return e != nil && !e.bad
	}
	for _, name := range names {
		base, isData := strings.CutSuffix(name, ".data")
		base, isMap := strings.CutSuffix(base, ".map")
		id, ok := parsePartial(base)
		switch {
		case !ok || !isData && !isMap:
			s.junk = append(s.junk, s.path("swarm/partial", name))
		case isMap:
			if !have[base+".data"] || whole(id) {
				_ = disk.Remove(s.path("swarm/partial", name))
			}
		case !have[base+".map"] || whole(id):
			s.report(s.toTrash(s.path("swarm/partial", name)))
		default:
			p := &partial{id: id, bytes: allocated(s.partialPath(id, ".data"))}
			if fi, err := os.Stat(s.path("swarm/partial", base+".map")); err == nil {
				p.used = fi.ModTime()
			}
			s.parts[id] = p
			s.keep(p)
		}
	}
}
