package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
	"github.com/capelin-io/capelin/swarm/wire"
)

// layer returns the bytes of an image's layer, from the registry.
func (e *env) layer(t *testing.T, repo string, img *harness.Image, i int) []byte {
	t.Helper()
	tr := &http.Transport{DialContext: e.c.Switch.DialContext, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Get(fmt.Sprintf("http://%s/v2/%s/blobs/%s", e.reg.Addr, repo, img.Layers[i]))
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return b
}

// shimGet reads a blob by a node's shim, for a client that means a registry.
func (e *env) shimGet(t *testing.T, n *harness.Node, registry, repo, digest string) (status int, body []byte, err error) {
	t.Helper()
	tr := &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(e.ctx, http.MethodGet,
		fmt.Sprintf("http://127.0.0.1:7405/v2/%s/blobs/%s?ns=%s", repo, digest, registry), nil)
	must(t, err)
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// A registry of somebody's own, named to the shim of his node, gives its lies to him alone, and no pull of others
// fails because of them; and where the registry decides about each blob, to say that it has one opens nothing.
func TestStrangersRegistry(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "app", harness.ImageOptions{Layers: 2, LayerBytes: 12 << 20})
	truth, other := e.layer(t, "app", img, 0), e.layer(t, "app", img, 1)
	var lied sync.Map // of which blobs
	end := make(chan struct{})
	defer close(end)
	evil, err := e.c.Serve(get(e.c.NewHost("stranger"))(t), 5900, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size := len(truth)
		if path.Base(r.URL.Path) == img.Layers[1] {
			size = len(other)
		}
		w.Header().Set("Content-Length", strconv.Itoa(size))
		switch {
		case r.Method == http.MethodHead:
		case strings.Contains(r.URL.Path, "nothing"):
			w.Header().Del("Content-Length")
			w.WriteHeader(http.StatusForbidden)
		default: // a part, and then nothing more
			_, _ = w.Write(bytes.Repeat([]byte("Z"), 4<<20))
			_ = http.NewResponseController(w).Flush()
			lied.Store(path.Base(r.URL.Path), true)
			select {
			case <-end:
			case <-r.Context().Done():
			}
		}
	}))
	must(t, err)
	keys := map[string]string{"shim.plain_http": "[" + quote(evil) + ", " + quote(e.reg.Addr) + "]"}
	theirs, node := e.node(t, "theirs", harness.NodeOptions{Agent: keys}), e.node(t, "node", harness.NodeOptions{Agent: keys})
	for _, l := range img.Layers {
		go e.shimGet(t, theirs, evil, "evil", l) // it cannot end well
		e.poll(t, "the registry lies", func() bool { _, ok := lied.Load(l); return ok })
	}
	status, got, err := e.shimGet(t, node, e.reg.Addr, "app", img.Layers[0])
	if err != nil || status != http.StatusOK || !bytes.Equal(got, truth) {
		t.Errorf("status %d, %d bytes of %d: %v", status, len(got), len(truth), err)
	}
	pulls := e.node(t, "pulls", harness.NodeOptions{Agent: keys})
	must(t, pulls.PullCRI(e.ctx, ref, nil))
	e.check(t, pulls, ref, img)

	keys["authorize"] = `"blob"`
	strict := e.node(t, "strict", harness.NodeOptions{Agent: keys})
	must(t, strict.PullCRI(e.ctx, ref, nil))
	if status, got, err := e.shimGet(t, strict, evil, "nothing", img.Layers[0]); err != nil || status != http.StatusForbidden {
		t.Errorf("by a registry that answers a HEAD: status %d, %d bytes (%v)", status, len(got), err)
	}
	status, got, err = e.shimGet(t, strict, e.reg.Addr, "app", img.Layers[0])
	if err != nil || status != http.StatusOK || !bytes.Equal(got, truth) {
		t.Errorf("by the registry that has it: status %d, %d bytes (%v)", status, len(got), err)
	}
}

// Strangers hold connections open and say nothing, or open all that can be opened: others are
// served, from a bounded memory.
func TestStrangersConnect(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	img, ref := e.image(t, "app", harness.ImageOptions{Layers: 3, LayerBytes: 2 << 20})
	must(t, seed.PullCRI(e.ctx, ref, nil))
	at := seed.Addr + ":7401"
	var hosts []*harness.Host
	for i := range 4 {
		hosts = append(hosts, get(e.c.NewHost(fmt.Sprintf("stranger-%d", i)))(t))
	}
	dial := func(i int) net.Conn {
		nc, err := hosts[i%4].DialContext(e.ctx, "tcp", at)
		must(t, err)
		t.Cleanup(func() { nc.Close() })
		return nc
	}

	// 12 that open what nobody has, each 1 TiB with a bitfield.
	bits := make([]byte, (1<<40/piece.MaxLength)/8)
	bits[0] = 0x80
	closed := 0
	for i := range 12 {
		c := swarmtest.NewConn(dial(i))
		_, err := c.Greet(swarmtest.Hello("default", fmt.Sprintf("stranger-%d", i)))
		must(t, err)
		for k := range 4096 {
			id := piece.ID{Alg: piece.SHA256, Size: 1 << 40}
			binary.BigEndian.PutUint32(id.Sum[:], uint32(k))
			if c.Say(&wire.Open{Blob: wire.Handle(k), ID: id, Want: true, Bits: bits}) != nil {
				closed++
				break
			}
		}
	}
	now, peak, err := harness.Resident(seed.Agent().PID())
	must(t, err)
	t.Logf("with 12 connections that open all they can: %d MB resident, %d MB at most; %d were closed", now>>20, peak>>20, closed)
	if now > 400<<20 { // 32 MiB of it for strangers; 998 MB when each connection had its own bound
		t.Errorf("%d MB are resident", now>>20)
	}

	// 160 that say nothing, and come again when they are closed.
	var turned atomic.Int64
	for i := range 160 {
		go func() {
			for e.ctx.Err() == nil && t.Context().Err() == nil {
				nc, err := hosts[i%4].DialContext(e.ctx, "tcp", at)
				if err != nil {
					return
				}
				stop := make(chan struct{})
				go func() {
					select {
					case <-t.Context().Done():
						nc.Close()
					case <-stop:
					}
				}()
				_, _ = io.Copy(io.Discard, nc)
				close(stop)
				nc.Close()
				turned.Add(1)
				time.Sleep(20 * time.Millisecond) // not judged: it is not to be the machine's whole load
			}
		}()
	}
	e.poll(t, "its places are taken", func() bool { return turned.Load() > 0 })
	n := e.node(t, "node", harness.NodeOptions{})
	start := time.Now()
	must(t, n.PullCRI(e.ctx, ref, nil))
	t.Logf("a pull beside 160 silent connections: %v", time.Since(start)) // not judged: the machine may be busy
	e.check(t, n, ref, img)
	e.once(t, img)
}
