package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpobject"
)

// request is a HEAD or a GET below a repository.
type request struct {
	method string
	repo   string // "": of the API itself
	what   string // "blobs/<digest>", "manifests/<reference>"
	header http.Header
	accept []int // besides 200
	// resolves: only hosts that may say what a tag is.
	resolves bool
}

// send asks the hosts one after the other for the first success. The error is the
// last host's.
func (b *Backend) send(ctx context.Context, r request) (*http.Response, error) {
	var before []string
	for i := 0; ; i++ {
		hosts := hostsFor(b.current(), r)
		if len(hosts) == 0 {
			return nil, fmt.Errorf("no host in hosts.toml is capable of this: %w", errdefs.ErrFailedPrecondition)
		}
		i = min(i, len(hosts)-1)
		var resp *http.Response
		var err error
		last := i == len(hosts)-1
		if last {
			resp, err = b.askLast(ctx, r)
		} else {
			resp, err = b.ask(ctx, r, i)
		}
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case last && before != nil:
			return nil, fmt.Errorf("%w (and before: %s)", err, strings.Join(before, "; "))
		case last:
			return nil, err
		}
		before = append(before, err.Error())
	}
}

// hostsFor returns the hosts that may answer a request.
func hostsFor(h *hosts, r request) []docker.RegistryHost {
	want := docker.HostCapabilityPull
	if r.resolves {
		want |= docker.HostCapabilityResolve
	}
	return slices.DeleteFunc(slices.Clone(h.list), func(h docker.RegistryHost) bool { return !h.Capabilities.Has(want) })
}

// askLast asks the last host until it answers, as long as that may take.
func (b *Backend) askLast(ctx context.Context, r request) (*http.Response, error) {
	unauthorized := func(err error) bool {
		var auth *authError
		var token *tokenError
		return (errors.As(err, &auth) || errors.As(err, &token)) && errdefs.IsUnavailable(err)
	}
	return httpobject.Retry(ctx, b.backoff, b.cfg.Retry.D(), unauthorized,
		func() (*http.Response, error) { return b.ask(ctx, r, -1) })
}

// ask sends a request to the i-th host; -1: the last. If it is refused it may be
// because of secrets that are old, so that it is tried with fresh ones, too.
func (b *Backend) ask(ctx context.Context, r request, i int) (*http.Response, error) {
	for again := false; ; again = true {
		hosts := b.current()
		list := hostsFor(hosts, r)
		if len(list) == 0 {
			return nil, fmt.Errorf("no host in hosts.toml is capable of this: %w", errdefs.ErrFailedPrecondition)
		}
		if i < 0 || i >= len(list) {
			i = len(list) - 1
		}
		resp, err := b.exchange(ctx, &list[i], r)
		if err == nil {
			return resp, nil
		}
		err = fmt.Errorf("%s: %w", list[i].Host, err)
		if b.tokenFor(&list[i]) {
			return nil, err // a fresh one was tried
		}
		var auth *authError
		if !errors.As(err, &auth) && !errdefs.IsUnauthorized(err) && !errdefs.IsPermissionDenied(err) {
			return nil, err
		}
		hosts.refused.Store(true)
		if again || ctx.Err() != nil || b.current() == hosts {
			return nil, err
		}
	}
}

// authError is a failure on the way to a token. It has the class of its cause.
type authError struct{ err error }

func (e *authError) Error() string {
	return "authorizing: " + (&httpobject.NetworkError{Err: e.err}).Error()
}

func (e *authError) Is(target error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.As(e.err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusBadRequest),
		errors.Is(e.err, docker.ErrInvalidAuthorization):
		return target == errdefs.ErrUnauthenticated
	case errors.As(e.err, &status) && status.StatusCode == http.StatusForbidden:
		return target == errdefs.ErrPermissionDenied
	}
	return target == errdefs.ErrUnavailable
}

// exchange sends a request to one host, with what authorization that demands.
func (b *Backend) exchange(ctx context.Context, h *docker.RegistryHost, r request) (*http.Response, error) {
	u := url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/"}
	if r.repo != "" {
		u.Path += r.repo + "/" + r.what
		ctx = docker.WithScope(ctx, "repository:"+r.repo+":pull")
	}
	if h.Host != b.cfg.Host && (b.cfg.Host != dockerHub || h.Host != "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {b.cfg.Host}}.Encode() // a mirror may be one of several registries
	}
	if b.tokenFor(h) {
		return b.exchangeECR(ctx, h, r, u.String())
	}
	var refusals []*http.Response
	for {
		req, err := newRequest(ctx, h, r, u.String())
		if err != nil {
			return nil, err
		}
		if err := b.authorize(ctx, h, r.repo, req); err != nil {
			return nil, err
		}
		resp, err := b.do(h, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || slices.Contains(r.accept, resp.StatusCode) {
			return resp, nil
		}
		status := httpobject.Failure(resp, said)
		// A blob store that the registry redirected to gets no credentials.
		if status.Code != http.StatusUnauthorized || resp.Request.URL.Host != h.Host || len(refusals) == 2 {
			return nil, status
		}
		refusals = append(refusals, resp)
		err = b.detached(ctx, func(ctx context.Context) error { return h.Authorizer.AddResponses(ctx, refusals) })
		if errdefs.IsNotImplemented(err) { // it demands nothing that is known
			return nil, status
		}
		if err != nil {
			return nil, err
		}
	}
}

func newRequest(ctx context.Context, h *docker.RegistryHost, r request, target string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, header := range []http.Header{{"User-Agent": {version.Software()}, "Accept-Encoding": {"identity"}}, h.Header, r.header} {
		for k, v := range header {
			req.Header[http.CanonicalHeaderKey(k)] = slices.Clone(v)
		}
	}
	return req, nil
}

// tokenFor reports whether a host is the one that AWS's token is for. Mirrors have credentials of
// their own, and over HTTP the token would be everybody's.
func (b *Backend) tokenFor(h *docker.RegistryHost) bool {
	return b.tokens != nil && h.Host == b.cfg.Host && (h.Scheme == "https" || docker.IsLocalhost(h.Host))
}

// tokenError is the lack of AWS's token.
type tokenError struct{ error }

func (e *tokenError) Unwrap() error { return e.error }

// exchangeECR sends a request with AWS's token. ECR refuses what is not allowed, and tokens that
// have ended, in the same way: with another token it is asked once more.
func (b *Backend) exchangeECR(ctx context.Context, h *docker.RegistryHost, r request, target string) (*http.Response, error) {
	for again := false; ; again = true {
		req, err := newRequest(ctx, h, r, target)
		if err != nil {
			return nil, err
		}
		token, err := b.tokens.Get(ctx)
		if err != nil {
			return nil, &tokenError{err}
		}
		token.Authorize(req)
		resp, err := b.do(h, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || slices.Contains(r.accept, resp.StatusCode) {
			return resp, nil
		}
		status := httpobject.Failure(resp, said)
		refused := (status.Code == http.StatusUnauthorized || status.Code == http.StatusForbidden) && resp.Request.URL.Host == h.Host
		switch {
		case !refused:
			return nil, status
		case !again && b.tokens.Refused(token):
			continue
		case status.Code == http.StatusUnauthorized:
			return nil, fmt.Errorf("%w; AWS gave the token %v ago", status, token.Age().Round(time.Second))
		}
		return nil, fmt.Errorf("%w; allow ecr:BatchGetImage, ecr:GetDownloadUrlForLayer and ecr:BatchCheckLayerAvailability on the repository, "+
			"in the policy of who asks or, from another account, in the repository's", status)
	}
}

// authorize adds the header that the host demanded before, if any. What is known of a
// repository's token is asked for by one request at a time, because containerd's
// authorizer looks at the result of another one while it is being written.
func (b *Backend) authorize(ctx context.Context, h *docker.RegistryHost, repo string, req *http.Request) error {
	if h.Authorizer == nil {
		return nil
	}
	gate := &b.gates[fnv32(repo)%uint32(len(b.gates))]
	select {
	case *gate <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	carrier := &http.Request{URL: req.URL, Header: http.Header{}}
	err := b.detached(ctx, func(ctx context.Context) error {
		defer func() { <-*gate }()
		return h.Authorizer.Authorize(ctx, carrier)
	})
	if err != nil {
		return err
	}
	if v := carrier.Header.Get("Authorization"); v != "" {
		req.Header.Set("Authorization", v)
	}
	return nil
}

func fnv32(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return h.Sum32()
}

// detached calls f without the end of the context, because others may wait for what f
// brings; but it waits only as long as the context allows.
func (b *Backend) detached(ctx context.Context, f func(context.Context) error) error {
	done := make(chan error, 1)
	b.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.Timeout.D()+helperTimeout)
		defer cancel()
		defer context.AfterFunc(b.closing, cancel)()
		done <- f(ctx)
	})
	select {
	case err := <-done:
		if err != nil && !errdefs.IsNotImplemented(err) {
			return &authError{err}
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do sends a request and follows redirects.
func (b *Backend) do(h *docker.RegistryHost, req *http.Request) (*http.Response, error) {
	client := *h.Client
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("more than 10 redirects")
		}
		if next.URL.Host == h.Host && (next.URL.Scheme == h.Scheme || docker.IsLocalhost(h.Host)) {
			return nil
		}
		next.Header.Del("Authorization") // which is kept for subdomains otherwise
		for k := range h.Header {
			next.Header.Del(k)
		}
		return nil
	}
	return httpobject.Do(&client, req, b.cfg.Stall.D())
}

// said is what a registry says in the body of a refusal.
func said(body []byte) string {
	var wire ociregistry.WireErrors
	if json.Unmarshal(body, &wire) == nil && len(wire.Errors) > 0 {
		return wire.Error()
	}
	return ""
}
