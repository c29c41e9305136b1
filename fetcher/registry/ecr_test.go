package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher/registry/ecr"
	"github.com/capelin-io/capelin/fetcher/registry/ecr/ecrtest"
)

// guarded is a registry that wants a token of AWS, and answers as ECR does without.
func guarded(t *testing.T, aws *ecrtest.AWS, status int) *fake {
	f := newFake(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if aws.Valid(r) {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="https://`+f.host()+`/",service="ecr.amazonaws.com"`)
		refuse(w, status, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")
		return true
	}
	return f
}

func (f *fake) atECR(t *testing.T) *Backend {
	return backend(t, Config{Host: f.host(), PlainHTTP: true, Auth: "ecr", Region: ecrtest.Region})
}

// noSecrets checks an error.
func noSecrets(t *testing.T, aws *ecrtest.AWS, err error) {
	t.Helper()
	for _, secret := range aws.Secrets() {
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%v has a secret in it", err)
		}
	}
}

// One token serves all repositories, and is not asked for twice.
func TestECR(t *testing.T) {
	aws := ecrtest.Start(t)
	f := guarded(t, aws, http.StatusUnauthorized)
	b := f.atECR(t)
	if err := b.Check(t.Context()); err != nil && !errdefs.IsNotFound(err) { // it has no API of its own
		t.Error(err)
	}
	for i := range 10 {
		key := f.put(fmt.Sprintf("team/app-%d", i), []byte("hello"))
		if got, err := read(t, b, key, 1, 3); err != nil || string(got) != "ell" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := b.Stat(t.Context(), missing); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if n := aws.Asked(); n != 1 {
		t.Errorf("AWS was asked %d times", n)
	}
	if n := f.requests(""); n != 12 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// fakeAWS gives tokens in virtual time, of which only the last one is valid, and none while it has ended.
type fakeAWS struct {
	issued atomic.Int32
	ended  atomic.Bool // until the next one
	never  atomic.Bool // the registry takes none
	away   atomic.Bool
}

func (a *fakeAWS) ask(context.Context) (string, time.Time, error) {
	if a.away.Load() {
		return "", time.Time{}, fmt.Errorf("no token: throttled: %w", errdefs.ErrUnavailable)
	}
	a.ended.Store(false)
	token := fmt.Sprintf("AWS:secret-%d", a.issued.Add(1))
	return base64.StdEncoding.EncodeToString([]byte(token)), time.Now().Add(12 * time.Hour), nil
}

func (a *fakeAWS) valid(r *http.Request) bool {
	_, password, _ := r.BasicAuth()
	return !a.never.Load() && !a.ended.Load() && password == fmt.Sprintf("secret-%d", a.issued.Load())
}

// inBubble runs a test with a registry that wants tokens of AWS, and refuses others with a status.
func inBubble(t *testing.T, status int, run func(*testing.T, *fakeAWS, *fake, *Backend)) {
	t.Run(fmt.Sprint(status), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			aws := &fakeAWS{}
			f, b := bubbleFake(t, Config{})
			b.tokens = ecr.From(aws.ask)
			// As if the host were one that is asked over HTTPS.
			b.hosts.list[0].Scheme, b.cfg.Host = "http", "localhost:1"
			b.hosts.list[0].Host = "localhost:1"
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if aws.valid(r) {
					return false
				}
				refuse(w, status, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")
				return true
			}
			run(t, aws, f, b)
		})
	})
}

// A token that has ended before its time, also in the middle of a blob, is replaced.
func TestECRTokenEnds(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		inBubble(t, status, func(t *testing.T, aws *fakeAWS, f *fake, b *Backend) {
			data := random(1 << 20)
			key := f.put("team/app", data)
			if _, err := b.Stat(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			guard, cut := f.before, false
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if guard(w, r) || cut {
					return f.last().Header.Get("Authorization") != "" && !aws.valid(r)
				}
				cut = true
				aws.ended.Store(true)
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:1000])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			if got, err := read(t, b, key, 0, -1); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n := aws.issued.Load(); n != 2 {
				t.Errorf("%d tokens", n)
			}
		})
	}
}

// A registry that takes no token at all is not asked for ever, and nor is AWS.
func TestECRRefuses(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		inBubble(t, status, func(t *testing.T, aws *fakeAWS, f *fake, b *Backend) {
			key := f.put("team/app", []byte("hello"))
			aws.never.Store(true)
			for i := range 120 {
				_, err := b.Stat(t.Context(), key)
				if errdefs.IsUnauthorized(err) != (status == 401) || errdefs.IsPermissionDenied(err) != (status == 403) ||
					strings.Contains(err.Error(), "secret") {
					t.Fatal(i, err)
				}
				if status == 403 && !strings.Contains(err.Error(), "ecr:BatchGetImage") {
					t.Error(err)
				}
				time.Sleep(time.Second)
			}
			// 120 seconds: a token at first, and one each 30 s or so.
			if n := aws.issued.Load(); n < 4 || n > 5 {
				t.Errorf("%d tokens", n)
			}
			if n := f.requests(""); n < 123 || n > 124 {
				t.Errorf("the registry was asked %d times", n)
			}
		})
	}
}

// AWS is away, and then it is back: whoever asks waits for it as for the registry.
func TestECRThrottled(t *testing.T) {
	inBubble(t, 401, func(t *testing.T, aws *fakeAWS, f *fake, b *Backend) {
		key := f.put("team/app", []byte("hello"))
		aws.away.Store(true)
		start := time.Now()
		if _, err := b.Stat(t.Context(), key); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "throttled") {
			t.Error(err)
		}
		// It ends when the next pause, 5 s and at most a half more, would be too long.
		if took := time.Since(start); took < 7500*time.Millisecond || took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		time.AfterFunc(5*time.Second, func() { aws.away.Store(false) })
		if got, err := read(t, b, key, 0, -1); err != nil || string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// The token is for its registry: neither a mirror nor where a blob is redirected to hears of it.
func TestECRElsewhere(t *testing.T) {
	aws := ecrtest.Start(t)
	f := guarded(t, aws, http.StatusUnauthorized)
	store, mirror := newFake(t), newFake(t)
	key := f.put("team/app", []byte("hello"))
	store.put("team/app", []byte("hello"))
	guard := f.before
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !guard(w, r) {
			http.Redirect(w, r, store.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
		return true
	}
	dir := hostsDir(t, f.host(), fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", f.URL, mirror.URL))
	b := backend(t, Config{Host: f.host(), Auth: "ecr", Region: ecrtest.Region, HostsDir: dir})
	if got, err := read(t, b, key, 0, -1); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	for _, other := range []*fake{store, mirror} {
		if other.requests("") == 0 || other.last().Header.Get("Authorization") != "" {
			t.Errorf("%d requests, the last with %q", other.requests(""), other.last().Header.Get("Authorization"))
		}
	}
	// What the store refuses is not the token's fault.
	store.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }
	_, err := read(t, b, key, 0, -1)
	if !errdefs.IsPermissionDenied(err) || strings.Contains(err.Error(), "ecr:") || aws.Asked() != 1 {
		t.Errorf("%v; AWS was asked %d times", err, aws.Asked())
	}
	noSecrets(t, aws, err)
	// Over HTTP nobody is told a token.
	b = backend(t, Config{Host: "registry.test", Auth: "ecr", Region: ecrtest.Region})
	h := b.current().list[0]
	if h.Scheme = "http"; b.tokenFor(&h) {
		t.Error("a token would be sent over HTTP")
	}
	if h.Scheme = "https"; !b.tokenFor(&h) {
		t.Error("no token would be sent over HTTPS")
	}
}

// Without a token the error says what to do, and is no missing blob.
func TestECRDenied(t *testing.T) {
	aws := ecrtest.Start(t)
	f := guarded(t, aws, http.StatusUnauthorized)
	key := f.put("team/app", []byte("hello"))
	aws.Fail(&ecrtest.Failure{Status: 400, Code: "AccessDeniedException", Message: "User: arn:aws:iam::1:user/x is not authorized"})
	b := f.atECR(t)
	for name, err := range map[string]error{
		"Stat":  func() error { _, err := b.Stat(t.Context(), key); return err }(),
		"Open":  func() error { _, err := read(t, b, key, 0, -1); return err }(),
		"Check": b.Check(t.Context()),
	} {
		if !errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "ecr:GetAuthorizationToken") {
			t.Errorf("%s: %v", name, err)
		}
		noSecrets(t, aws, err)
	}
	if n := f.requests(""); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
}

func TestECRConfig(t *testing.T) {
	const host = "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com"
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Host: host, Auth: "ecr"}, ""},
		{Config{Host: "proxy.example:5000", Auth: "ecr", Region: "eu-west-1"}, ""},
		{Config{Host: "127.0.0.1:5000", Auth: "ecr", Region: "eu-west-1", PlainHTTP: true}, ""},
		{Config{Host: host, Auth: "ecr", PlainHTTP: true}, "plain_http"},
		{Config{Host: "public.ecr.aws", Auth: "ecr"}, "region"},
		{Config{Host: host, Auth: "ecr", Region: "x/y"}, "region"},
		{Config{Host: host, Auth: "aws"}, "auth"},
		{Config{Host: host, Region: "eu-west-1"}, "region"},
	} {
		var keys []string
		for _, err := range tt.cfg.Check("") {
			key, _, _ := strings.Cut(err.Error(), ":")
			keys = append(keys, key)
		}
		if got := strings.Join(keys, " "); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.cfg, got, tt.want)
		}
	}
	if r, ok := (Config{Host: host, Region: "us-west-2"}).ecr(); !ok || r != (ecr.Registry{Region: "us-west-2", FIPS: true}) {
		t.Errorf("%+v, %v", r, ok)
	}
}
