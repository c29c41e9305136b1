package indexd

import (
	"bufio"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/indexd/replicate"
)

// keys lists what is in the storage below a prefix.
func (w *world) keys(prefix string) []string {
	w.t.Helper()
	page, _, err := w.counts.List(w.t.Context(), prefix, "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, info := range page {
		all = append(all, strings.TrimPrefix(info.Key, prefix))
	}
	return all
}

func (w *world) rule(r index.Rule) {
	w.t.Helper()
	if err := w.outbox.SetRule(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
}

func ruleFor(name string, namespaces ...string) index.Rule {
	return index.Rule{Name: name, URL: "https://registry.example", Namespaces: namespaces}
}

// Of two writes of a tag that come from two clusters the later one counts, in whatever order they come; each is written once.
func TestTagsFromElsewhere(t *testing.T) {
	ctx := t.Context()
	now := time.Now()
	early, late := index.Source{Cluster: "a", Stamp: index.Stamp(now)}, index.Source{Cluster: "b", Stamp: index.Stamp(now) + 1}
	for _, order := range [][]index.Source{{early, late}, {late, early}, {late, late, early, late}} {
		w := newWorld(t)
		of := map[index.Source]ocispec.Descriptor{early: w.image("r", "early"), late: w.image("r", "late")}
		for _, from := range order {
			got, err := w.PutTagFrom(ctx, "r", "v", of[from], "x"+w.newID(), from)
			if err != nil || got.Superseded != (got.Source() != from) {
				t.Errorf("%v: %+v, %v", from, got, err)
			}
		}
		got, err := w.Tag(ctx, "r", "v")
		if err != nil || got.Descriptor.Digest != of[late].Digest || got.Source() != late || got.Superseded {
			t.Errorf("%v: %+v, %v", order, got, err)
		}
		if got.Revision > 2 {
			t.Errorf("%v: revision %d: something was written twice", order, got.Revision)
		}
		// What is written here is later than what was there, although the clock says otherwise.
		w.now = func() time.Time { return now.Add(-time.Hour) }
		here, err := w.PutTag(ctx, "r", "v", of[early])
		if err != nil || !here.Source().Later(late) || here.Cluster != "test" {
			t.Errorf("%+v, %v", here, err)
		}
	}
}

func TestDeletedElsewhere(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	image := w.image("r", "a")
	stamp := index.Stamp(time.Now())
	from := func(n uint64) index.Source { return index.Source{Cluster: "a", Stamp: stamp + n} }
	// The deletion of what never came is remembered: what is earlier comes no more.
	if got, err := w.DeleteTagFrom(ctx, "r", "v", from(2)); err != nil || !got.Deleted || got.Superseded || got.Source() != from(2) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := w.PutTagFrom(ctx, "r", "v", image, "w1", from(1)); err != nil || !got.Superseded || !got.Deleted {
		t.Errorf("%+v, %v", got, err)
	}
	_, err := w.Tag(ctx, "r", "v")
	w.wantErr("deleted", err, errdefs.ErrNotFound)
	if got, err := w.TagState(ctx, "r", "v"); err != nil || !got.Deleted || got.Source() != from(2) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := w.PutTagFrom(ctx, "r", "v", image, "w2", from(3)); err != nil {
		t.Error(err)
	}
	if got, err := w.DeleteTagFrom(ctx, "r", "v", from(2)); err != nil || !got.Superseded || got.Deleted {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = w.TagState(ctx, "r", "never")
	w.wantErr("never written", err, errdefs.ErrNotFound)
}

// A clock that is far ahead would make a tag that nobody can write any more.
func TestStampsAhead(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	image := w.image("r", "a")
	ahead := index.Source{Cluster: "a", Stamp: index.Stamp(time.Now().Add(index.MaxAhead + time.Minute))}
	_, err := w.PutTagFrom(ctx, "r", "v", image, "w1", ahead)
	w.wantErr("ahead", err, errdefs.ErrConflict, "cluster a", "ahead of this index's clock")
	_, err = w.DeleteTagFrom(ctx, "r", "v", ahead)
	w.wantErr("ahead", err, errdefs.ErrConflict)
	ahead.Stamp = index.Stamp(time.Now().Add(index.MaxAhead - time.Minute))
	if _, err := w.PutTagFrom(ctx, "r", "v", image, "w2", ahead); err != nil {
		t.Error(err)
	}
}

// Intents are there before what they are for, for the revision that it becomes, and only for rules that want it.
func TestIntents(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	image := w.image("team/app", "a")
	w.rule(ruleFor("all", "team/.*"))
	some := ruleFor("some", "team/app")
	some.Tags, some.Deletes, some.NoReferrers, some.Forward = []string{"v[0-9]+"}, index.DeleteNone, true, true
	w.rule(some)
	w.rule(ruleFor("others", "other/.*"))

	var before []string // intents when the tag's object was written
	w.storage.Fail = func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWriteIf && key == tagKey("team/app", "v1") {
			before = w.keys(replicate.OutboxPrefix)
		}
		return nil
	}
	if _, err := w.PutTag(ctx, "team/app", "v1", image); err != nil {
		t.Fatal(err)
	}
	want := []string{"all/team/app/_tags/v1/1", "some/team/app/_tags/v1/1"}
	if !slices.Equal(before, want) {
		t.Errorf("intents %q before the tag, want %q", before, want)
	}
	w.storage.Fail = nil
	if err := w.DeleteTag(ctx, "team/app", "v1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutTag(ctx, "team/app", "latest", image); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutTagFrom(ctx, "team/app", "v2", image, "w", index.Source{Cluster: "west", Stamp: 1}); err != nil {
		t.Fatal(err)
	}
	want = []string{"all/team/app/_tags/latest/1", "all/team/app/_tags/v1/1", "all/team/app/_tags/v1/2",
		"some/team/app/_tags/v1/1", "some/team/app/_tags/v2/1"}
	if got := w.keys(replicate.OutboxPrefix); !slices.Equal(got, want) {
		t.Errorf("intents\n%q, want\n%q", got, want)
	}
	// What says something of an image: a manifest with a subject, and cosign's tags.
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Subject: &image,
		Config: w.blob("team/app", ocispec.MediaTypeImageConfig, "{}")}
	m.SchemaVersion = 2
	signature := w.put("team/app", w.bytes(m.MediaType, m))
	if got := w.keys(replicate.OutboxPrefix + "all/team/app/_manifests/"); !slices.Equal(got, []string{digestPath(signature.Digest) + "/1"}) {
		t.Errorf("intents of manifests: %q", got)
	}
	if got := w.keys(replicate.OutboxPrefix + "some/team/app/_manifests/"); got != nil {
		t.Errorf("intents of manifests for a rule without referrers: %q", got)
	}
}

// Nothing is written whose intent is not.
func TestNoIntentNoTag(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	image := w.image("r", "a")
	w.rule(ruleFor("all", ".*"))
	w.storage.Fail = func(op fetchertest.Op, key string) error {
		if strings.HasPrefix(key, replicate.OutboxPrefix) {
			return errors.New("no")
		}
		return nil
	}
	_, err := w.PutTag(ctx, "r", "v", image)
	w.wantErr("without an intent", err, errdefs.ErrUnavailable, "index/outbox/all/r/_tags/v/1")
	if o, _, err := w.readTag(ctx, "r", "v"); err != nil || o.Version != 0 {
		t.Errorf("%+v, %v", o, err)
	}
	// A rule of a later release is no reason to lose anything.
	w.storage.Fail = nil
	w.object("index/replication/rules/newer", `{"version":2}`)
	x := w.another()
	if _, err := x.PutTag(ctx, "r", "v", image); err != nil {
		t.Fatal(err)
	}
	if got := w.keys(replicate.OutboxPrefix + "newer/"); !slices.Equal(got, []string{"r/_tags/v/1"}) {
		t.Errorf("intents for a rule that cannot be read: %q", got)
	}
}

// A storage that the release before wrote, without stamps, is read and written on.
func TestStorageWithoutStamps(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	f, err := os.Open("testdata/storage-without-stamps.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key := lines.Text()
		lines.Scan()
		w.object(key, lines.Text()+"\n")
	}
	const repo = "team/my-app.v2"
	is, err := w.Tag(ctx, repo, "v1")
	if err != nil || is.Revision != 2 || is.Stamp != index.Stamp(is.Updated) {
		t.Fatalf("%+v, %v", is, err)
	}
	earlier, later := is.Source(), is.Source()
	earlier.Stamp--
	later.Stamp++
	if got, err := w.DeleteTagFrom(ctx, repo, "v1", earlier); err != nil || !got.Superseded {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := w.DeleteTagFrom(ctx, repo, "v1", later); err != nil || got.Superseded || got.Revision != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := w.TagState(ctx, repo, "old"); err != nil || !got.Deleted || got.Stamp == 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// What is kept for replication is nothing strange, and what is damaged of it is said.
func TestFsckKnowsReplication(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	image := w.image("team/app", "a")
	w.rule(ruleFor("all", ".*"))
	if _, err := w.PutTag(ctx, "team/app", "v1", image); err != nil {
		t.Fatal(err)
	}
	w.object("index/parked/all/team/app/_tags/v1", `{"version":1}`)
	w.object("index/replication/leases/all", `{"version":1}`)
	w.object("index/replication/walks/all", `{"version":1}`)
	found := func() (all []string) {
		err := w.Fsck(ctx, index.FsckOptions{Rate: 1e6}, func(e index.FsckEvent) error {
			if e.Finding != nil {
				all = append(all, e.Finding.Kind+" "+e.Finding.Key)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := found(); all != nil {
		t.Errorf("findings %q", all)
	}
	strange := []string{"index/outbox/all/team/app/_tags/v1", "index/outbox/all/team/app/_tags/v1/x", "index/parked/all/team/app/v1",
		"index/replication/rules/X", "index/replication/x/all"}
	for _, key := range strange[1:] {
		w.object(key, `{"version":1}`)
	}
	w.object("index/outbox/all/team/app/_manifests/"+digestPath(image.Digest)+"/1", "x")
	all := found()
	if len(all) != len(strange) {
		t.Errorf("findings %q", all)
	}
}

// Rules that are gone leave nothing, also what was written by an index that did not know yet.
func TestRulesGo(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	image := w.image("app", "a")
	w.rule(ruleFor("one", ".*"))
	w.rule(ruleFor("two", ".*"))
	if _, err := w.PutTag(ctx, "app", "v1", image); err != nil {
		t.Fatal(err)
	}
	if err := w.outbox.RemoveRule(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	w.wantErr("a rule that is gone", w.outbox.RemoveRule(ctx, "one"), errdefs.ErrNotFound)
	w.object("index/outbox/one/app/_tags/v2/1", `{"version":1}`)
	w.object("index/parked/zero/app/_tags/v2", `{"version":1}`)
	if err := w.outbox.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if got := w.keys(replicate.OutboxPrefix); !slices.Equal(got, []string{"two/app/_tags/v1/1"}) {
		t.Errorf("intents %q", got)
	}
	if got := w.keys(replicate.ParkedPrefix); got != nil {
		t.Errorf("parked %q", got)
	}
	st, err := w.outbox.Status(ctx)
	if err != nil || len(st.Rules) != 1 || st.Rules[0].Pending != 1 || st.Rules[0].Rule.Name != "two" {
		t.Errorf("%+v, %v", st, err)
	}
	w.object("index/parked/two/app/_tags/v1", `{"version":1,"revision":1,"reason":"denied","error":"no","since":"2026-01-02T03:04:05Z"}`)
	if st, err := w.outbox.Status(ctx); err != nil || st.Rules[0].Parked != 1 || st.Rules[0].ParkedOnes[0].Reason != "denied" {
		t.Errorf("%+v, %v", st, err)
	}
	if n, err := w.outbox.Retry(ctx, "two", index.RetryOptions{Tag: "v2"}); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := w.outbox.Retry(ctx, "two", index.RetryOptions{Repository: "app", Tag: "v1"}); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if got := w.keys(replicate.ParkedPrefix); got != nil {
		t.Errorf("parked %q", got)
	}
}
