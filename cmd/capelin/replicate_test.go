package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/capelin-io/capelin/control/index"
)

// site is a cluster of one server.
type site struct {
	t    *testing.T
	name string
	addr string
	path string // of the configuration
	run  *daemonRun
}

// sites counts those of this process: each has an address of its own.
var sites atomic.Int32

func newSite(t *testing.T, name string) *site {
	pid := os.Getpid()
	addr := fmt.Sprintf("127.%d.%d.%d", 200+int(sites.Add(1))%50, pid>>8%256, 1+pid%254)
	s := &site{t: t, name: name, addr: addr}
	s.path = file(t, fmt.Sprintf("cluster = %q\naddress = %q\ndata = %q\nmetrics = \"\"\n", name, s.addr, filepath.Join(t.TempDir(), "data")))
	s.start()
	return s
}

func (s *site) start() {
	s.t.Helper()
	s.run = startWith(s.t, nil, "server is up", "server", "--config", s.path)
}

func (s *site) ref(image string) name.Reference {
	s.t.Helper()
	r, err := name.ParseReference(s.addr+":7500/"+image, name.Insecure)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *site) push(image string, img v1.Image) {
	s.t.Helper()
	if err := remote.Write(s.ref(image), img, remote.WithContext(s.t.Context())); err != nil {
		s.t.Fatalf("pushing %s to %s: %v", image, s.name, err)
	}
}

// digest is what a tag names; "": nothing.
func (s *site) digest(image string) string {
	d, err := remote.Head(s.ref(image))
	if err != nil {
		return ""
	}
	return d.Digest.String()
}

// await waits for a tag to name something; "": nothing.
func (s *site) await(image, digest string) {
	s.t.Helper()
	s.awaitThat(image+" is "+digest, func() bool { return s.digest(image) == digest })
}

func (s *site) awaitThat(what string, is func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 4*time.Minute)
	defer cancel()
	for !is() {
		select {
		case <-ctx.Done():
			out, _, err := s.replicate("status")
			s.t.Fatalf("%s: it never happened that %s\n%s, %v", s.name, what, out, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// whole reads all of an image.
func (s *site) whole(image string) {
	s.t.Helper()
	d, err := remote.Get(s.ref(image))
	if err != nil {
		s.t.Fatal(err)
	}
	var walk func(idx v1.ImageIndex)
	check := func(img v1.Image, err error) {
		if err == nil {
			var layers []v1.Layer
			if layers, err = img.Layers(); err == nil {
				_, err = img.RawConfigFile()
			}
			for _, l := range layers {
				if r, lerr := l.Compressed(); lerr != nil {
					err = lerr
				} else {
					r.Close()
				}
			}
		}
		if err != nil {
			s.t.Errorf("%s at %s: %v", image, s.name, err)
		}
	}
	walk = func(idx v1.ImageIndex) {
		m, err := idx.IndexManifest()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, d := range m.Manifests {
			if d.MediaType.IsIndex() {
				child, err := idx.ImageIndex(d.Digest)
				if err != nil {
					s.t.Fatal(err)
				}
				walk(child)
				continue
			}
			check(idx.Image(d.Digest))
		}
	}
	if d.MediaType.IsIndex() {
		idx, err := d.ImageIndex()
		if err != nil {
			s.t.Fatal(err)
		}
		walk(idx)
		return
	}
	check(d.Image())
}

func (s *site) replicate(args ...string) (string, string, error) {
	return execute(s.t, append([]string{"index", "replicate", "--index", s.addr + ":7490"}, args...)...)
}

// rule brings everything to another site.
func (s *site) rule(to *site, args ...string) {
	s.t.Helper()
	if _, _, err := s.replicate(append([]string{"rule", "set", "to-" + to.name, "http://" + to.addr + ":7500"}, args...)...); err != nil {
		s.t.Fatal(err)
	}
}

func anImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 2)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(t *testing.T, i interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := i.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// Two clusters: what is pushed at one is pulled at the other, overwritten, deleted, signed, an index of indexes; also while one of them
// is away.
func TestReplication(t *testing.T) {
	a, b := newSite(t, "a"), newSite(t, "b")
	first, second := anImage(t), anImage(t)
	a.push("team/app:before", first) // the rule
	a.rule(b)
	b.await("team/app:before", digestOf(t, first))
	a.push("team/app:v1", first)
	b.await("team/app:v1", digestOf(t, first))
	b.whole("team/app:v1")
	a.push("team/app:v1", second)
	b.await("team/app:v1", digestOf(t, second))
	if err := remote.Delete(a.ref("team/app:v1")); err != nil {
		t.Fatal(err)
	}
	b.await("team/app:v1", "")
	if b.digest("team/app:before") == "" {
		t.Error("another tag is gone")
	}

	// An index of an index, with a signature of an image in it, and one by a tag.
	inner := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: first}, mutate.IndexAddendum{Add: second})
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: inner})
	if err := remote.WriteIndex(a.ref("team/app:multi"), outer); err != nil {
		t.Fatal(err)
	}
	b.await("team/app:multi", digestOf(t, outer))
	b.whole("team/app:multi")
	subject, err := remote.Head(a.ref("team/app@" + digestOf(t, second)))
	if err != nil {
		t.Fatal(err)
	}
	signature := mutate.Subject(mutate.MediaType(anImage(t), types.OCIManifestSchema1), *subject).(v1.Image)
	a.push("team/app@"+digestOf(t, signature), signature)
	b.await("team/app@"+digestOf(t, signature), digestOf(t, signature))
	b.awaitThat("the signature is listed", func() bool {
		idx, err := remote.Referrers(b.ref("team/app@" + digestOf(t, second)).(name.Digest))
		if err != nil {
			return false
		}
		m, err := idx.IndexManifest()
		return err == nil && len(m.Manifests) == 1 && m.Manifests[0].Digest.String() == digestOf(t, signature)
	})
	cosign := "team/app:" + strings.Replace(digestOf(t, first), ":", "-", 1) + ".sig"
	a.push(cosign, signature)
	b.await(cosign, digestOf(t, signature))

	// The other one is away: all comes when it is back, in its last state, and this one was restarted meanwhile.
	b.run.end(t)
	third := anImage(t)
	for i := range 10 {
		a.push(fmt.Sprintf("team/away:v%d", i), first)
		a.push(fmt.Sprintf("team/away:v%d", i), third)
	}
	a.run.end(t)
	a.start()
	b.start()
	for i := range 10 {
		b.await(fmt.Sprintf("team/away:v%d", i), digestOf(t, third))
	}
	b.whole("team/away:v0")
	a.awaitThat("nothing is pending", func() bool {
		out, _, err := a.replicate("status", "--json")
		var r index.Replication
		return err == nil && json.Unmarshal([]byte(out), &r) == nil && len(r.Rules) == 1 && r.Rules[0].Pending == 0 && r.Rules[0].Working
	})
	if out, _, err := a.replicate("verify", "to-b", "--deep"); err != nil || !strings.HasSuffix(out, " compared, 0 differ\n") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	// What is gone there is found, and brought again.
	if err := remote.Delete(b.ref("team/away@" + digestOf(t, third))); err != nil {
		t.Fatal(err)
	}
	if out, _, err := a.replicate("verify", "to-b"); err != nil || !strings.HasSuffix(out, " compared, 0 differ\n") {
		t.Errorf("it was deleted there, later than it was pushed here: %v\n%s", err, out)
	}
}

// Both bring all to each other: the later write is left at both, a deletion included.
func TestReplicationBothWays(t *testing.T) {
	a, b := newSite(t, "east"), newSite(t, "west")
	a.rule(b)
	b.rule(a, "--forward")
	one, two := anImage(t), anImage(t)
	a.push("app:v", one)
	b.await("app:v", digestOf(t, one))
	b.push("app:v", two)
	a.await("app:v", digestOf(t, two))
	if err := remote.Delete(a.ref("app:v")); err != nil {
		t.Fatal(err)
	}
	b.await("app:v", "")
	b.push("app:v", one)
	a.await("app:v", digestOf(t, one))
	for range 5 {
		a.push("app:both", one)
		b.push("app:both", two)
		a.awaitThat("both have one", func() bool { return a.digest("app:both") == b.digest("app:both") && a.digest("app:both") != "" })
	}
}

// A registry that refuses: what it refuses is parked, told with the reason, and goes through when it is tried again.
func TestReplicationParked(t *testing.T) {
	a, b := newSite(t, "a"), newSite(t, "a") // of one name
	a.push("app:v", anImage(t))
	a.rule(b)
	a.awaitThat("it is parked", func() bool {
		out, _, err := a.replicate("status")
		_, code := exit(err, nil)
		return code == 1 && strings.Contains(out, "to-a: app:v is parked since ") &&
			strings.Contains(out, "the other cluster has this one's name")
	})
	c := newSite(t, "c")
	a.rule2(c, "to-a")
	if out, _, err := a.replicate("retry", "to-a"); err != nil || !strings.HasPrefix(out, "1 ") && !strings.HasPrefix(out, "0 ") {
		t.Errorf("retry: %q, %v", out, err)
	}
	c.await("app:v", a.digest("app:v"))
	if out, _, err := a.replicate("rule", "ls"); err != nil || !strings.Contains(out, c.addr) {
		t.Errorf("rule ls: %q, %v", out, err)
	}
	if _, _, err := a.replicate("rule", "rm", "to-a"); err != nil {
		t.Error(err)
	}
	if out, _, err := a.replicate("status", "--json"); err != nil || !strings.Contains(out, `"rules": null`) {
		t.Errorf("status: %q, %v", out, err)
	}
	for _, bad := range [][]string{{"X", "https://x"}, {"x", "https://x/y"}, {"x", "https://x", "--namespace", "("}} {
		_, _, err := a.replicate(append([]string{"rule", "set"}, bad...)...)
		if _, code := exit(err, nil); code != 2 {
			t.Errorf("%v: %v", bad, err)
		}
	}
	_, _, err := a.replicate("rule", "set", "x", "https://x", "--token-file", "/no/such/file")
	if err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("a token that is not there: %v", err)
	}
}

func (s *site) rule2(to *site, rule string) {
	s.t.Helper()
	if _, _, err := s.replicate("rule", "set", rule, "http://"+to.addr+":7500"); err != nil {
		s.t.Fatal(err)
	}
}
