package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/integration/harness"
)

var ringFull = flag.Bool("ring.full", false, "tests of rings of origins have the sizes that are promised, and look at the clock")

// sized is a number of a test of rings, as it is in CI and in full.
func sized[T any](small, full T) T {
	if *ringFull {
		return full
	}
	return small
}

// rings is a ring of origins without a backend, and a client of all of them.
type rings struct {
	ctx    context.Context
	c      *harness.Cluster
	ring   *harness.Ring
	client *origin.Client
	seeds  atomic.Uint64
}

// rate is that of all links, in bytes per second.
const rate = 20_000_000

// newRing starts a ring of origins, and waits until it is whole.
func newRing(t *testing.T, members int, keys map[string]string) *rings {
	t.Helper()
	ctx, c := newCluster(t)
	return startRing(ctx, t, c, harness.RingOptions{Members: members, Rate: rate, Keys: keys})
}

func startRing(ctx context.Context, t *testing.T, c *harness.Cluster, o harness.RingOptions) *rings {
	t.Helper()
	r := &rings{ctx: ctx, c: c, ring: get(c.NewRing(o))(t)}
	r.start(t)
	return r
}

// start starts all members, and waits until the ring is whole.
func (r *rings) start(t *testing.T) {
	t.Helper()
	must(t, r.ring.Start(r.ctx))
	r.client = get(r.ring.Open())(t)
	r.whole(t)
	for _, m := range r.ring.Members {
		if log := m.Tail(1000); strings.Contains(log, "another member asks as") {
			t.Errorf("%s takes itself for another one:\n%s", m.Name, log)
		}
	}
}

// quick are the ring's times in CI: on a machine that is as busy as can be a member still answers within seconds.
func quick(keys map[string]string) map[string]string {
	all := map[string]string{}
	if !*ringFull {
		all["ring.probe"], all["ring.down"] = `"500ms"`, `"4s"`
	}
	for k, v := range keys {
		all[k] = v
	}
	return all
}

// ringBlob is a blob of bytes that its seed makes.
type ringBlob struct {
	seed   uint64
	size   int64
	digest digest.Digest
}

func (r *rings) blob(size int64) *ringBlob {
	b := &ringBlob{seed: r.seeds.Add(1), size: size}
	h := sha256.New()
	_, _ = io.Copy(h, b.open(0))
	b.digest = digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(h.Sum(nil)))
	return b
}

func (r *rings) blobs(n int, size int64) (all []*ringBlob) {
	for range n {
		all = append(all, r.blob(size))
	}
	return all
}

// open returns the bytes from off on.
func (b *ringBlob) open(off int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(b.seed >> (8 * i))
	}
	src := rand.NewChaCha8(key)
	_, _ = io.CopyN(io.Discard, src, off)
	return io.LimitReader(src, b.size-off)
}

const ringNamespace = "team/app"

func (b *ringBlob) ref() origin.Ref { return origin.Ref{Namespace: ringNamespace, Digest: b.digest} }

// push uploads a blob, as gateways do it, and goes on where it ended when an origin fails.
func push(ctx context.Context, c *origin.Client, b *ringBlob) error {
	id, err := c.StartUpload(ctx, ringNamespace, b.digest)
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	return pushOn(ctx, c, id, b, 0)
}

// pushOn sends what is left of a blob. It goes on where the upload is, when that has changed hands.
func pushOn(ctx context.Context, c *origin.Client, id string, b *ringBlob, off int64) error {
	for try := 0; ; try++ {
		what, err := "appending", error(nil)
		if off < b.size {
			_, err = c.Append(ctx, id, off, b.open(off))
		}
		if err == nil {
			what = "committing"
			if _, err = c.Commit(ctx, id, b.digest); err == nil {
				return nil
			}
		}
		lost := errdefs.IsOutOfRange(err) // what was under way to a mirror arrives there yet
		if try == 5 || !lost && (what == "committing" || !errdefs.IsUnavailable(err)) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if off, err = c.UploadOffset(ctx, id); err != nil {
			return fmt.Errorf("looking where an upload ends: %w", err)
		}
	}
}

// pull reads a blob, all of it, and compares it.
func pull(ctx context.Context, c *origin.Client, b *ringBlob) error {
	r, info, err := c.Open(ctx, b.ref(), 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	if info.Size != b.size {
		return fmt.Errorf("%s is said to have %d bytes: %w", b.digest, info.Size, errOther)
	}
	return b.same(r)
}

var errOther = errors.New("these are other bytes")

// same reads r and compares it with the blob.
func (b *ringBlob) same(r io.Reader) error {
	h := sha256.New()
	n, err := io.Copy(h, r)
	switch {
	case err != nil:
		return err
	case n != b.size || hex.EncodeToString(h.Sum(nil)) != b.digest.Encoded():
		return fmt.Errorf("%d bytes: %w", n, errOther)
	}
	return nil
}

// each calls f for all blobs, some at once, and returns what failed.
func each(blobs []*ringBlob, atOnce int, f func(b *ringBlob) error) (failed []error) {
	errs := make([]error, len(blobs))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, b := range blobs {
		g.Go(func() error {
			if err := f(b); err != nil {
				errs[i] = fmt.Errorf("blob %d, %s: %w", i, b.digest.Encoded()[:8], err)
			}
			return nil
		})
	}
	_ = g.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// none fails if something failed, and says the first few.
func none(t *testing.T, what string, failed []error) {
	t.Helper()
	if len(failed) > 0 {
		t.Errorf("%s: %d failed: %v", what, len(failed), errors.Join(failed[:min(5, len(failed))]...))
	}
}

// has reports whether a member has a blob pinned.
func has(m *harness.RingMember, b *ringBlob) bool {
	return slices.ContainsFunc(m.Roots(), func(root string) bool { return hasAt(m, root, b) })
}

// hasAt reports whether it is on one of its disks.
func hasAt(m *harness.RingMember, root string, b *ringBlob) bool {
	_, err := os.Stat(m.Path(filepath.Join(root, "blobs", "sha256", b.digest.Encoded())))
	return err == nil
}

// copies returns how many of the members that run have a blob pinned.
func (r *rings) copies(b *ringBlob) (n int) {
	for _, m := range r.ring.Members {
		if m.Running() && has(m, b) {
			n++
		}
	}
	return n
}

// fewest returns how many copies the blob has that has the fewest.
func (r *rings) fewest(blobs []*ringBlob) int {
	n := len(r.ring.Members)
	for _, b := range blobs {
		n = min(n, r.copies(b))
	}
	return n
}

// owners returns the members that own a blob, if these are all owners.
func owners(members []*harness.RingMember, b *ringBlob, n int) (all []*harness.RingMember) {
	var names []ring.Member
	for _, m := range members {
		names = append(names, ring.Member{Name: m.Name})
	}
	for _, o := range ring.Place(names, string(b.digest), n) {
		all = append(all, members[slices.IndexFunc(members, func(m *harness.RingMember) bool { return m.Name == o.Name })])
	}
	return all
}

// exact fails unless each blob is pinned at n owners, which are among these members, and nowhere else.
func (r *rings) exact(t *testing.T, blobs []*ringBlob, members []*harness.RingMember, n int) {
	t.Helper()
	missing, pinned := 0, 0
	for _, b := range blobs {
		for _, m := range owners(members, b, n) {
			if !has(m, b) {
				missing++
			}
		}
	}
	for _, m := range r.ring.Members {
		if m.Running() { // the files of what is not pinned any more stay for a while
			pinned += get(m.API().RingStatus(r.ctx))(t).Blobs
		}
	}
	if missing > 0 || pinned != n*len(blobs) {
		t.Errorf("of %d blobs with %d owners each %d copies are not where they should be, and %d are pinned", len(blobs), n, missing, pinned)
	}
}

// whole waits until the command of operators says that the ring is.
func (r *rings) whole(t *testing.T) {
	t.Helper()
	must(t, r.isWhole(r.ring.Members...))
}

func (r *rings) isWhole(members ...*harness.RingMember) error {
	args := []string{"origin", "ring", "--wait"}
	for _, m := range members {
		if m.Running() {
			args = append(args, "--origin", m.Listen)
		}
	}
	_, err := r.capelin(args...)
	return err
}

// state returns how a member sees another one, or itself; "" if it does not say.
func (r *rings) state(by, m *harness.RingMember) origin.RingState {
	ctx, cancel := context.WithTimeout(r.ctx, 10*time.Second)
	defer cancel()
	st, err := by.API().RingStatus(ctx)
	if err != nil || st.Member(m.Name) == nil {
		return ""
	}
	return st.Member(m.Name).State
}

// capelin runs the command on the client's host.
func (r *rings) capelin(args ...string) (string, error) {
	bin, err := harness.Built("capelin")
	if err != nil {
		return "", err
	}
	return r.ring.Client.Command(r.ctx, nil, bin, args...)
}

// metric sums a metric of the members that run.
func (r *rings) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	for _, m := range r.ring.Members {
		if m.Running() {
			sum += get(m.Metric(r.ctx, name, labels...))(t)
		}
	}
	return sum
}

// poll waits until f reports true.
func (r *rings) poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	must(t, await(r.ctx, what, f))
}

// figure logs one, so that it can be quoted.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("figure: "+format, args...)
}

// within judges the clock, if that is wanted.
func within(t *testing.T, what string, took, most time.Duration) {
	t.Helper()
	figure(t, "%s: %.1f s, at most %.1f s", what, took.Seconds(), most.Seconds())
	if *ringFull && took > most {
		t.Errorf("%s took %.1f s, at most %.1f s were promised", what, took.Seconds(), most.Seconds())
	}
}

// moving is how long bytes take over one link.
func moving(bytes int64) time.Duration {
	return time.Duration(float64(bytes) / rate * float64(time.Second))
}

// A member is lost, with its disk, at the moment when the last push is acknowledged: there is no backend, and nothing is lost.
// What has too few copies gets them at once; and the member may come back with an empty disk.
func TestRingLosesOwner(t *testing.T) {
	t.Parallel()
	n, size := sized(60, 500), int64(256<<10)
	r := newRing(t, 4, quick(nil))
	blobs := r.blobs(n, size)
	none(t, "pushes", each(blobs[:n-1], 16, func(b *ringBlob) error { return push(r.ctx, r.client, b) }))
	last := blobs[n-1]
	must(t, push(r.ctx, r.client, last))
	victim := owners(r.ring.Members, last, 3)[0]
	victim.Kill()
	must(t, victim.Wipe())
	killed := time.Now()
	short, had := 0, 0
	for _, b := range blobs {
		switch r.copies(b) {
		case 0:
			t.Errorf("%s has no copy", b.digest)
		case 1:
			short++
		}
		if slices.Contains(owners(r.ring.Members, b, 3), victim) {
			had++
		}
	}
	none(t, "pulls", each(blobs, 8, func(b *ringBlob) error { return pull(r.ctx, r.client, b) }))
	r.poll(t, "two copies of each blob", func() bool { return r.fewest(blobs) >= 2 })
	figure(t, "%d blobs of %d bytes, an owner of %d of them lost: %d had one copy left; 0 lost", n, size, had, short)
	within(t, "urgent copies", time.Since(killed), 15*time.Second+moving(int64(short)*size))

	must(t, r.ring.Start(r.ctx, victim))
	r.whole(t)
	if t.Failed() {
		return
	}
	r.exact(t, blobs, r.ring.Members, 3)
	none(t, "pulls from the new disk", each(blobs, 8, func(b *ringBlob) error {
		if !slices.Contains(owners(r.ring.Members, b, 3), victim) {
			return nil
		}
		return pull(r.ctx, get(r.ring.Open(victim))(t), b)
	}))
}
