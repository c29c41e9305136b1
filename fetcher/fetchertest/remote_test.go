package fetchertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// TestFaults holds a backend to the suite that asks a server as it should: with few lines, it shows what is demanded.
func TestFaults(t *testing.T) {
	RunFaults(t, func(t *testing.T) (fetcher.Backend, *Proxy) { return newRemote(t) }, FaultOptions{WritesAgain: true})
}

// server is a Memory over HTTP.
func server(m *Memory) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.URL.Path, "/")
		show := func(info fetcher.Info, err error) bool {
			switch {
			case errdefs.IsNotFound(err):
				w.WriteHeader(http.StatusNotFound)
			case errdefs.IsConflict(err):
				w.WriteHeader(http.StatusPreconditionFailed)
			case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
				w.WriteHeader(http.StatusBadRequest)
			case err != nil:
				w.WriteHeader(http.StatusInternalServerError)
			default:
				w.Header().Set("Etag", info.Version)
				w.Header().Set("X-Size", strconv.FormatInt(info.Size, 10))
			}
			return err == nil
		}
		q := r.URL.Query()
		switch {
		case q.Has("list"):
			limit, _ := strconv.Atoi(q.Get("limit"))
			page, more, err := m.List(r.Context(), q.Get("list"), q.Get("after"), limit)
			if show(fetcher.Info{}, err) {
				_ = json.NewEncoder(w).Encode(struct {
					Page []fetcher.Info
					More bool
				}{page, more})
			}
		case r.Method == http.MethodHead:
			show(m.Stat(r.Context(), key))
		case r.Method == http.MethodGet:
			off, _ := strconv.ParseInt(q.Get("off"), 10, 64)
			n, _ := strconv.ParseInt(q.Get("n"), 10, 64)
			rc, info, err := m.Open(r.Context(), key, off, n)
			if show(info, err) {
				_, _ = io.Copy(w, rc)
			}
		case r.Method == http.MethodPut && r.Header.Get("If-Match") != "":
			data, err := io.ReadAll(r.Body)
			if err == nil {
				show(m.WriteIf(r.Context(), key, data, strings.TrimPrefix(r.Header.Get("If-Match"), "=")))
			}
		case r.Method == http.MethodPut:
			show(m.Write(r.Context(), key, r.ContentLength, r.Body))
		case r.Method == http.MethodDelete:
			show(fetcher.Info{}, m.Delete(r.Context(), key))
		}
	})
}

// remote is a backend that asks a server.
type remote struct {
	url    string
	client *http.Client
}

func newRemote(t *testing.T) (*remote, *Proxy) {
	s := httptest.NewServer(server(&Memory{}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	p := NewProxy(t, s.URL)
	return &remote{p.URL(s.URL), &http.Client{Transport: &http.Transport{}}}, p
}

func (r *remote) Name() string { return "remote:" }
func (r *remote) Close() error { r.client.CloseIdleConnections(); return nil }
func (r *remote) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true, Generations: true}
}

// ask sends a request, three times at most.
func (r *remote) ask(ctx context.Context, method, key string, q url.Values, body []byte, match string) (*http.Response, error) {
	var last error
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, method, r.url+"/"+key+"?"+q.Encode(), bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if match != "" {
			req.Header.Set("If-Match", match)
		}
		resp, err := r.client.Do(req)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			last = fmt.Errorf("%s %s: %w: %w", method, key, err, errdefs.ErrUnavailable)
		case resp.StatusCode == http.StatusOK:
			return resp, nil
		default:
			resp.Body.Close()
			class := map[int]error{404: errdefs.ErrNotFound, 403: errdefs.ErrPermissionDenied, 412: errdefs.ErrConflict,
				400: errdefs.ErrOutOfRange}[resp.StatusCode]
			if class != nil {
				return nil, fmt.Errorf("%s %s: %w", method, key, class)
			}
			last = fmt.Errorf("%s %s: status %d: %w", method, key, resp.StatusCode, errdefs.ErrUnavailable)
		}
		if match != "" {
			break
		}
	}
	return nil, last
}

func infoOf(key string, resp *http.Response) fetcher.Info {
	size, _ := strconv.ParseInt(resp.Header.Get("X-Size"), 10, 64)
	return fetcher.Info{Key: key, Size: size, Version: resp.Header.Get("Etag")}
}

func (r *remote) Check(ctx context.Context) error {
	_, _, err := r.List(ctx, "", "", 1)
	return err
}

func (r *remote) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return fetcher.Info{}, err
	}
	resp, err := r.ask(ctx, http.MethodHead, key, nil, nil, "")
	if err != nil {
		return fetcher.Info{}, err
	}
	resp.Body.Close()
	return infoOf(key, resp), nil
}

func (r *remote) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return nil, fetcher.Info{}, err
	}
	if off < 0 {
		return nil, fetcher.Info{}, errdefs.ErrOutOfRange
	}
	q := url.Values{"off": {strconv.FormatInt(off, 10)}, "n": {strconv.FormatInt(n, 10)}}
	resp, err := r.ask(ctx, http.MethodGet, key, q, nil, "")
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	info := infoOf(key, resp)
	return &through{ReadCloser: resp.Body, after: func(m int, err error) (int, error) {
		off += int64(m)
		switch {
		case ctx.Err() != nil:
			return m, ctx.Err()
		case err == nil || err == io.EOF:
			return m, err
		}
		return m, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}}, info, nil
}

func (r *remote) Write(ctx context.Context, key string, size int64, src io.Reader) (fetcher.Info, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return fetcher.Info{}, err
	}
	data, err := io.ReadAll(src)
	if err != nil {
		return fetcher.Info{}, err
	}
	resp, err := r.ask(ctx, http.MethodPut, key, nil, data, "")
	if err != nil {
		return fetcher.Info{}, err
	}
	resp.Body.Close()
	return infoOf(key, resp), nil
}

func (r *remote) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return fetcher.Info{}, err
	}
	var last error
	for range 3 {
		resp, err := r.ask(ctx, http.MethodPut, key, nil, data, "="+version)
		if err == nil {
			resp.Body.Close()
			return infoOf(key, resp), nil
		}
		if !errdefs.IsConflict(err) && !errdefs.IsUnavailable(err) {
			return fetcher.Info{}, err
		}
		last = err
		rc, info, err := r.Open(ctx, key, 0, -1)
		if errdefs.IsNotFound(err) {
			rc, err = io.NopCloser(strings.NewReader("")), nil
		}
		if err != nil {
			return fetcher.Info{}, err
		}
		have, err := io.ReadAll(rc)
		rc.Close()
		switch {
		case err != nil:
			return fetcher.Info{}, err
		case info.Version != version && bytes.Equal(have, data):
			return info, nil
		case info.Version != version:
			return fetcher.Info{}, fmt.Errorf("%s: %w", key, errdefs.ErrConflict)
		}
	}
	return fetcher.Info{}, last
}

func (r *remote) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	q := url.Values{"list": {prefix}, "after": {after}, "limit": {strconv.Itoa(limit)}}
	resp, err := r.ask(ctx, http.MethodGet, "", q, nil, "")
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	var answer struct {
		Page []fetcher.Info
		More bool
	}
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return answer.Page, answer.More, err
}

func (r *remote) Delete(ctx context.Context, key string) error {
	if err := fetcher.CheckKey(key); err != nil {
		return err
	}
	resp, err := r.ask(ctx, http.MethodDelete, key, nil, nil, "")
	if err == nil {
		resp.Body.Close()
	}
	return err
}
