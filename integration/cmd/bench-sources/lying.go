package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/integration/harness"
)

// Item 5: sources that lie.
var lying = []scenario{
	{"5", "a stranger's registry, by the shim", besideLies, strangerLies(1)},
	{"5", "the same, four nodes wait", besideLies, strangerLies(4)},
	{"5", "a stranger's registry fails four times", []row{{Name: "then two nodes pull", goal: fromRegistry(1.1 * 20e6)}}, strangerFails},
	{"5", "a liar inside corrupts", threeLayers, liarInside(harness.Corrupts, false)},
	{"5", "a liar inside has wrong sums", threeLayers, liarInside(harness.WrongSums, false)},
	{"5", "a liar beside an honest seeder corrupts", threeLayers, liarInside(harness.Corrupts, true)},
}

// besideLies are the rows of others that want the blob of which a stranger's registry sends something else.
var besideLies = []row{
	{Name: "lies delivered to others", Unit: "MB of lies", goal: count(0, "MB of lies")},
	{Name: "the others' time", goal: inTime},
	{Name: "one copy", goal: fromRegistry(1.1 * 50e6)},
}

// threeLayers are the rows of an image of three layers that a liar has.
var threeLayers = []row{
	{Name: "three layers", goal: over(3 * 1)},
	{Name: "until they are pulled", Unit: "attempts", goal: count(1, "attempts")},
}

// A stranger is somebody's registry, for one blob.
type stranger struct {
	addr string       // host:port
	sent atomic.Int64 // bytes of false blobs
}

// stranger starts a registry that says that it has a blob of a size, and answers GET
// requests as get does; nil: with an error.
func (w *world) stranger(size int64, get func(*stranger, http.ResponseWriter, *http.Request)) (s *stranger, err error) {
	s = &stranger{}
	s.addr, err = w.Serve(w.Switch, 5900, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead:
			rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		case get == nil:
			rw.WriteHeader(http.StatusInternalServerError)
		default:
			get(s, rw, r)
		}
	}))
	return s, err
}

// falsehood are bytes that no blob here has.
var falsehood = bytes.Repeat([]byte("Z"), 64<<10)

// lies sends a blob of a size of nothing but falsehood, at 2 MB/s.
func lies(size int64) func(*stranger, http.ResponseWriter, *http.Request) {
	return func(s *stranger, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		limit := rate.NewLimiter(2e6, len(falsehood))
		for left := size; left > 0; {
			n := min(left, int64(len(falsehood)))
			if limit.WaitN(r.Context(), int(n)) != nil {
				return
			}
			if _, err := w.Write(falsehood[:n]); err != nil {
				return
			}
			left -= n
			s.sent.Add(n)
		}
	}
}

// shimKeys has a node's shim speak plain HTTP to registries.
func shimKeys(registries ...string) keys {
	list := ""
	for _, r := range registries {
		list += quote(r) + ", "
	}
	return keys{"shim.plain_http": "[" + list + "]"}
}

// get reads a blob by a node's shim, as a client that means a registry, and of a stock node
// from that registry. It returns what came before err, too.
func get(ctx context.Context, n *harness.Node, registry, repo, digest string) ([]byte, error) {
	url := fmt.Sprintf("http://127.0.0.1:7405/v2/%s/blobs/%s?ns=%s", repo, digest, registry)
	if n.Options.Stock {
		url = fmt.Sprintf("http://%s/v2/%s/blobs/%s", registry, repo, digest)
	}
	t := &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// right is how many bytes of got are those of want, in blocks: of false bytes some are
// right by chance.
func right(got, want []byte) (n int) {
	const block = 4 << 10
	for i := 0; i < len(got); i += block {
		b := got[i:min(i+block, len(got))]
		if i+len(b) <= len(want) && bytes.Equal(b, want[i:i+len(b)]) {
			n += len(b)
		}
	}
	return n
}

// strangerLies measures what clients of so many nodes' shims receive, while a client of another
// node's shim downloads the same digest from a registry that sends something else.
func strangerLies(nodes int) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		o := twenty(50)
		o.LayerBytes = 50e6
		img, err := w.push(ctx, o)
		if err != nil {
			return nil, err
		}
		truth, err := img.layer(0)
		if err != nil {
			return nil, err
		}
		w.registry.Limit(fast)
		size := int64(len(truth))
		evil, err := w.stranger(size, lies(size))
		if err != nil {
			return nil, err
		}
		k := shimKeys(evil.addr, w.registry.Addr)
		theirs, err := w.node(ctx, "theirs", k)
		if err != nil {
			return nil, err
		}
		others := make([]*harness.Node, nodes)
		for i := range others {
			if others[i], err = w.node(ctx, fmt.Sprintf("node-%d", i), k); err != nil {
				return nil, err
			}
		}
		ended, stop := background(ctx, func(ctx context.Context) {
			_, _ = get(ctx, theirs, evil.addr, "evil/blob", img.Layers[0]) // it cannot end well
		})
		defer stop()
		if err := until(ctx, ended, func() (bool, error) { return evil.sent.Load() > 1<<20, nil }); err != nil {
			return nil, err
		}
		got := make([][]byte, nodes)
		v, err := w.measure(ctx, func(ctx context.Context) error {
			var g errgroup.Group // the first that is broken off ends no other
			for i, n := range others {
				g.Go(func() (err error) {
					got[i], err = get(ctx, n, w.registry.Addr, img.repo, img.Layers[0])
					return err
				})
			}
			return g.Wait()
		})
		if err != nil && ctx.Err() == nil { // broken off: that is what is measured
			v.Capped = true
		}
		for _, b := range got {
			v.Count += float64(len(b)-right(b, truth)) / 1e6
		}
		told := v
		told.Capped = false // however it ended
		return []value{told, v, v}, ctx.Err()
	}
}

// strangerFails measures two nodes that pull what a stranger's registry did not give to
// another one.
func strangerFails(ctx context.Context, w *world) ([]value, error) {
	img, err := w.push(ctx, twenty(1))
	if err != nil {
		return nil, err
	}
	w.registry.Limit(fast)
	evil, err := w.stranger(img.Sizes[0], nil)
	if err != nil {
		return nil, err
	}
	theirs, err := w.node(ctx, "theirs", shimKeys(evil.addr))
	if err != nil {
		return nil, err
	}
	var nodes []*harness.Node
	for i := range 2 {
		n, err := w.node(ctx, fmt.Sprintf("node-%d", i), nil)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	for range 4 {
		if _, err := get(ctx, theirs, evil.addr, "evil/blob", img.Layers[0]); err == nil {
			return nil, errors.New("a registry that has nothing has delivered")
		}
	}
	v, err := w.measure(ctx, func(ctx context.Context) error { return together(ctx, nodes, img.ref) })
	return []value{v}, err
}

// liarInside measures a pull of three layers that a liar has, and an honest seeder, if
// there is one.
func liarInside(lie harness.Lie, honest bool) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		o := twenty(60)
		o.Layers = 3
		img, err := w.push(ctx, o)
		if err != nil {
			return nil, err
		}
		if err := w.liar(ctx, lie, img); err != nil {
			return nil, err
		}
		if honest {
			if _, err := w.seeder(ctx, "seeder", nil, img); err != nil {
				return nil, err
			}
		}
		w.registry.Limit(fast)
		n, err := w.node(ctx, "node", nil)
		if err != nil {
			return nil, err
		}
		v, err := w.insist(ctx, n, img.ref)
		return []value{v, v}, err
	}
}
