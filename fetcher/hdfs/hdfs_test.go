package hdfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

func TestConformance(t *testing.T) {
	for _, noInode := range []bool{false, true} {
		t.Run(fmt.Sprintf("noInode=%v", noInode), func(t *testing.T) {
			fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
				f := newFake(t)
				f.noInode = noInode
				return f.open(t, f.config())
			}, fetchertest.Options{})
		})
	}
}

func TestFaults(t *testing.T) {
	standby := fetchertest.Fault{Status: http.StatusForbidden, Body: `{"RemoteException":{"exception":"StandbyException","message":"x"}}`}
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		f := newFake(t)
		p := fetchertest.NewProxy(t, f.URL)
		cfg := f.config()
		cfg.Namenodes, cfg.Retry = []string{p.URL(f.URL)}, config.Duration(time.Hour)
		return f.open(t, cfg), p
	}, fetchertest.FaultOptions{
		Once: map[string]fetchertest.Fault{"standby": standby},
		Clean: func(t *testing.T, b fetcher.Backend) {
			b.(*Backend).wg.Wait()
			page, _, err := b.(*Backend).entries(t.Context(), "", "", 1000)
			if err != nil {
				t.Error(err)
			}
			for _, e := range page {
				if e.name == tmpDir {
					t.Errorf("listed %v", e)
				}
			}
		},
	})
}

func TestNames(t *testing.T) {
	var all []string
	for c := 0x21; c < 0x100; c++ {
		if c == '/' || c == '\\' || c == 0x7f {
			continue
		}
		all = append(all, string([]byte{byte(c)}), string([]byte{'a', byte(c)}), string([]byte{byte(c), 'z'}), string([]byte{byte(c), byte(c)}))
	}
	for _, x := range all {
		n := encode(x)
		if got, ok := decode(n); !ok || got != x {
			t.Errorf("%q is %q, and that is %q, %v", x, n, got, ok)
		}
		if strings.Trim(n, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._=!~") != "" {
			t.Errorf("%q is %q", x, n)
		}
		for _, y := range all {
			if strings.Compare(x, y) != strings.Compare(n, encode(y)) {
				t.Errorf("%q and %q sort otherwise as %q and %q", x, y, n, encode(y))
			}
		}
	}
	for _, n := range []string{"_tmp", "_", "!", "!m", "=h", "_g", "~", "~7", "~7a", "~zz", "a b", "é", "a_z", "a/b", "x+y"} {
		if got, ok := decode(n); ok {
			t.Errorf("%q is %q", n, got)
		}
	}
	if _, err := pathOf("a/.snapshot/b"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if p, err := pathOf("blobs/sha256/ab/abcd"); p != "blobs/sha256/ab/abcd" || err != nil {
		t.Error(p, err)
	}
}

func FuzzNames(f *testing.F) {
	f.Add("a_b%é", "~7b=a")
	f.Fuzz(func(t *testing.T, x, y string) {
		if fetcher.CheckKey(x) == nil && !strings.Contains(x, "/") {
			if got, ok := decode(encode(x)); !ok || got != x {
				t.Errorf("%q is %q, and that is %q", x, encode(x), got)
			}
		}
		if e, ok := decode(y); ok && encode(e) != y {
			t.Errorf("%q is %q, and that is %q", y, e, encode(e))
		}
	})
}

func TestConfig(t *testing.T) {
	good := Config{Namenodes: []string{"http://nn:9870"}, Path: "/capelin"}
	for _, tt := range []struct {
		key    string
		change func(*Config)
	}{
		{"", func(*Config) {}},
		{"", func(c *Config) { c.Namenodes = []string{"https://a:1/", "http://[::1]:2"} }},
		{"", func(c *Config) { c.Principal, c.Keytab = "a/b@C", "/k" }},
		{"", func(c *Config) { c.CCache = "/c" }},
		{"namenodes", func(c *Config) { c.Namenodes = nil }},
		{"namenodes", func(c *Config) { c.Namenodes = []string{"nn:9870"} }},
		{"namenodes", func(c *Config) { c.Namenodes = []string{"hdfs://nn:8020"} }},
		{"namenodes", func(c *Config) { c.Namenodes = []string{"http://u:p@nn:9870"} }},
		{"namenodes", func(c *Config) { c.Namenodes = []string{"http://nn:9870/webhdfs/v1"} }},
		{"path", func(c *Config) { c.Path = "/" }},
		{"path", func(c *Config) { c.Path = "a" }},
		{"path", func(c *Config) { c.Path = "/a/../b" }},
		{"path", func(c *Config) { c.Path = "/a b" }},
		{"principal", func(c *Config) { c.Keytab = "/k" }},
		{"principal", func(c *Config) { c.Principal, c.Keytab = "a", "/k" }},
		{"principal", func(c *Config) { c.Principal = "a@B" }},
		{"keytab", func(c *Config) { c.Principal, c.Keytab = "a@B", "k" }},
		{"ccache", func(c *Config) { c.Principal, c.Keytab, c.CCache = "a@B", "/k", "/c" }},
		{"user", func(c *Config) { c.CCache, c.User = "/c", "u" }},
		{"ca", func(c *Config) { c.CA = "x.pem" }},
		{"replication", func(c *Config) { c.Replication = -1 }},
		{"block_size", func(c *Config) { c.BlockSize = 1 }},
		{"stall", func(c *Config) { c.Stall = -1 }},
	} {
		c := good
		tt.change(&c)
		errs := c.Check("x.")
		if tt.key == "" && errs != nil || tt.key != "" && (len(errs) != 1 || config.KeyOf(errs[0]) != "x."+tt.key) {
			t.Errorf("%+v: %v", c, errs)
		}
		if b, err := Open(c); tt.key != "" && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		} else if err == nil {
			b.Close()
		}
	}
	good.CA = filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(good.CA, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(good); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		status    int
		exception string
		want      error
	}{
		{404, "FileNotFoundException", errdefs.ErrNotFound},
		{404, "", errdefs.ErrFailedPrecondition}, // no WebHDFS
		{403, "AccessControlException", errdefs.ErrPermissionDenied},
		{500, "AccessControlException", errdefs.ErrPermissionDenied}, // HttpFS
		{403, "", errdefs.ErrPermissionDenied},
		{401, "", errdefs.ErrUnauthenticated},
		{403, "InvalidToken", errdefs.ErrUnauthenticated},
		{403, "StandbyException", errdefs.ErrUnavailable},
		{403, "SafeModeException", errdefs.ErrUnavailable},
		{403, "IOException", errdefs.ErrUnavailable},
		{403, "DSQuotaExceededException", errdefs.ErrResourceExhausted},
		{403, "ParentNotDirectoryException", errdefs.ErrFailedPrecondition},
		{400, "IllegalArgumentException", errdefs.ErrFailedPrecondition},
		{400, "UnsupportedOperationException", errdefs.ErrNotImplemented},
		{500, "", errdefs.ErrUnavailable},
		{302, "", errdefs.ErrUnavailable},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if tt.exception != "" {
				refused(w, tt.status, tt.exception, "text")
				return
			}
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, "<html>")
		}))
		b := (*fake)(nil).open(t, Config{Namenodes: []string{s.URL}, Path: "/capelin", Retry: 1})
		_, err := b.Stat(t.Context(), "a/key")
		if !strings.Contains(fmt.Sprint(err), "a/key") || !strings.Contains(err.Error(), b.Name()) {
			t.Errorf("%d %s: %v names not what", tt.status, tt.exception, err)
		}
		for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated,
			errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrNotImplemented} {
			if is := errors.Is(err, class); is != (class == tt.want) {
				t.Errorf("%d %s: %v, %v: %v", tt.status, tt.exception, err, class, is)
			}
		}
		b.Close()
		s.Close()
	}
}

// TestFailover: who is in standby or gone is passed over, and not asked again as long as the active one answers.
func TestFailover(t *testing.T) {
	f := newFake(t)
	asked := 0
	standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		refused(w, http.StatusForbidden, "StandbyException", "Operation category READ is not supported in state standby")
	}))
	defer standby.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	cfg := f.config()
	cfg.Namenodes = []string{gone.URL, standby.URL, f.URL}
	b := f.open(t, cfg)
	defer b.Close()
	for range 3 {
		if _, err := b.Write(t.Context(), "x", 1, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 1 {
		t.Errorf("the namenode in standby was asked %d times", asked)
	}
	// What the active one says is said, whoever else there is.
	if _, err := b.Stat(t.Context(), "y"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	cfg.Namenodes, cfg.Retry = []string{gone.URL, standby.URL}, 1
	alone := f.open(t, cfg)
	defer alone.Close()
	if _, err := alone.Stat(t.Context(), "x"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "StandbyException") {
		t.Error(err)
	}
}

// TestSweep: only what is old by the namenode's clock, and what Write made, is removed.
func TestSweep(t *testing.T) {
	f := newFake(t)
	old, young := time.Now().Add(-25*time.Hour), time.Now().Add(-23*time.Hour)
	f.mkdirs("/capelin/_tmp")
	names := map[string]bool{}
	for name, at := range map[string]time.Time{
		"AAAAAAAAAAAAAAAAAAAAAAAAAA": old, "BAAAAAAAAAAAAAAAAAAAAAAAAA": young, "of-somebody-else": old,
	} {
		f.add("/capelin/_tmp/"+name, &inode{time: at})
		names[name] = name[0] != 'A'
	}
	for i := range 5 { // more than an answer
		f.add("/capelin/_tmp/"+strings.Repeat("C", 25)+string(rune('D'+i)), &inode{time: old})
	}
	b := f.open(t, f.config())
	defer b.Close()
	for range 2 {
		if _, err := b.Write(t.Context(), "x", 1, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		for name, stays := range names {
			if there := f.files["/capelin/_tmp/"+name] != nil; there != stays {
				t.Errorf("%s is there: %v", name, there)
			}
		}
	}
	if n := len(slices.DeleteFunc(keys(f), func(p string) bool { return !strings.HasPrefix(p, "/capelin/_tmp/") })); n != 2 {
		t.Errorf("%d are left", n)
	}
}

func keys(f *fake) (all []string) {
	for p := range f.files {
		all = append(all, p)
	}
	return all
}

// TestCheck says what to do.
func TestCheck(t *testing.T) {
	f := newFake(t)
	for _, tt := range []struct {
		path      string
		exception string
		want      string
	}{
		{"/capelin", "", ""},
		{"/other", "", "hdfs dfs -mkdir -p /other"},
		{"/capelin/file", "", "no directory"},
		{"/capelin", "AccessControlException", "capelin needs rwx in /capelin"},
	} {
		f.add("/capelin/file", &inode{})
		f.refuse = func(_ *http.Request, op string) (int, string) {
			if tt.exception != "" && op == "CHECKACCESS" {
				return 403, tt.exception
			}
			return 0, ""
		}
		cfg := f.config()
		cfg.Path = tt.path
		b := f.open(t, cfg)
		if err := b.Check(t.Context()); tt.want == "" && err != nil || !strings.Contains(fmt.Sprint(err), tt.want) || errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", tt.path, err)
		}
		b.Close()
	}
}

// TestRedirects: no token goes where nobody was meant to be sent.
func TestRedirects(t *testing.T) {
	asked, _ := url.Parse("https://nn:9871/webhdfs/v1/x")
	for at, ok := range map[string]bool{
		"https://dn:9865/x?delegation=secret": true, "http://dn:9864/x?delegation=secret": false, "//dn/x": false, "": false, "/x": false,
		"https://u:p@dn/x": false, "ftp://dn/x": false,
	} {
		got, err := place(&http.Response{Header: http.Header{"Location": {at}}, Request: &http.Request{URL: asked}})
		if ok != (err == nil) || err == nil && got.String() != at ||
			err != nil && (!errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q: %v, %v", at, got, err)
		}
	}
}

// TestHostileAnswers: nothing that is sent takes memory without a bound, or stays without an error.
func TestHostileAnswers(t *testing.T) {
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	defer s.Close()
	b := (*fake)(nil).open(t, Config{Namenodes: []string{s.URL}, Path: "/capelin", Retry: 1})
	defer b.Close()
	for _, body = range []string{
		"", "x", "{}", "[]", `{"FileStatus":null}`, `{"FileStatus":{"length":"x"}}`, `{"FileStatus":` + strings.Repeat(" ", 1<<20) + "{}}",
		`{"DirectoryListing":{"partialListing":{"FileStatuses":{"FileStatus":[{"pathSuffix":"` + strings.Repeat("x", 1<<20) + `"}]}}}}`,
		`{"DirectoryListing":{"partialListing":{"FileStatuses":{"FileStatus":[{"pathSuffix":"a","type":"FILE"}]}},"remainingEntries":7}}`,
		`{"DirectoryListing":{"partialListing":{"FileStatuses":{"FileStatus":[` +
			`{"pathSuffix":"b","type":"FILE"},{"pathSuffix":"a","type":"FILE"}]}}}}`,
		`{"DirectoryListing":{"partialListing":{"FileStatuses":{"FileStatus":[{"pathSuffix":"b","type":"FI`,
		strings.Repeat("[", 1<<20),
	} {
		if _, err := b.Stat(t.Context(), "x"); !errdefs.IsUnavailable(err) {
			t.Errorf("%.80q: %v", body, err)
		}
		if _, _, err := b.List(t.Context(), "", "", 0); !errdefs.IsUnavailable(err) && !harmless(body) {
			t.Errorf("%.80q: listed: %v", body, err)
		}
	}
}

// harmless are answers that list nothing.
func harmless(body string) bool {
	return !strings.Contains(body, "pathSuffix") && body != "x" && body[:min(2, len(body))] != "[["
}

// TestReplaced: an object that is replaced between the look at it and the read is read as Info says.
func TestReplaced(t *testing.T) {
	for _, noInode := range []bool{false, true} {
		f := newFake(t)
		f.noInode = noInode
		b := f.open(t, f.config())
		b.noInodes.Store(noInode)
		if _, err := b.Write(t.Context(), "x", 3, strings.NewReader("old")); err != nil {
			t.Fatal(err)
		}
		replaced := false
		f.refuse = func(_ *http.Request, op string) (int, string) {
			if op == "OPEN" && !replaced {
				replaced = true
				f.add("/capelin/x", &inode{data: []byte("what is new")})
			}
			return 0, ""
		}
		r, info, err := b.Open(t.Context(), "x", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); string(got) != "what is new" || info.Size != 11 || err != nil {
			t.Errorf("noInode %v: %q of %d, %v", noInode, got, info.Size, err)
		}
		r.Close()
		b.Close()
	}
}

// TestSmallAgain: what is small is sent again, to another datanode, whatever became of the first.
func TestSmallAgain(t *testing.T) {
	for _, size := range []int{0, 1, copySize - 1, copySize, copySize + 1} {
		for _, known := range []bool{false, true} {
			for _, fault := range []fetchertest.Fault{{Refused: true}, {Lost: true}, {Status: 503}} {
				f := newFake(t)
				p := fetchertest.NewProxy(t, f.URL)
				cfg := f.config()
				cfg.Namenodes, cfg.Retry = []string{p.URL(f.URL)}, 1
				b := f.open(t, cfg)
				n := 0
				p.Fail(func(r *http.Request) *fetchertest.Fault {
					if r.URL.Query().Has("datanode") {
						if n++; n == 1 {
							return &fault
						}
					}
					return nil
				})
				data, length := bytes.Repeat([]byte("x"), size), int64(-1)
				if known {
					length = int64(size)
				}
				// One byte at a time makes the first ones many.
				head := min(size/2, 100)
				_, err := b.Write(t.Context(), "x", length,
					io.MultiReader(iotest.OneByteReader(bytes.NewReader(data[:head])), bytes.NewReader(data[head:])))
				if size < copySize && err != nil || err != nil && !errdefs.IsUnavailable(err) {
					t.Errorf("%d bytes, known %v, %+v: %v", size, known, fault, err)
				}
				if i := f.files["/capelin/x"]; (err == nil) != (i != nil) || i != nil && !bytes.Equal(i.data, data) {
					t.Errorf("%d bytes, known %v, %+v: %v, and something else is there", size, known, fault, err)
				}
				b.Close()
			}
		}
	}
}

// TestLostRename: a rename of which no answer ever comes is either undone or done, and that is what Write says.
func TestLostRename(t *testing.T) {
	for _, carriedOut := range []bool{false, true} {
		f := newFake(t)
		p := fetchertest.NewProxy(t, f.URL)
		cfg := f.config()
		cfg.Namenodes, cfg.Retry = []string{p.URL(f.URL)}, 1
		b := f.open(t, cfg)
		first := true
		p.Fail(func(r *http.Request) *fetchertest.Fault {
			if r.URL.Query().Get("op") != "RENAME" {
				return nil
			}
			lost := carriedOut && first
			first = false
			return &fetchertest.Fault{Lost: lost, Refused: !lost}
		})
		f.mkdirs("/capelin/a")
		_, err := b.Write(t.Context(), "a/x", 5, bytes.NewReader([]byte("bytes")))
		if carriedOut != (err == nil) || err != nil && !errdefs.IsUnavailable(err) {
			t.Errorf("carried out %v: %v", carriedOut, err)
		}
		if there := f.files["/capelin/a/x"] != nil; there != carriedOut {
			t.Errorf("carried out %v: it is there: %v", carriedOut, there)
		}
		for _, k := range keys(f) {
			if strings.HasPrefix(k, "/capelin/_tmp/") {
				t.Errorf("left behind: %s", k)
			}
		}
		b.Close()
	}
}
