package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	reference "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
)

// The fake index keeps sources of tags beside them.

func (x *fakeIndex) TagState(ctx context.Context, repo, name string) (index.Tag, error) {
	t, err := x.Tag(ctx, repo, name)
	x.mu.Lock()
	defer x.mu.Unlock()
	s, ok := x.sources[repo+":"+name]
	if err != nil && ok {
		return index.Tag{Repository: repo, Name: name, Cluster: s.Cluster, Stamp: s.Stamp, Deleted: true}, nil
	}
	t.Cluster, t.Stamp = s.Cluster, s.Stamp
	return t, err
}

// come reports whether what comes is later, and notes it.
func (x *fakeIndex) come(repo, name string, from index.Source) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	is := x.sources[repo+":"+name]
	if !from.Later(is) {
		return false
	}
	if x.sources == nil {
		x.sources = map[string]index.Source{}
	}
	x.sources[repo+":"+name] = from
	return true
}

func (x *fakeIndex) PutTagFrom(ctx context.Context, repo, name string, d ocispec.Descriptor, from index.Source) (index.Tag, error) {
	if x.come(repo, name, from) {
		if _, err := x.PutTag(ctx, repo, name, d); err != nil {
			return index.Tag{}, err
		}
	}
	t, err := x.TagState(ctx, repo, name)
	t.Superseded = t.Source() != from
	return t, err
}

func (x *fakeIndex) DeleteTagFrom(ctx context.Context, repo, name string, from index.Source) (index.Tag, error) {
	if x.come(repo, name, from) {
		_ = x.DeleteTag(ctx, repo, name)
	}
	t, err := x.TagState(ctx, repo, name)
	t.Superseded = t.Source() != from
	return t, err
}

// What comes from another cluster has a time of its own, for users who may say so.
func TestSources(t *testing.T) {
	g := newGateway(t, func(c *Config) {
		c.Cluster = "here"
		c.Rules = append(c.Rules, RuleConfig{Users: []string{"carol"}, Namespaces: []string{"team/.*"},
			Actions: []string{"pull", "push", "replicate"}})
	})
	g.image("alice", "team/app:first")
	_, raw := g.do("alice", "GET", "/v2/team/app/manifests/first", "")
	stamp := index.Stamp(time.Now())
	from := func(n uint64) string { return index.Source{Cluster: "west", Stamp: stamp + n}.String() }
	const path = "/v2/team/app/manifests/v1"
	for _, tt := range []struct {
		name, user, method, source string
		status                     int
		superseded                 bool
		there                      bool // the tag, afterwards
	}{
		{"not for everybody", "alice", "PUT", from(9), 403, false, false},
		{"no source", "carol", "PUT", "west", 400, false, false},
		{"pushed", "carol", "PUT", from(9), 201, false, true},
		{"again", "carol", "PUT", from(9), 201, false, true},
		{"an earlier deletion", "carol", "DELETE", from(1), 202, true, true},
		{"a deletion is not for everybody", "alice", "DELETE", from(10), 403, false, true},
		{"deleted", "carol", "DELETE", from(10), 202, false, false},
		{"deleted already", "carol", "DELETE", from(11), 202, false, false},
		{"an earlier one comes late", "carol", "PUT", from(9), 201, true, false},
	} {
		header := []string{index.HeaderSource, tt.source}
		body := ""
		if tt.method == "PUT" {
			body = raw
		}
		resp, text := g.do(tt.user, tt.method, path, body, header...)
		if resp.StatusCode != tt.status || (resp.Header.Get(index.HeaderSuperseded) != "") != tt.superseded {
			t.Errorf("%s: %d, superseded %q: %s", tt.name, resp.StatusCode, resp.Header.Get(index.HeaderSuperseded), text)
		}
		resp, _ = g.do("carol", "HEAD", path, "")
		if (resp.StatusCode == 200) != tt.there || resp.Header.Get(index.HeaderSource) != "" {
			t.Errorf("%s: afterwards %d, %v", tt.name, resp.StatusCode, resp.Header)
		}
	}
	// Whoever asks hears which write it was, of a deletion, too.
	resp, _ := g.do("carol", "HEAD", path, "", index.HeaderSource, "?")
	if resp.StatusCode != 404 || resp.Header.Get(index.HeaderSource) != from(11) {
		t.Errorf("%d, %q, want %q", resp.StatusCode, resp.Header.Get(index.HeaderSource), from(11))
	}
	for user, want := range map[string]string{"carol": "here", "": ""} {
		if resp, _ := g.do(user, "GET", "/v2/", ""); resp.Header.Get(index.HeaderCluster) != want {
			t.Errorf("%q hears that this is cluster %q", user, resp.Header.Get(index.HeaderCluster))
		}
	}
}

// image pushes one as a user.
func (g *gateway) image(as, name string) {
	g.t.Helper()
	img, err := random.Image(1000, 1)
	if err != nil {
		g.t.Fatal(err)
	}
	ref, err := reference.ParseReference(strings.TrimPrefix(g.url, "http://") + "/" + name)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: as, Password: "pw-" + as})); err != nil {
		g.t.Fatal(err)
	}
}
