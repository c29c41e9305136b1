package tracker

import (
	"testing"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// TestOffers: what a client says of 1,500 complete blobs, and one it has a part of, to a
// tracker that answers offers, and to one that does not.
func TestOffers(t *testing.T) {
	const complete, vanished = 1500, 3
	id := func(n int) piece.ID {
		id := piece.ID{Alg: piece.SHA256, Size: 1}
		id.Sum[0], id.Sum[1] = byte(n), byte(n>>8)
		return id
	}
	start := func(features uint64) (*Client, *link, func() (announced, parts, offers int)) {
		c := New(Config{}, nil)
		c.setNames([]string{"a:1"})
		for n := range complete {
			c.AnnounceComplete(id(n), nil)
		}
		c.Announce(id(complete), StatePartial)
		l := c.links["a:1"]
		c.linkUp(l, &trackerpb.Welcome{Features: features})
		return c, l, func() (announced, parts, offers int) {
			for m := c.collect(l); m != nil; m = c.collect(l) {
				if err := trackerpb.CheckBatch(m); err != nil {
					t.Fatal(err)
				}
				for _, v := range m.Inventory {
					announced += v.Blobs.Len()
				}
				for _, a := range m.Announces {
					parts += int(a.State)
				}
				offers += len(m.Offers)
			}
			return announced, parts, offers
		}
	}

	_, _, said := start(0)
	if announced, parts, offers := said(); announced != complete || parts != 1 || offers != 0 {
		t.Errorf("to a tracker without offers: %d announced, %d in part, %d offers", announced, parts, offers)
	}

	c, l, said := start(trackerpb.FeatureOffers)
	if announced, parts, offers := said(); announced != 0 || parts != 1 || offers != 2 {
		t.Fatalf("before an answer: %d announced, %d in part, %d offers, want 0, 1 and 2", announced, parts, offers)
	}
	first, second := l.offered[0], l.offered[1]
	if len(first)+len(second) != complete {
		t.Fatalf("%d and %d blobs are offered, of %d", len(first), len(second), complete)
	}
	c.Announce(first[vanished], StateGone)
	accept := &trackerpb.Accept{AgainMs: 60_000}
	for i := range 10 {
		accept.Set(i)
	}
	accept.Set(len(first) + 7) // which was not offered
	c.receive(l, &trackerpb.ToAgent{Accepts: []*trackerpb.Accept{accept}})
	if announced, parts, offers := said(); announced != 9 || parts != 0 || offers != 0 {
		t.Errorf("10 accepted, one of which is gone: %d announced, %d in part, %d offers", announced, parts, offers)
	}
	c.receive(l, &trackerpb.ToAgent{Accepts: []*trackerpb.Accept{{AgainMs: 120_000}, {}}}) // one answer too many
	if announced, _, offers := said(); announced != 0 || offers != 0 {
		t.Errorf("none accepted: %d announced, %d offers", announced, offers)
	}
	// What was not accepted is not announced if it is told anew, and offered when its time has come.
	c.AnnounceComplete(second[0], nil)
	if announced, _, _ := said(); announced != 0 {
		t.Error("announced although it is enough")
	}
	c.tick(l.enoughNext)
	if _, _, offers := said(); offers != 1 || len(l.offered) != 1 || len(l.offered[0]) != len(first)-10 {
		t.Errorf("after a minute: %d offers, %d blobs; want one of %d", offers, len(l.offered[0]), len(first)-10)
	}
}
