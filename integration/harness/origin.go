package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/tracker"
)

// Origin is a `capelin origind` on a host of its own.
type Origin struct {
	*Host
	Listen string // host:port of its HTTP API

	proc *Process
}

// NewOrigin makes a host whose link has a rate, in bytes per second each way (0: as
// fast as it goes), starts an origin on it, and waits until the tracker knows it.
func (c *Cluster) NewOrigin(ctx context.Context, name, trackerAddr string, rate int64) (*Origin, error) {
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	// First: what a link has under way when it is shaped is lost.
	if err := c.Shape(h, rate); err != nil {
		return nil, err
	}
	o := &Origin{Host: h, Listen: h.Addr + ":7480"}
	config := filepath.Join(h.Dir, "origind.toml")
	toml := fmt.Sprintf("root = %q\nlisten = %q\nmetrics = \"\"\nnode = %q\ntrackers = [%q]\ninsecure = true\n"+
		"[swarm]\nlisten = %q\n[cache]\nfree_floor = -1.0\n",
		filepath.Join(h.Dir, "data"), o.Listen, name, trackerAddr, h.Addr+":7481")
	if err := os.WriteFile(config, []byte(toml), 0o644); err != nil {
		return nil, err
	}
	bin, err := Built("capelin")
	if err != nil {
		return nil, err
	}
	if o.proc, err = h.Start("origind", nil, nil, bin, "origind", "--config", config); err != nil {
		return nil, err
	}
	if err := o.proc.await(ctx, o.accepts(o.Listen)); err != nil {
		return nil, err
	}
	control, err := tracker.NewControl(tracker.ControlConfig{
		Trackers: []string{trackerAddr},
		Dial:     func(ctx context.Context, addr string) (net.Conn, error) { return o.DialContext(ctx, "tcp", addr) },
	})
	if err != nil {
		return nil, err
	}
	defer control.Close()
	return o, o.proc.await(ctx, func(ctx context.Context) error {
		nodes, err := control.Nodes(ctx)
		if err == nil && !slices.ContainsFunc(nodes, func(n tracker.Node) bool { return n.Name == name }) {
			err = fmt.Errorf("the tracker %s does not know it", trackerAddr)
		}
		return err
	})
}

// Kill ends it with SIGKILL.
func (o *Origin) Kill() { o.proc.Kill() }

// Put uploads a blob from a file.
func (o *Origin) Put(ctx context.Context, path, digest string) error {
	t := &http.Transport{DialContext: o.DialContext}
	defer t.CloseIdleConnections()
	send := func(method, path string, params url.Values, body io.Reader) (http.Header, error) {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+o.Listen+path+"?"+params.Encode(), body)
		if err != nil {
			return nil, err
		}
		resp, err := t.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return nil, fmt.Errorf("%s %s at %s: %s: %s", method, path, o.Name, resp.Status, text)
		}
		return resp.Header, nil
	}
	h, err := send("POST", origin.PathUploads, url.Values{origin.ParamNamespace: {"test"}}, nil)
	if err != nil {
		return err
	}
	upload := origin.PathUploads + "/" + h.Get(origin.HeaderUpload)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := send("PATCH", upload, url.Values{origin.ParamOffset: {"0"}}, f); err != nil {
		return err
	}
	_, err = send("PUT", upload, url.Values{origin.ParamDigest: {digest}}, nil)
	return err
}
