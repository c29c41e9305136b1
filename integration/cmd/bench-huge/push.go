package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
)

// there has the blob pushed through a gateway to S3, and pulled by a node from another server that has nothing but the bucket.
func there(ctx context.Context, b *bench) error {
	s3, err := b.c.NewS3(ctx, "s3")
	if err != nil {
		return err
	}
	server := func(name string) (*harness.Server, error) {
		keys := map[string]string{
			"origin.durability": `"backend"`, "origin.cache.size": fmt.Sprint(2 * b.size), "origin.lookup.budget": `"3s"`,
			"tracker.lease.lookup": `"4s"`, "log_level": `"info"`,
		}
		maps.Copy(keys, s3.Keys)
		s, err := b.c.NewServer(ctx, name, harness.ServerOptions{Keys: keys, Env: s3.Env})
		if err != nil {
			return nil, err
		}
		return s, b.watch(name, s.PID())
	}
	first, err := server("first")
	if err != nil {
		return err
	}
	start := time.Now()
	if err := b.push(ctx, first); err != nil {
		return err
	}
	if !s3.Has(string(b.blob.digest)) {
		return fmt.Errorf("%s was acknowledged, and is not in the bucket", b.blob.digest)
	}
	took := time.Since(start).Seconds()
	fmt.Fprintf(b.out, "pushed, until it is in S3: %.1f s, %.1f MB/s\n", took, float64(b.size)/took/1e6)
	b.f.Add("push_s", took)
	second, err := server("second")
	if err != nil {
		return err
	}
	n, err := b.node(ctx, second.Tracker)
	if err != nil {
		return err
	}
	if _, err := b.fetch(ctx, n, filepath.Join(second.Data, "origin")); err != nil {
		return err
	}
	return b.report()
}

// push pushes the blob as clients of registries do, in one piece.
func (b *bench) push(ctx context.Context, s *harness.Server) error {
	t := &http.Transport{DialContext: s.DialContext}
	defer t.CloseIdleConnections()
	if err := b.ready(ctx, t, s); err != nil {
		return err
	}
	at := &url.URL{Scheme: "http", Host: s.Gateway, Path: "/v2/team/huge/blobs/uploads/"}
	for _, step := range []struct {
		method string
		body   io.Reader
		size   int64
	}{{http.MethodPost, nil, 0}, {http.MethodPatch, b.blob.reader(), b.size}, {http.MethodPut, nil, 0}} {
		if step.method == http.MethodPut {
			q := at.Query()
			q.Set("digest", string(b.blob.digest))
			at.RawQuery = q.Encode()
		}
		req, err := http.NewRequestWithContext(ctx, step.method, at.String(), step.body)
		if err != nil {
			return err
		}
		req.ContentLength = step.size
		resp, err := t.RoundTrip(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return fmt.Errorf("%s at %s: %w", step.method, s.Gateway, err)
		}
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("%s at %s: %s: %s", step.method, s.Gateway, resp.Status, text)
		}
		if at, err = at.Parse(resp.Header.Get("Location")); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until all of a server is up.
func (b *bench) ready(ctx context.Context, t *http.Transport, s *harness.Server) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://"+s.Gateway+"/v2/team/huge/blobs/"+string(b.blob.digest), nil)
		if err != nil {
			return err
		}
		resp, err := t.RoundTrip(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s says %s: %w", s.Name, resp.Status, ctx.Err())
		}
	}
}
