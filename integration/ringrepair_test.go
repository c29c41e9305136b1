package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/integration/harness"
)

// pushed makes and pushes blobs, and waits until all owners have them.
func (r *rings) pushed(t *testing.T, n int, size int64) []*ringBlob {
	t.Helper()
	blobs := r.blobs(n, size)
	none(t, "pushes", each(blobs, 8, func(b *ringBlob) error { return push(r.ctx, r.client, b) }))
	r.whole(t)
	return blobs
}

// owned returns how many of the blobs a member owns among others.
func owned(m *harness.RingMember, among []*harness.RingMember, blobs []*ringBlob) (n int) {
	for _, b := range blobs {
		if slices.Contains(owners(among, b, 3), m) {
			n++
		}
	}
	return n
}

// One of five stays away, with its disk. The others make up for that without being asked anything, and copy what it had once.
func TestRingStaysAway(t *testing.T) {
	t.Parallel()
	r := newRing(t, 5, quick(map[string]string{"ring.probe": `"500ms"`, "ring.down": `"4s"`, "ring.gone": `"5s"`}))
	n, size := sized(40, 400), int64(1<<20)
	blobs := r.pushed(t, n, size)
	away, rest := r.ring.Members[2], slices.Delete(slices.Clone(r.ring.Members), 2, 3)
	bytes := int64(owned(away, r.ring.Members, blobs)) * size
	before := r.metric(t, "capelin_origin_ring_repair_bytes_total")
	had := get(away.Metric(r.ctx, "capelin_origin_ring_repair_bytes_total"))(t)
	away.Kill()
	for _, m := range rest {
		r.poll(t, "one member gone", func() bool { return r.state(m, away) == origin.RingGone })
	}
	gone := time.Now()
	r.whole(t)
	within(t, "whole without it", time.Since(gone), 10*time.Second+moving(bytes)*12/10)
	moved := r.metric(t, "capelin_origin_ring_repair_bytes_total") - (before - had)
	figure(t, "%d blobs of %d bytes, it had %d bytes: %.0f were copied, %.3f ×", n, size, bytes, moved, moved/float64(bytes))
	if moved > 1.05*float64(bytes) {
		t.Errorf("%.3f × the bytes that it had were copied", moved/float64(bytes))
	}
	r.exact(t, blobs, rest, 3)
}

// A fourth one joins while clients pull: it owns three quarters of all, nothing fails, and no blob has fewer copies meanwhile.
func TestRingJoins(t *testing.T) {
	t.Parallel()
	r := newRing(t, 3, quick(nil))
	n, size := sized(60, 600), int64(512<<10)
	blobs := r.pushed(t, n, size)
	l := r.begin(r.client, blobs, loadOptions{size: size, pullers: 2, pause: 20 * time.Millisecond})
	least := atomic.Int64{}
	least.Store(3)
	watching, stop := context.WithCancel(r.ctx)
	var watch errgroup.Group
	watch.Go(func() error {
		for watching.Err() == nil {
			least.Store(min(least.Load(), int64(r.fewest(blobs))))
		}
		return nil
	})
	m := get(r.ring.Add())(t)
	must(t, r.ring.Start(r.ctx, m))
	for _, o := range r.ring.Members {
		r.poll(t, "it is up", func() bool { return r.state(o, m) == origin.RingUp })
	}
	r.whole(t)
	pulls := l.done("pull")
	r.poll(t, "more pulls", func() bool { return l.done("pull") > pulls+10 })
	l.end()
	stop()
	must(t, watch.Wait())
	none(t, "pulls", l.failed)
	r.exact(t, blobs, r.ring.Members, 3)
	share := float64(owned(m, r.ring.Members, blobs)) / float64(n)
	figure(t, "a fourth member: it owns %.1f %% of %d blobs; %d pulls meanwhile, %d failed; %d copies at least", 100*share, n, l.done("pull"),
		len(l.failed), least.Load())
	if least.Load() < 3 || *ringFull && (share < 0.72 || share > 0.78) {
		t.Errorf("it owns %.1f %%, and a blob had %d copies", 100*share, least.Load())
	}
	none(t, "pulls from it", each(blobs, 4, func(b *ringBlob) error {
		if !slices.Contains(owners(r.ring.Members, b, 3), m) {
			return nil
		}
		return r.from(m, b)
	}))
}

// from reads a blob from one member, which asks no other one, and compares it.
func (r *rings) from(m *harness.RingMember, b *ringBlob) error {
	body, _, err := m.API().Open(r.ctx, b.ref(), 0, b.size)
	if err != nil {
		return err
	}
	defer body.Close()
	return b.same(body)
}

// One of four is drained, stopped and removed while clients pull: nothing is lost, and nothing fails.
func TestRingDrains(t *testing.T) {
	t.Parallel()
	r := newRing(t, 4, quick(nil))
	n, size := sized(40, 400), int64(1<<20)
	blobs := r.pushed(t, n, size)
	m, rest := r.ring.Members[3], r.ring.Members[:3]
	bytes := int64(owned(m, r.ring.Members, blobs)) * size
	l := r.begin(r.client, blobs, loadOptions{size: size, pullers: 1, pause: 50 * time.Millisecond})
	began := time.Now()
	get(r.capelin("origin", "drain", "--origin", m.Listen, "--wait"))(t)
	within(t, "drained", time.Since(began), 10*time.Second+moving(bytes)*12/10)
	if left := r.fewest(blobs); left < 3 {
		t.Errorf("a blob has %d copies", left)
	}
	must(t, m.Stop())
	must(t, m.Wipe())
	get(r.capelin("origin", "ring", "rm", m.Name, "--origin", rest[0].Listen))(t)
	for _, o := range rest {
		r.poll(t, "it is none any more", func() bool { st := r.state(o, m); return st == origin.RingRemoved || st == origin.RingDrained })
	}
	pulls := l.done("pull")
	r.poll(t, "more pulls", func() bool { return l.done("pull") > pulls+10 })
	l.end()
	none(t, "pulls", l.failed)
	r.whole(t)
	r.exact(t, blobs, rest, 3)
	none(t, "pulls afterwards", each(blobs, 8, func(b *ringBlob) error { return pull(r.ctx, r.client, b) }))
	figure(t, "drained of %d bytes: %d pulls meanwhile, %d failed, 0 lost", bytes, l.done("pull"), len(l.failed))
}

// A byte of what a member keeps is another one than it was. It is never served. Whoever reads it finds it, or the scrub does, and another
// member's replaces it.
func TestRingWrongByte(t *testing.T) {
	t.Parallel()
	r := newRing(t, 3, quick(map[string]string{"ring.scrub": `"1GB/s"`}))
	b := r.pushed(t, 1, sized[int64](24<<20, 200<<20))[0]
	m := r.ring.Members[1]
	path := filepath.Join(m.Root, "blobs", "sha256", b.digest.Encoded())
	f := get(os.OpenFile(path, os.O_RDWR, 0))(t)
	defer f.Close()
	one := make([]byte, 1)
	at := b.size / 2
	get(f.ReadAt(one, at))(t)
	one[0] ^= 1
	get(f.WriteAt(one, at))(t)
	began := time.Now()
	right, wrong, refused := 0, 0, 0
	r.poll(t, "the byte replaced", func() bool {
		switch err := r.from(m, b); {
		case errors.Is(err, errOther):
			wrong++
		case err != nil:
			refused++
		default:
			right++
		}
		f, err := os.Open(path)
		if err != nil {
			return false
		}
		defer f.Close()
		return b.same(f) == nil
	})
	within(t, "replaced", time.Since(began), 20*time.Second+time.Duration(b.size)) // a pass is a pause and its bytes
	figure(t, "a flipped byte: read %d times rightly, refused %d times, served %d times", right, refused, wrong)
	if wrong > 0 {
		t.Errorf("wrong bytes were served %d times", wrong)
	}
	none(t, "pulls", each([]*ringBlob{b}, 1, func(b *ringBlob) error { return r.from(m, b) }))
	if n := r.metric(t, "capelin_origin_ring_scrub_bad_total"); n == 0 {
		t.Error("nobody has found anything wrong")
	}
}

// The member that takes an upload dies in the middle. It goes on at its mirror.
func TestRingResumes(t *testing.T) {
	t.Parallel()
	r := newRing(t, 3, quick(nil))
	b := r.blob(sized[int64](40<<20, 1<<30))
	id := get(r.client.StartUpload(r.ctx, ringNamespace, b.digest))(t)
	at := slices.IndexFunc(r.ring.Members, func(m *harness.RingMember) bool {
		base := sha256.Sum256([]byte("http://" + m.Listen))
		return strings.HasPrefix(id, hex.EncodeToString(base[:4]))
	})
	primary := r.ring.Members[at]
	src := &breaking{r: b.open(0), at: b.size * 6 / 10, breaks: primary.Kill}
	_, err := r.client.Append(r.ctx, id, 0, src)
	if err == nil || primary.Running() {
		t.Fatalf("the upload was not at %s: %v", primary.Name, err)
	}
	sent, taken := src.n, int64(0) // sockets on the way are full of what nobody has taken
	for _, f := range get(filepath.Glob(filepath.Join(primary.Root, "uploads", "*", "data")))(t) {
		taken = get(os.Stat(f))(t).Size()
	}
	off := get(r.client.UploadOffset(r.ctx, id))(t)
	must(t, pushOn(r.ctx, r.client, id, b, off))
	figure(t, "an upload of %d bytes whose primary died when it had %d, and %d were sent: it went on at %d, "+
		"%.1f MiB behind the primary, %.1f MiB were sent again",
		b.size, taken, sent, off, float64(taken-off)/(1<<20), float64(sent-off)/(1<<20))
	if off == 0 || taken == 0 || *ringFull && taken-off > 8<<20 {
		t.Errorf("%d bytes that the primary had are lost", taken-off)
	}
	must(t, pull(r.ctx, r.client, b))
	if n := r.copies(b); n < 2 {
		t.Errorf("it has %d copies", n)
	}
}

// breaking calls breaks when so many bytes were read from it.
type breaking struct {
	r      io.Reader
	n, at  int64
	breaks func()
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.n >= b.at && b.breaks != nil {
		b.breaks()
		b.breaks = nil
	}
	n, err := b.r.Read(p)
	b.n += int64(n)
	return n, err
}

// A push to a ring takes no longer than to an origin that is alone, although it waits for two copies.
func TestRingPush(t *testing.T) {
	t.Parallel()
	size := sized[int64](16<<20, 200<<20)
	var took [2]time.Duration
	for i, members := range []int{1, 5} {
		keys := quick(nil)
		if members == 1 {
			keys["ring.members"] = "[]"
		}
		r := newRing(t, members, keys)
		warm := r.blob(1 << 20)
		must(t, push(r.ctx, r.client, warm))
		for range sized(1, 3) {
			b := r.blob(size)
			began := time.Now()
			must(t, push(r.ctx, r.client, b))
			if d := time.Since(began); took[i] == 0 || d < took[i] {
				took[i] = d
			}
			if n := r.copies(b); n < min(members, 2) {
				t.Errorf("acknowledged with %d copies", n)
			}
		}
	}
	ratio := took[1].Seconds() / took[0].Seconds()
	figure(t, "a push of %d bytes: %.2f s to a ring of five, %.2f s to a single origin, %.3f ×",
		size, took[1].Seconds(), took[0].Seconds(), ratio)
	if *ringFull && ratio > 1.15 {
		t.Errorf("a push to a ring takes %.3f × as long", ratio)
	}
}

// What was pushed while the backend is away is written once when it is back, although all have restarted meanwhile.
func TestRingBackendAway(t *testing.T) {
	t.Parallel()
	ctx, c := newCluster(t)
	dir := filepath.Join(c.Dir, "backend")
	toml := fmt.Sprintf("[[backend]]\nname = \"main\"\nnamespaces = [\".*\"]\nkind = \"file\"\n[backend.file]\npath = %q\n", dir)
	r := startRing(ctx, t, c, harness.RingOptions{
		Members: 3, Rate: rate, TOML: toml, Keys: quick(map[string]string{"queue.max_backoff": `"2s"`}),
	})
	away := filepath.Join(dir, "blobs") // no directory can be made there
	must(t, os.WriteFile(away, nil, 0o644))
	n, size := sized(60, 2000), int64(128<<10)
	blobs := r.blobs(n, size)
	none(t, "pushes", each(blobs, 8, func(b *ringBlob) error { return push(r.ctx, r.client, b) }))
	for _, m := range r.ring.Members {
		m.Kill()
	}
	must(t, r.ring.Start(r.ctx))
	for _, m := range r.ring.Members {
		r.poll(t, m.Name+" up", func() bool { return r.state(m, m) == origin.RingUp })
	}
	must(t, os.Remove(away))
	r.poll(t, "nothing pinned any more", func() bool { return r.pinned() == 0 })
	objects := 0
	must(t, filepath.WalkDir(away, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && len(d.Name()) == 64 {
			objects++
		}
		return err
	}))
	written := r.metric(t, "capelin_origin_backend_write_bytes_total") / float64(int64(n)*size)
	figure(t, "%d blobs of %d bytes pushed while the backend was away, all restarted: %.3f × the bytes written, %d objects",
		n, size, written, objects)
	if written > 1.02 || objects != n {
		t.Errorf("%.3f × the bytes were written, and %d objects are there", written, objects)
	}
	none(t, "pulls", each(blobs, 8, func(b *ringBlob) error { return pull(r.ctx, r.client, b) }))
}

// pinned returns how many blobs all members have pinned together, or -1 if one does not say.
func (r *rings) pinned() (n int) {
	for _, m := range r.ring.Members {
		st, err := m.API().RingStatus(r.ctx)
		if err != nil {
			return -1
		}
		n += st.Blobs
	}
	return n
}

// A blob that only a registry has is read from it once, whoever asks whichever member for it at once, and readers follow.
func TestRingColdRead(t *testing.T) {
	t.Parallel()
	ctx, c := newCluster(t)
	reg := get(c.NewRegistry(ctx, harness.InProcess))(t)
	opts := harness.ImageOptions{Seed: 77, LayerBytes: sized[int64](8<<20, 100<<20), Incompress: true}
	img := get(harness.MakeImage(c.Dir+"/images", opts))(t)
	get(reg.Push(ctx, img, ringNamespace+":1"))(t)
	toml := fmt.Sprintf("[[backend]]\nname = \"up\"\nnamespaces = [\".*\"]\nkind = \"registry\"\n"+
		"[backend.registry]\nhost = %q\nplain_http = true\n", reg.Addr)
	r := startRing(ctx, t, c, harness.RingOptions{Members: 3, Rate: rate, TOML: toml, Keys: quick(nil)})
	reg.Limit(rate / 2)
	reg.Reset()
	layer, size := img.Layers[0], img.Sizes[0]
	n := sized(9, 50)
	firsts := make([]time.Time, n)
	var g errgroup.Group
	for i := range n {
		m := r.ring.Members[i%3]
		g.Go(func() error { return readFirst(r.ctx, m, layer, size, &firsts[i]) })
	}
	must(t, g.Wait())
	gets, bytes := 0, int64(0)
	var first time.Time
	for _, q := range reg.Blobs(layer) {
		if q.Method == "GET" {
			gets++
			bytes += q.Bytes
			if first.IsZero() || q.FirstByte.Before(first) {
				first = q.FirstByte
			}
		}
	}
	last := slices.MaxFunc(firsts, time.Time.Compare)
	figure(t, "%d readers at 3 members of a blob of %d bytes: %d requests, %.3f × the bytes from the registry; "+
		"the last had its first byte %d ms after the first of the registry's",
		n, size, gets, float64(bytes)/float64(size), last.Sub(first).Milliseconds())
	if bytes != size {
		t.Errorf("the registry sent %d bytes of %d: %v", bytes, size, reg.Blobs(layer))
	}
	if *ringFull && last.Sub(first) > 150*time.Millisecond {
		t.Errorf("the last reader had its first byte %v after the registry's", last.Sub(first))
	}
}

// readFirst reads a blob from a member, as nodes and clients do it, and says when it had the first byte.
func readFirst(ctx context.Context, m *harness.RingMember, digest string, size int64, first *time.Time) error {
	c := &http.Client{Transport: &http.Transport{DialContext: m.DialContext, DisableKeepAlives: true}}
	url := "http://" + m.Listen + origin.PathBlobs + "/" + digest + "?namespace=" + ringNamespace
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", m.Name, resp.Status, resp.Header.Get(origin.HeaderReason))
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, one); err != nil {
		return err
	}
	*first = time.Now()
	h := sha256.New()
	_, _ = h.Write(one)
	if n, err := io.Copy(h, resp.Body); err != nil || n+1 != size {
		return fmt.Errorf("%s: %d bytes, %w", m.Name, n+1, err)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("%s: %w", m.Name, errOther)
	}
	return nil
}
