package origin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// fake is an origin that does what its function says, and counts requests.
type fake struct {
	*httptest.Server
	asked atomic.Int32
}

func newFake(t *testing.T, h http.HandlerFunc) *fake {
	f := &fake{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// refuse answers with an error's class, as origins do.
func refuse(err error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		class, status := Class(err)
		w.Header().Set(HeaderError, class)
		w.Header().Set(HeaderReason, Reason(err))
		w.WriteHeader(status)
	}
}

// serve answers reads of a blob; cut, if not nil, says after how many bytes the
// connection breaks.
func serve(data []byte, cut func() int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		off, end := 0, len(data)
		status := http.StatusOK
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off); err == nil {
			status = http.StatusPartialContent
			if _, last, _ := strings.Cut(r.Header.Get("Range"), "-"); last != "" {
				n, _ := strconv.Atoi(last)
				end = min(end, n+1)
			}
		}
		w.Header().Set(HeaderSize, strconv.Itoa(len(data)))
		w.Header().Set(HeaderDurable, "true")
		w.Header().Set("Content-Length", strconv.Itoa(end-off))
		w.WriteHeader(status)
		part := data[off:end]
		if cut != nil {
			if n := cut(); n < len(part) {
				w.Write(part[:n])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		}
		w.Write(part)
	}
}

// newClient returns a client that does not ask who the origins are.
func newClient(t *testing.T, fakes ...*fake) *Client {
	t.Helper()
	var cfg Config
	for _, f := range fakes {
		cfg.Origins = append(cfg.Origins, f.URL)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.members.due.Store(math.MaxInt64)
	return c
}

var (
	blob = bytes.Repeat([]byte("0123456789"), 20_000)
	ref  = Ref{Digest: digest.FromBytes(blob)}
)

func read(c *Client, off, n int64) ([]byte, error) {
	r, info, err := c.Open(context.Background(), ref, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if info.Size != int64(len(blob)) {
		return nil, fmt.Errorf("size %d", info.Size)
	}
	return io.ReadAll(r)
}

// A class comes back as it went out, and nothing else is taken for one.
func TestClasses(t *testing.T) {
	for _, c := range classes {
		name, status := Class(fmt.Errorf("something: %w", c.Err))
		if ClassOf(name) == nil || status < 400 {
			t.Errorf("%v: %s, %d", c.Err, name, status)
		}
		client := newClient(t, newFake(t, refuse(fmt.Errorf("reading sha256:…\n: %w", c.Err))))
		_, err := client.Stat(t.Context(), ref)
		if !errors.Is(err, ClassOf(name)) || !strings.Contains(err.Error(), "reading sha256") {
			t.Errorf("%s came back as %v", name, err)
		}
	}
	if name, status := Class(errors.New("x")); name != "internal" || status != 500 {
		t.Errorf("%s, %d", name, status)
	}
	// What is certain only in part is not certain.
	if name, _ := Class(fmt.Errorf("%w: %w", errdefs.ErrNotFound, errdefs.ErrUnavailable)); name != "unavailable" {
		t.Error(name)
	}
	for _, status := range []int{200, 204, 301, 400, 403, 404, 500, 503} {
		stranger := newFake(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		if _, err := newClient(t, stranger).Stat(t.Context(), ref); !errdefs.IsUnavailable(err) {
			t.Errorf("status %d of somebody else: %v", status, err)
		}
	}
}

func TestAsksOthers(t *testing.T) {
	notFound, down := refuse(errdefs.ErrNotFound), refuse(errdefs.ErrUnavailable)
	has := serve(blob, nil)
	for _, tt := range []struct {
		name    string
		origins []http.HandlerFunc
		want    error
	}{
		{"one has it", []http.HandlerFunc{notFound, has, notFound}, nil},
		{"one has it, others are down", []http.HandlerFunc{down, has, down}, nil},
		{"nobody has it", []http.HandlerFunc{notFound, notFound}, errdefs.ErrNotFound},
		{"one cannot say", []http.HandlerFunc{notFound, down, notFound}, errdefs.ErrUnavailable},
		{"one refuses", []http.HandlerFunc{refuse(errdefs.ErrPermissionDenied)}, errdefs.ErrPermissionDenied},
		{"one has other bytes", []http.HandlerFunc{refuse(errdefs.ErrDataLoss), has}, nil},
		{"all have other bytes", []http.HandlerFunc{refuse(errdefs.ErrDataLoss), notFound}, errdefs.ErrDataLoss},
	} {
		var fakes []*fake
		for _, h := range tt.origins {
			fakes = append(fakes, newFake(t, h))
		}
		c := newClient(t, fakes...)
		_, err := c.Stat(t.Context(), ref)
		got, rerr := read(c, 0, -1)
		if !errors.Is(err, tt.want) || !errors.Is(rerr, tt.want) || tt.want == nil && !bytes.Equal(got, blob) {
			t.Errorf("%s: stat %v, read %d bytes, %v", tt.name, err, len(got), rerr)
		}
	}
}

// An origin that does not answer is asked last from then on.
func TestHealth(t *testing.T) {
	a, b := newFake(t, serve(blob, nil)), newFake(t, serve(blob, nil))
	c := newClient(t, a, b)
	first, second := a, b
	if c.order(string(ref.Digest))[0].Base != a.URL {
		first, second = b, a
	}
	first.CloseClientConnections()
	first.Listener.Close()
	for range 5 {
		if _, err := c.Stat(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if second.asked.Load() != 5 {
		t.Errorf("the one that answers was asked %d times", second.asked.Load())
	}
	for o := range c.http.Turns(t.Context(), c.order(string(ref.Digest)), false) {
		if o.Base != second.URL {
			t.Errorf("the first asked is %s", o.Base)
		}
		break
	}
}

// A read goes on at another origin, where it broke off, and gives up when nothing
// comes any more.
func TestReadGoesOn(t *testing.T) {
	var cuts atomic.Int32
	cut := func() int { cuts.Add(1); return 30_000 }
	c := newClient(t, newFake(t, serve(blob, cut)), newFake(t, serve(blob, cut)))
	for _, tt := range []struct{ off, n int64 }{{0, -1}, {5, -1}, {5, 100_000}, {100, 7}} {
		want := blob[tt.off:]
		if tt.n >= 0 {
			want = want[:tt.n]
		}
		if got, err := read(c, tt.off, tt.n); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d: %d of %d bytes, %v", tt.n, tt.off, len(got), len(want), err)
		}
	}
	if cuts.Load() < 10 {
		t.Errorf("only %d requests", cuts.Load())
	}
	dead := newFake(t, serve(blob, func() int { return 0 }))
	if got, err := read(newClient(t, dead), 0, -1); !errdefs.IsUnavailable(err) || len(got) != 0 || dead.asked.Load() != maxResumes+1 {
		t.Errorf("%d bytes after %d requests, %v", len(got), dead.asked.Load(), err)
	}
	// Another blob's bytes are not taken for the rest of this one.
	changing := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			serve(blob, func() int { return 1000 })(w, r)
		} else {
			serve(blob[:100_000], nil)(w, r)
		}
	})
	if got, err := read(newClient(t, changing), 0, -1); !errdefs.IsUnavailable(err) || len(got) != 1000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// An answer that is not what was asked for is not handed on.
func TestWrongAnswers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"the whole blob for a range": func(w http.ResponseWriter, _ *http.Request) {
			serve(blob, nil)(w, httptest.NewRequest("GET", "/", nil))
		},
		"no size":         func(w http.ResponseWriter, _ *http.Request) { w.Write(blob) },
		"a negative size": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(HeaderSize, "-5") },
		"a huge size":     func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(HeaderSize, "99999999999999") },
	} {
		if got, err := read(newClient(t, newFake(t, h)), 10, 10); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestRedirects(t *testing.T) {
	target := newFake(t, serve(blob, nil))
	c := newClient(t, newFake(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, target.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	if got, err := read(c, 10, 10); err != nil || !bytes.Equal(got, blob[10:20]) {
		t.Errorf("%q, %v", got, err)
	}
	var loop *fake
	loop = newFake(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, loop.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	if _, err := read(newClient(t, loop), 0, -1); !errdefs.IsUnavailable(err) {
		t.Errorf("in a circle: %v", err)
	}
}

func TestUploadsStayAtTheirOrigin(t *testing.T) {
	id := strings.Repeat("ab", 16)
	var paths []string
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		paths = append(paths, r.Method+" "+r.URL.String()+" "+string(body))
		w.Header().Set(HeaderUpload, id)
		w.Header().Set(HeaderOffset, "7")
		w.Header().Set(HeaderSize, "7")
		if r.Method == "PUT" && len(paths) == 4 {
			w.WriteHeader(http.StatusAccepted)
		}
	})
	c := newClient(t, f)
	up, err := c.StartUpload(t.Context(), "team/app", "")
	if err != nil || !strings.HasSuffix(up, "-"+id) {
		t.Fatalf("%q, %v", up, err)
	}
	if n, err := c.Append(t.Context(), up, 0, strings.NewReader("content")); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := c.UploadOffset(t.Context(), up); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	if info, err := c.Commit(t.Context(), up, ref.Digest); err != nil || info.Size != 7 {
		t.Errorf("%+v, %v", info, err)
	}
	if err := c.Cancel(t.Context(), up); err != nil {
		t.Error(err)
	}
	commit := "PUT /v1/uploads/" + id + "?digest=" + strings.ReplaceAll(string(ref.Digest), ":", "%3A") + " "
	want := []string{
		"POST /v1/uploads?namespace=team%2Fapp ", "PATCH /v1/uploads/" + id + "?offset=0 content", "HEAD /v1/uploads/" + id + " ",
		commit, commit, "DELETE /v1/uploads/" + id + " ",
	}
	if strings.Join(paths, "\n") != strings.Join(want, "\n") {
		t.Errorf("requests:\n%s\nwant\n%s", strings.Join(paths, "\n"), strings.Join(want, "\n"))
	}
	other := newClient(t, newFake(t, refuse(errdefs.ErrNotFound)))
	if _, err := other.UploadOffset(t.Context(), up); !errdefs.IsNotFound(err) {
		t.Errorf("at another origin: %v", err)
	}
}

// An upload is begun where its blob belongs, and says so, and whose it is; an origin of an earlier release is told what it knows.
func TestUploadsBeginWhereTheyBelong(t *testing.T) {
	for _, tt := range []struct {
		refuses []string
		want    string
	}{
		{nil, "digest,owner"}, {[]string{ParamOwner}, "digest,owner digest"}, {[]string{ParamOwner, ParamDigest}, "digest,owner digest -"},
	} {
		var asked, hosts []string
		begin := func(w http.ResponseWriter, r *http.Request) {
			var has []string
			for _, p := range []string{ParamDigest, ParamOwner} {
				if r.URL.Query().Has(p) {
					has = append(has, p)
				}
			}
			asked, hosts = append(asked, cmp.Or(strings.Join(has, ","), "-")), append(hosts, r.Host)
			if slices.ContainsFunc(has, func(p string) bool { return slices.Contains(tt.refuses, p) }) {
				refuse(errdefs.ErrInvalidArgument)(w, r)
				return
			}
			w.Header().Set(HeaderUpload, strings.Repeat("ab", 16))
			w.WriteHeader(http.StatusCreated)
		}
		c := newClient(t, newFake(t, begin), newFake(t, begin), newFake(t, begin))
		if _, err := c.BeginUpload(t.Context(), NewUpload{Namespace: "team/app", Owner: "me", Digest: ref.Digest}); err != nil {
			t.Fatal(err)
		}
		host := strings.TrimPrefix(c.order(string(ref.Digest))[0].Base, "http://")
		if got := strings.Join(asked, " "); got != tt.want || slices.ContainsFunc(hosts, func(h string) bool { return h != host }) {
			t.Errorf("asked %q at %q, want %q at %s", got, hosts, tt.want, host)
		}
	}
}

// When an upload's origin does not answer, another one that has a copy goes on with it, or says who
// does. That others do not have it says nothing.
func TestUploadsMove(t *testing.T) {
	gone := newFake(t, nil)
	at := strings.Repeat("ab", 16)
	var asked []string
	mirror := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.RequestURI())
		w.Header().Set(HeaderOffset, "5")
		w.Header().Set(HeaderSize, "7")
	})
	other := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, mirror.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
	})
	alone := newFake(t, refuse(errdefs.ErrNotFound))
	up := tagOf(newClient(t, gone).origins[gone.URL]) + "-" + at
	gone.Close()
	if _, err := newClient(t, gone, alone).UploadOffset(t.Context(), up); !errdefs.IsUnavailable(err) {
		t.Errorf("its origin is away, and another one does not have it: %v", err)
	}
	c := newClient(t, gone, other, mirror)
	if _, err := c.Append(t.Context(), up, 3, strings.NewReader("tent")); !errdefs.IsUnavailable(err) {
		t.Errorf("appending: %v", err)
	}
	if n, err := c.UploadOffset(t.Context(), up); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := c.Append(t.Context(), up, 5, strings.NewReader("nt")); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	asked = nil
	fresh := newClient(t, gone, other, mirror) // another gateway
	if info, err := fresh.Commit(t.Context(), up, ref.Digest); err != nil || info.Size != 7 {
		t.Errorf("%+v, %v", info, err)
	}
	if len(asked) != 2 || !strings.HasPrefix(asked[0], "HEAD ") || !strings.HasPrefix(asked[1], "PUT ") {
		t.Errorf("the mirror was asked for %q", asked)
	}
	// A body cannot be sent twice: the client has to ask where the upload is.
	moved := newClient(t, other, mirror)
	up = tagOf(moved.origins[other.URL]) + "-" + at
	if _, err := moved.Append(t.Context(), up, 5, struct{ io.Reader }{strings.NewReader("nt")}); !errdefs.IsUnavailable(err) ||
		!strings.Contains(err.Error(), "another origin has it") {
		t.Errorf("appending at the wrong origin: %v", err)
	}
	if n, err := moved.UploadOffset(t.Context(), up); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := moved.Append(t.Context(), up, 5, strings.NewReader("nt")); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestNew(t *testing.T) {
	for _, bad := range [][]string{nil, {""}, {"a:1", "host"}} {
		if _, err := New(Config{Origins: bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	c, err := New(Config{Origins: []string{"a:1", "http://a:1/", "https://b:2"}})
	if err != nil || strings.Join(c.names, " ") != "http://a:1 https://b:2" {
		t.Errorf("%v, %v", c, err)
	}
}
