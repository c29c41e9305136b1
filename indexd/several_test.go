package indexd

import (
	"context"
	"flag"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/indexd/indexdtest"
)

var fullSize = flag.Bool("index.full", false, "64 writers and 1,000 writes instead of 16 and 150")

// Three indexes over one directory.
func TestSeveralIndexes(t *testing.T) {
	dir := t.TempDir()
	s := indexdtest.Several{
		Repository: killRepo, Writers: 16, Writes: 150,
		Start: func(t *testing.T, _ int) (string, func()) {
			v := startVictim(t, dir)
			return v.addr, v.kill
		},
		Push: func(ctx context.Context, c *index.Client) (manifests []ocispec.Descriptor, err error) {
			_, images := killOrigins()
			for _, image := range images {
				if err := pushImage(ctx, c, image); err != nil {
					return nil, err
				}
				manifests = append(manifests, image[len(image)-1])
			}
			return manifests, nil
		},
	}
	if *fullSize {
		s.Writers, s.Writes = 64, 1000
	}
	s.Run(t)
}
