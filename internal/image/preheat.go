package image

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// arch is the architecture of images for this machine.
const arch = runtime.GOARCH

// Preheater has nodes fetch blobs; a tracker.Control does.
type Preheater interface {
	Preheat(ctx context.Context, r tracker.PreheatRequest, told func(tracker.Progress)) (tracker.Progress, error)
}

// Preheated is how a Preheat ended, or how far it is. Sizes are in bytes.
type Preheated struct {
	Blobs  int               `json:"blobs"`
	Nodes  int               `json:"nodes"`
	Done   int               `json:"done"`
	Failed map[string]string `json:"failed,omitempty"` // nodes to what is wrong there
	Bytes  int64             `json:"bytes"`            // on all nodes
	Total  int64             `json:"total"`
}

// Preheat has the nodes of r fetch blobs, in portions that a tracker takes at once,
// and calls told with how that goes. A node that failed is not an error, but is in
// the result. If no node matches r, that is an error.
func Preheat(ctx context.Context, t Preheater, blobs []piece.ID, r tracker.PreheatRequest, told func(Preheated)) (Preheated, error) {
	p := Preheated{Blobs: len(blobs), Failed: map[string]string{}}
	if len(blobs) == 0 {
		return p, errors.New("the image has no blob that nodes could fetch")
	}
	for portion := range slices.Chunk(blobs, trackerpb.MaxBatch) {
		r.Blobs = portion
		before := p
		add := func(now tracker.Progress) {
			for _, n := range now.Results {
				if n.Error != "" {
					p.Failed[n.Node] = n.Error
				}
			}
			p.Nodes, p.Done = now.Nodes, now.Done
			p.Bytes, p.Total = before.Bytes+now.Bytes, before.Total+now.Total
		}
		last, err := t.Preheat(ctx, r, func(now tracker.Progress) {
			add(now)
			if told != nil {
				now := p
				now.Failed = maps.Clone(p.Failed)
				told(now)
			}
		})
		if err != nil {
			return p, err
		}
		add(last)
		if p.Nodes == 0 {
			return p, errors.New("no connected node matches")
		}
	}
	p.Done = p.Nodes - len(p.Failed)
	return p, nil
}
