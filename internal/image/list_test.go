package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

func TestListInspect(t *testing.T) {
	reg := newRegistry(t, nil)
	c := newClient(t, Config{})
	one, two := newLayout(t, item{index: multi(t)}, ""), newLayout(t, item{image: oneImage(t, "amd64")}, "")
	copyTo(t, c, one, reg+"/a:multi", Options{})
	copyTo(t, c, two, reg+"/a:single", Options{})
	pushed := copyTo(t, c, two, reg+"/b:single", Options{})
	repos, more, err := c.Repositories(t.Context(), reg, 10)
	slices.Sort(repos) // this registry has them in no order
	if err != nil || more || !slices.Equal(repos, []string{"a", "b"}) {
		t.Errorf("repositories %v, %v, %v", repos, more, err)
	}
	if repos, more, err := c.Repositories(t.Context(), reg, 1); err != nil || !more || len(repos) != 1 {
		t.Errorf("repositories %v, %v, %v", repos, more, err)
	}
	tags, more, err := c.Tags(t.Context(), reg+"/a", 10)
	if err != nil || more || len(tags) != 2 || tags[0].Name != "multi" || len(tags[0].Platforms) != 2 ||
		tags[1].Digest != pushed.Digest || tags[1].Size != pushed.Size {
		t.Errorf("tags %+v, %v, %v", tags, more, err)
	}
	if _, _, err := c.Tags(t.Context(), reg+"/nothing", 10); err == nil {
		t.Error("tags of nothing")
	}

	m, err := c.Inspect(t.Context(), Place{Kind: Registry, Ref: mustRef(t, reg+"/a:multi")})
	if err != nil || len(m.Manifests) != 2 || m.Manifests[1].Platform != "linux/arm64" || len(m.Manifests[1].Layers) != layers ||
		m.Manifests[1].Config == nil {
		t.Fatalf("%+v, %v", m, err)
	}
	who := members{m.Manifests[0].Layers[0].Digest: {{Node: "n1", Complete: true}, {Node: "n2", Partial: true}, {Node: "n3", Complete: true}}}
	if err := m.Locate(t.Context(), who); err != nil {
		t.Fatal(err)
	}
	if got := m.Manifests[0].Layers[0].Nodes; !slices.Equal(got, []string{"n1", "n3"}) {
		t.Errorf("nodes %v", got)
	}
	if got := m.Manifests[0].Layers[1].Nodes; got == nil || len(got) != 0 {
		t.Errorf("nodes %v", got)
	}

	arm, err := ParsePlatform("linux/arm64/v8")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Select(arm); err == nil {
		t.Error("selected a variant that is not there")
	}
	arm.Variant = ""
	images, err := m.Select(arm)
	if err != nil || len(images) != 1 {
		t.Fatalf("%v, %v", images, err)
	}
	ids, err := Blobs(images...)
	if err != nil || len(ids) != layers+1 || ids[0].Digest() != m.Manifests[1].Config.Digest ||
		ids[1].Digest() != m.Manifests[1].Layers[0].Digest {
		t.Errorf("blobs %v, %v", ids, err)
	}
	if all, err := m.Select(); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	for _, bad := range []string{"linux", "", "linux/amd64/a/b"} {
		if _, err := ParsePlatform(bad); err == nil {
			t.Errorf("%q is a platform", bad)
		}
	}
}

type members map[string][]tracker.Member

func (m members) Members(_ context.Context, id piece.ID) ([]tracker.Member, error) {
	return m[id.Digest()], nil
}

// preheater finishes a portion at once; node "bad" fails in all of them.
type preheater struct {
	nodes []string
	got   []piece.ID
	err   error
}

func (p *preheater) Preheat(_ context.Context, r tracker.PreheatRequest, told func(tracker.Progress)) (tracker.Progress, error) {
	if len(r.Blobs) > trackerpb.MaxBatch {
		return tracker.Progress{}, errors.New("too many")
	}
	p.got = append(p.got, r.Blobs...)
	last := tracker.Progress{Nodes: len(p.nodes), Total: int64(len(r.Blobs))}
	for _, n := range p.nodes {
		now := last
		now.Results = []tracker.NodeResult{{Node: n}}
		if n == "bad" {
			now.Results[0].Error = "no space"
			last.Failed++
		} else {
			last.Done++
			last.Bytes += int64(len(r.Blobs))
		}
		now.Done, now.Failed = last.Done, last.Failed
		told(now)
	}
	return last, p.err
}

func TestPreheat(t *testing.T) {
	var blobs []piece.ID
	for i := range trackerpb.MaxBatch + 5 {
		id, err := piece.ParseID(fmt.Sprintf("sha256:%064x", i+1), 10)
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, id)
	}
	f := &preheater{nodes: []string{"a", "bad", "c"}}
	calls := 0
	p, err := Preheat(t.Context(), f, blobs, tracker.PreheatRequest{}, func(Preheated) { calls++ })
	if err != nil || p.Nodes != 3 || p.Done != 2 || p.Failed["bad"] != "no space" || len(p.Failed) != 1 || p.Blobs != len(blobs) ||
		p.Bytes != 2*int64(len(blobs)) || p.Total != int64(len(blobs)) {
		t.Errorf("%+v, %v", p, err)
	}
	if !slices.Equal(f.got, blobs) || calls != 6 {
		t.Errorf("%d blobs, %d calls", len(f.got), calls)
	}
	if _, err := Preheat(t.Context(), &preheater{}, blobs[:1], tracker.PreheatRequest{}, nil); err == nil {
		t.Error("no node matches, and no error")
	}
	away := &preheater{nodes: []string{"a"}, err: errors.New("away")}
	if _, err := Preheat(t.Context(), away, blobs[:1], tracker.PreheatRequest{}, nil); err == nil {
		t.Error("the tracker failed, and no error")
	}
}
