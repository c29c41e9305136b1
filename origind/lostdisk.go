package origind

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// lostDisk has everybody know that a disk has failed.
func (s *server) lostDisk(d *oneDisk) {
	s.tasks.run(func(context.Context) {
		_, why := d.reason()
		s.member.lost(d.root, why, slices.Collect(maps.Keys(d.store.Whole())))
		s.uploads.lose(d.root)
		d.store.Blobs(func(id piece.ID, _ content.Presence) bool {
			if s.store.Presence(id) < content.Cached {
				s.seeder.gone(id)
			}
			return true
		})
	})
}

const (
	// lacksAtOnce bounds a turn.
	lacksAtOnce = 256
	// replacedEvery is how often it is looked whether lost disks are missed still.
	replacedEvery = time.Second
)

// lost notes that a disk has failed. What of its blobs is to be kept here is wrong as a whole from now on, so that the ring
// counts it no more, does not say that it is nowhere, and has it brought here anew.
func (m *member) lost(root string, why error, all []digest.Digest) {
	m.do(func(*batch) {
		if err := m.ledger.leave(root, why); err != nil {
			log.G(m.tasks.ctx).WithError(err).WithField("disk", root).Error("cannot keep that a disk has failed")
		}
	})
	m.lacks(all)
}

// lacks tells the ring which of some blobs are to be kept here, and are not here.
func (m *member) lacks(all []digest.Digest) {
	n := min(len(all), lacksAtOnce)
	m.do(func(b *batch) {
		for _, d := range all[:n] {
			if rec := m.record(d); rec != nil && m.ring.Pinned(d) && m.bytes.PresenceOf(d) < content.Cached {
				b.step(ringstate.EvBad{Digest: d, Pieces: m.copies.wrong(d, rec.Size)})
			}
		}
		if n < len(all) {
			m.lacks(all[n:])
		}
		m.lacking = n < len(all)
	})
}

// replaced looks whether all that lost disks had has its copies elsewhere. Until then a start takes what is to be kept, and is not
// here, for lost.
func (m *member) replaced(now time.Time) error {
	if !m.ledger.missing() || m.lacking || now.Sub(m.looked) < replacedEvery {
		return nil
	}
	m.looked = now
	if !m.ring.Serving() || m.ring.Short().Under > 0 {
		return nil
	}
	log.G(m.tasks.ctx).Info("what lost disks had has its copies elsewhere")
	return m.ledger.replaced()
}
