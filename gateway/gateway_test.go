package gateway

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// gateway is one over fakes, with users alice (team/*: everything), bob (team/*:
// pull) and carol (other/*: pull, push), a token of dave's (team/*: pull), and
// everybody may pull public/*.
type gateway struct {
	t      *testing.T
	url    string
	origin *fakeOrigin
	index  *fakeIndex
	users  string
}

func newGateway(t *testing.T, change func(*Config)) *gateway {
	t.Helper()
	g := &gateway{t: t, origin: newFakeOrigin(), users: filepath.Join(t.TempDir(), "users")}
	g.index = newFakeIndex(g.origin)
	g.writeUsers("alice", "bob", "carol")
	tokens := filepath.Join(t.TempDir(), "tokens")
	text := fmt.Sprintf("[[token]]\nuser = \"dave\"\nsha256 = \"%x\"\n"+
		"[[token]]\nuser = \"dave\"\nsha256 = \"%x\"\nexpires = 2001-01-01T00:00:00Z\n",
		sha256.Sum256([]byte("good")), sha256.Sum256([]byte("old")))
	if err := os.WriteFile(tokens, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Users, cfg.Tokens = g.users, tokens
	cfg.Rules = []RuleConfig{
		{Users: []string{"alice"}, Namespaces: []string{"team/.*"}, Actions: []string{"pull", "push", "delete"}},
		{Users: []string{"bo*", "dave"}, Namespaces: []string{"team/.*"}, Actions: []string{"pull"}},
		{Users: []string{"carol"}, Namespaces: []string{"other/.*"}, Actions: []string{"pull", "push"}},
		{Users: []string{"*"}, Namespaces: []string{"public/.*"}, Actions: []string{"pull"}},
	}
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	h, err := New(cfg, g.origin, g.index)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(ociapi.Patient(h))
	t.Cleanup(s.Close)
	g.url = s.URL
	return g
}

// writeUsers makes the password of each user "pw-<name>".
func (g *gateway) writeUsers(names ...string) {
	var text strings.Builder
	for _, n := range names {
		hash, err := bcrypt.GenerateFromPassword([]byte("pw-"+n), bcrypt.MinCost)
		if err != nil {
			g.t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s:%s\n", n, hash)
	}
	if err := os.WriteFile(g.users, []byte("# users\n\n"+text.String()), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// do sends a request as a user ("": nobody; "Bearer x": with a token).
func (g *gateway) do(as, method, path, body string, header ...string) (*http.Response, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	switch {
	case strings.HasPrefix(as, "Bearer "):
		req.Header.Set("Authorization", as)
	case as == "nobody": // who says so
		req.SetBasicAuth("", "")
	case as != "":
		req.SetBasicAuth(as, "pw-"+as)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp, string(text)
}

// blob puts a blob into a repository, behind the gateway's back.
func (g *gateway) blob(repo, data string) digest.Digest {
	d := digest.FromString(data)
	g.origin.mu.Lock()
	g.origin.blobs[d] = []byte(data)
	g.origin.mu.Unlock()
	desc, _ := g.index.Blob(g.t.Context(), repo, d)
	desc.Digest, desc.Size = d, int64(len(data))
	_ = g.index.LinkBlob(g.t.Context(), repo, desc)
	return d
}

func TestWhoMayDoWhat(t *testing.T) {
	g := newGateway(t, nil)
	d := g.blob("team/app", "layer")
	p := g.blob("public/app", "free")
	for _, tt := range []struct {
		as, method, path string
		status           int
	}{
		{"", "GET", "/v2/", 401},
		{"alice", "GET", "/v2/", 200},
		{"mallory", "GET", "/v2/", 401},
		{"Bearer good", "GET", "/v2/", 200},
		{"Bearer old", "GET", "/v2/", 401},
		{"Bearer bad", "GET", "/v2/", 401},

		{"", "GET", "/v2/team/app/blobs/" + d.String(), 401},
		{"bob", "GET", "/v2/team/app/blobs/" + d.String(), 200},
		{"bob", "HEAD", "/v2/team/app/blobs/" + d.String(), 200},
		{"Bearer good", "GET", "/v2/team/app/blobs/" + d.String(), 200},
		{"carol", "GET", "/v2/team/app/blobs/" + d.String(), 403},
		{"carol", "GET", "/v2/other/app/blobs/" + d.String(), 404}, // of another repository
		{"", "GET", "/v2/public/app/blobs/" + p.String(), 200},
		{"mallory", "GET", "/v2/public/app/blobs/" + p.String(), 401}, // wrong is not nobody

		{"", "POST", "/v2/team/app/blobs/uploads/", 401},
		{"bob", "POST", "/v2/team/app/blobs/uploads/", 403},
		{"alice", "POST", "/v2/team/app/blobs/uploads/", 202},
		{"alice", "POST", "/v2/steam/app/blobs/uploads/", 403}, // patterns match whole names
		{"alice", "POST", "/v2/public/app/blobs/uploads/", 403},
		{"bob", "PUT", "/v2/team/app/manifests/1", 403},
		{"bob", "PUT", "/v2/team/app/manifests/" + digest.SHA512.FromString("").String(), 403},
		{"", "DELETE", "/v2/team/app/manifests/1", 401},
		{"bob", "DELETE", "/v2/team/app/manifests/" + d.String(), 403},
		{"carol", "DELETE", "/v2/other/app/blobs/" + d.String(), 403},
		{"alice", "DELETE", "/v2/team/app/blobs/" + d.String(), 202},
		{"bob", "DELETE", "/v2/team/app/blobs/uploads/x", 403},

		{"", "GET", "/v2/team/app/tags/list", 401},
		{"carol", "GET", "/v2/team/app/tags/list", 403},
		{"carol", "GET", "/v2/team/app/referrers/" + d.String(), 403},
	} {
		resp, body := g.do(tt.as, tt.method, tt.path, "")
		if resp.StatusCode != tt.status {
			t.Errorf("%s %s by %q: %s %s; want %d", tt.method, tt.path, tt.as, resp.Status, body, tt.status)
		}
		if c := resp.Header.Get("WWW-Authenticate"); (resp.StatusCode == 401) != strings.HasPrefix(c, "Bearer ") {
			t.Errorf("%s %s by %q: %s with the challenge %q", tt.method, tt.path, tt.as, resp.Status, c)
		}
	}
	if resp, body := g.do("", "GET", "/v2/_catalog", ""); resp.StatusCode != 401 { // clients that are logged in would not say so otherwise
		t.Errorf("the catalog without credentials: %s %s", resp.Status, body)
	}
	for as, want := range map[string]string{"alice": "public/app,team/app", "carol": "other/app,public/app", "nobody": "public/app"} {
		_, body := g.do(as, "GET", "/v2/_catalog", "")
		var c struct{ Repositories []string }
		if err := json.Unmarshal([]byte(body), &c); err != nil || strings.Join(c.Repositories, ",") != want {
			t.Errorf("%q sees %q, want %q", as, body, want)
		}
	}
}

// A mount needs the right to pull from the source, and otherwise is an upload.
func TestMount(t *testing.T) {
	g := newGateway(t, func(c *Config) {
		c.Rules = append(c.Rules, RuleConfig{Users: []string{"carol"}, Namespaces: []string{"shared/.*"}, Actions: []string{"pull"}})
	})
	secret, shared := g.blob("team/app", "secret"), g.blob("shared/app", "shared")
	mount := func(from string, d digest.Digest) int {
		resp, _ := g.do("carol", "POST", "/v2/other/app/blobs/uploads/?mount="+d.String()+"&from="+from, "")
		return resp.StatusCode
	}
	if got := mount("team/app", secret); got != 202 {
		t.Errorf("a mount of what one may not pull: %d", got)
	}
	if resp, _ := g.do("carol", "GET", "/v2/other/app/blobs/"+secret.String(), ""); resp.StatusCode != 404 {
		t.Errorf("and it is there: %s", resp.Status)
	}
	if got := mount("shared/app", secret); got != 202 {
		t.Errorf("a mount of what is not in the repository: %d", got)
	}
	if got := mount("shared/app", shared); got != 201 {
		t.Errorf("a mount: %d", got)
	}
	if resp, body := g.do("carol", "GET", "/v2/other/app/blobs/"+shared.String(), ""); body != "shared" {
		t.Errorf("mounted: %s %q", resp.Status, body)
	}
}

func TestUploads(t *testing.T) {
	g := newGateway(t, nil)
	g.origin.refuse = "team/nowhere"
	if resp, body := g.do("alice", "POST", "/v2/team/nowhere/blobs/uploads/", ""); resp.StatusCode != 403 ||
		!strings.Contains(body, "no backend takes") {
		t.Errorf("a namespace that nobody takes: %s %s", resp.Status, body)
	}
	start := func() string {
		resp, _ := g.do("alice", "POST", "/v2/team/app/blobs/uploads/", "")
		return resp.Header.Get("Location")
	}
	d := digest.FromString("0123456789")
	commit := func(at string, d digest.Digest, body string) *http.Response {
		sep := "?"
		if strings.Contains(at, "?") {
			sep = "&"
		}
		resp, _ := g.do("alice", "PUT", at+sep+"digest="+d.String(), body)
		return resp
	}
	at := start()
	if resp, _ := g.do("alice", "PATCH", at, "01234", "Content-Range", "0-4"); resp.StatusCode != 202 || resp.Header.Get("Range") != "0-4" {
		t.Errorf("first chunk: %s %s", resp.Status, resp.Header.Get("Range"))
	}
	if resp, _ := g.do("alice", "PATCH", at, "x", "Content-Range", "9-9"); resp.StatusCode != 416 {
		t.Errorf("a chunk out of order: %s", resp.Status)
	}
	if resp, _ := g.do("alice", "PATCH", at, "01234", "Content-Range", "0-4"); resp.StatusCode != 416 {
		t.Errorf("a chunk again: %s", resp.Status)
	}
	one := start()
	if resp, body := g.do("alice", "PATCH", one, "x", "Content-Range", "0-0"); resp.StatusCode != 202 {
		t.Errorf("a chunk of one byte: %s %s", resp.Status, body)
	}
	if resp, _ := g.do("alice", "PATCH", one, "x", "Content-Range", "0-0"); resp.StatusCode != 416 {
		t.Errorf("and again: %s", resp.Status)
	}
	if resp, _ := g.do("alice", "GET", at, ""); resp.StatusCode != 204 || resp.Header.Get("Range") != "0-4" {
		t.Errorf("where it stands: %s %s", resp.Status, resp.Header.Get("Range"))
	}
	if resp, _ := g.do("alice", "PATCH", at, "567"); resp.StatusCode != 202 { // Docker sends no range
		t.Errorf("a chunk without a range: %s", resp.Status)
	}
	if resp := commit(at, d, "89"); resp.StatusCode != 201 {
		t.Errorf("commit: %s", resp.Status)
	}
	if _, body := g.do("bob", "GET", "/v2/team/app/blobs/"+d.String(), ""); body != "0123456789" {
		t.Errorf("uploaded %q", body)
	}
	if resp := commit(start(), d, "something else"); resp.StatusCode != 400 {
		t.Errorf("a wrong digest: %s", resp.Status)
	}
	if resp := commit("/v2/team/app/blobs/uploads/bm9uc2Vuc2U", d, "x"); resp.StatusCode != 404 {
		t.Errorf("an upload that is not there: %s", resp.Status)
	}
	at = start()
	if resp, _ := g.do("alice", "DELETE", at, ""); resp.StatusCode != 204 {
		t.Errorf("cancel: %s", resp.Status)
	}
	if resp, _ := g.do("alice", "DELETE", at, ""); resp.StatusCode != 404 {
		t.Errorf("cancel again: %s", resp.Status)
	}
}

// An upload is begun where its blob belongs, if the request that begins it says which one that is.
func TestUploadsBeginWhereTheyBelong(t *testing.T) {
	g := newGateway(t, nil)
	d, m := digest.FromString("content"), digest.FromString("manifest")
	const begin = "/v2/team/app/blobs/uploads/"
	for _, tt := range []struct {
		what, path, body string
		status           int
		want             digest.Digest
	}{
		{"an upload", begin, "", 202, ""},
		{"an upload in one request", begin + "?digest=" + d.String(), "content", 201, d},
		{"a mount of what is not there", begin + "?mount=" + m.String() + "&from=team/other", "", 202, m},
		{"a mount from nowhere", begin + "?mount=" + m.String(), "", 202, m},
		{"a mount of nonsense", begin + "?mount=sha256:xyz&from=team/other", "", 202, ""},
	} {
		g.origin.hints = nil
		resp, _ := g.do("alice", "POST", tt.path, tt.body)
		if resp.StatusCode != tt.status || len(g.origin.hints) != 1 || g.origin.hints[0] != tt.want {
			t.Errorf("%s: %s, begun for %q, want %q", tt.what, resp.Status, g.origin.hints, tt.want)
		}
	}
	g.origin.hints = nil
	raw := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	resp, _ := g.do("alice", "PUT", "/v2/team/app/manifests/latest", raw, "Content-Type", "application/vnd.oci.image.index.v1+json")
	if want := digest.FromString(raw); resp.StatusCode != 201 || len(g.origin.hints) != 1 || g.origin.hints[0] != want {
		t.Errorf("a manifest: %s, begun for %q, want %q", resp.Status, g.origin.hints, want)
	}
}

func TestUnavailable(t *testing.T) {
	g := newGateway(t, nil)
	d := g.blob("team/app", "x")
	g.origin.err = fmt.Errorf("no origin answers: %w", errdefs.ErrUnavailable)
	resp, body := g.do("bob", "GET", "/v2/team/app/blobs/"+d.String(), "")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "no origin answers") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// Who has too many uploads is told to come again, and not that the disk is full.
func TestTooManyUploads(t *testing.T) {
	g := newGateway(t, nil)
	g.origin.err = fmt.Errorf("origin http://10.0.0.1:7480: there are 512 already of one user: %w", origin.ErrBusy)
	resp, body := g.do("alice", "POST", "/v2/team/app/blobs/uploads/", "")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "10" || !strings.Contains(body, "TOOMANYREQUESTS") ||
		!strings.Contains(body, "512 already") || strings.Contains(body, "10.0.0.1") {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	g.origin.err = fmt.Errorf("the disk is full: %w", errdefs.ErrResourceExhausted)
	if resp, body := g.do("alice", "POST", "/v2/team/app/blobs/uploads/", ""); resp.StatusCode != 507 {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// What was lost with an origin in the middle of a push is pushed again: the client is told so in the way in which it understands it.
func TestLostInPush(t *testing.T) {
	g := newGateway(t, nil)
	resp, _ := g.do("alice", "POST", "/v2/team/app/blobs/uploads/", "")
	g.origin.lost = fmt.Errorf("upload u, which is at 3: %w", errdefs.ErrOutOfRange)
	resp, body := g.do("alice", "PUT", resp.Header.Get("Location")+"?digest="+digest.FromString("more").String(), "")
	if resp.StatusCode != 503 || !strings.Contains(body, "which is at 3") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// A real client pushes and pulls; what is incomplete or no manifest is refused.
func TestManifests(t *testing.T) {
	g := newGateway(t, nil)
	img, err := random.Image(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(g.url, "http://")+"/team/app:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	auth := func(user string) remote.Option {
		return remote.WithAuth(&authn.Basic{Username: user, Password: "pw-" + user})
	}
	if err := remote.Write(ref, img, auth("alice")); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref, auth("bob"))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := got.Digest()
	b, _ := img.Digest()
	if a != b {
		t.Errorf("got %s, pushed %s", a, b)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	kind := "application/vnd.docker.distribution.manifest.v2+json"
	if resp, body := g.do("alice", "PUT", "/v2/team/incomplete/manifests/1", string(raw), "Content-Type", kind); resp.StatusCode != 404 ||
		!strings.Contains(body, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("without its blobs: %s %s", resp.Status, body)
	}
	for what, tt := range map[string]struct{ kind, body string }{
		"nonsense":     {kind, "nonsense"},
		"text":         {"text/plain", "hello"},
		"empty":        {kind, ""},
		"cut":          {kind, string(raw[:len(raw)-1])},
		"more":         {kind, string(raw) + "}}"},
		"deep":         {kind, `{"schemaVersion":2,"mediaType":"` + kind + `","x":` + strings.Repeat("[", 1<<20) + "}"},
		"unknown type": {"application/vnd.example+json", `{"schemaVersion":2,"mediaType":"application/vnd.example+json","layers":[]}`},
		"as a form":    {"application/x-www-form-urlencoded", string(raw)},
		"as OCI's":     {"application/vnd.oci.image.manifest.v1+json", string(raw)},
	} {
		resp, body := g.do("alice", "PUT", "/v2/team/app/manifests/2", tt.body, "Content-Type", tt.kind)
		if resp.StatusCode != 400 || !strings.Contains(body, "MANIFEST_INVALID") {
			t.Errorf("%s: %s %s", what, resp.Status, body)
		}
		if resp, _ := g.do("bob", "GET", "/v2/team/app/manifests/2", ""); resp.StatusCode != 404 {
			t.Errorf("after %s: %s", what, resp.Status)
		}
	}
	if resp, _ := g.do("bob", "GET", "/v2/team/app/manifests/"+b.String(), ""); resp.Header.Get("Content-Type") != kind {
		t.Errorf("after all that, its type is %s", resp.Header.Get("Content-Type"))
	}
	if resp, body := g.do("alice", "PUT", "/v2/team/app/manifests/plain", string(raw)); resp.StatusCode != 201 ||
		resp.Header.Get("Location") != "/v2/team/app/manifests/"+b.String() || resp.Header.Get("Docker-Content-Digest") != b.String() {
		t.Errorf("without a type: %s %s %v", resp.Status, body, resp.Header)
	}
	about := `{"schemaVersion":2,"manifests":[],"subject":{"mediaType":"` + kind + `","digest":"` + b.String() + `","size":1}}`
	if resp, body := g.do("alice", "PUT", "/v2/team/app/manifests/about", about); resp.StatusCode != 201 ||
		resp.Header.Get("OCI-Subject") != b.String() {
		t.Errorf("with a subject: %s %s %v", resp.Status, body, resp.Header)
	}
	if resp, _ := g.do("alice", "PUT", "/v2/team/app/manifests/sha256:zz", string(raw), "Content-Type", kind); resp.StatusCode != 400 {
		t.Errorf("no digest: %s", resp.Status)
	}
	path := "/v2/team/app/manifests/" + digest.FromString("other").String()
	if resp, _ := g.do("alice", "PUT", path, string(raw), "Content-Type", kind); resp.StatusCode != 400 {
		t.Errorf("another digest: %s", resp.Status)
	}
	long := digest.SHA512.FromBytes(raw)
	path = "/v2/team/app/manifests/" + long.String()
	if resp, body := g.do("alice", "PUT", path, string(raw), "Content-Type", kind+"; charset=utf-8"); resp.StatusCode != 201 {
		t.Errorf("by sha512: %s %s", resp.Status, body)
	}
	if resp, body := g.do("bob", "GET", path, ""); body != string(raw) || resp.Header.Get("Content-Type") != kind {
		t.Errorf("by sha512: %s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	big := strings.Repeat(" ", maxManifest+1)
	if resp, _ := g.do("alice", "PUT", "/v2/team/app/manifests/big", big, "Content-Type", kind); resp.StatusCode != 413 {
		t.Errorf("too large: %s", resp.Status)
	}
	if resp, _ := g.do("alice", "DELETE", "/v2/team/app/manifests/1", ""); resp.StatusCode != 202 {
		t.Errorf("deleting a tag: %s", resp.Status)
	}
	if resp, _ := g.do("bob", "GET", "/v2/team/app/manifests/1", ""); resp.StatusCode != 404 {
		t.Errorf("after that: %s", resp.Status)
	}
}

// The users' file is read again when it changes; nonsense in it is not taken.
func TestUsersChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	g := &gateway{t: t, users: path}
	g.writeUsers("alice")
	u, err := newUsers(path, "")
	if err != nil {
		t.Fatal(err)
	}
	may := func(user string) bool { return u.password(t.Context(), user, "pw-"+user, "") == nil }
	if !may("alice") || may("bob") || !may("alice") || u.password(t.Context(), "alice", "pw-bob", "") == nil ||
		u.password(t.Context(), "alice", strings.Repeat("x", 100), "") == nil {
		t.Error("wrong at the start")
	}
	g.writeUsers("alice", "bob")
	if u.files.Look(); !may("bob") {
		t.Error("a new user cannot log in")
	}
	if err := os.WriteFile(path, []byte("alice:plain\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if u.files.Look(); !may("bob") {
		t.Error("nonsense was taken for users")
	}
	if _, err := u.read(); err == nil || !strings.Contains(err.Error(), path+":1") {
		t.Errorf("nonsense: %v", err)
	}
	g.writeUsers("bob")
	if u.files.Look(); may("alice") {
		t.Error("a user that is gone can log in")
	}
	hash := string(u.files.Get().all[0])
	for _, bad := range []string{"x", "anonymous:" + hash, ":" + hash} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newUsers(path, ""); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
	for key, files := range map[string][2]string{"users": {path + "x", ""}, "tokens": {"", path + "x"}} {
		if _, err := newUsers(files[0], files[1]); fmt.Sprint(err) != key+": "+path+"x: no such file or directory" {
			t.Errorf("%s that are not there: %v", key, err)
		}
	}
}

func TestGatewayConfig(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"defaults", func(*Config) {}, ""},
		{"beyond loopback", func(c *Config) { c.Listen = ":7500" }, "without TLS"},
		{"TLS, but everybody", func(c *Config) { c.Listen, c.Cert, c.Key = ":7500", "a", "b" }, "everybody may do everything"},
		{"meant", func(c *Config) { c.Listen, c.Insecure = ":7500", true }, ""},
		{"rules for nobody", func(c *Config) { c.Rules = []RuleConfig{RuleConfig{}.Example().(RuleConfig)} }, "nobody can be told"},
		{"bad rule", func(c *Config) {
			c.Users, c.Rules = "u", []RuleConfig{{Users: []string{"["}, Namespaces: []string{"("}, Actions: []string{"fly"}}}
		}, "rule[0].actions"},
		{"half a certificate", func(c *Config) { c.Cert = "x" }, "cert"},
		{"no origin", func(c *Config) { c.Origins = nil }, "origins"},
		{"no index", func(c *Config) { c.Indexes = nil }, "indexes"},
		{"log level", func(c *Config) { c.LogLevel = "loud" }, "log_level"},
		{"listen", func(c *Config) { c.Listen = "x" }, "listen"},
	} {
		c := DefaultConfig()
		tt.change(&c)
		if err := c.Validate(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// No request makes the handler panic, or lets nobody do something.
func FuzzRequests(f *testing.F) {
	f.Add("GET", "/v2/team/app/blobs/sha256:00", "bytes=-5")
	f.Add("PUT", "/v2/team/app/manifests/sha512:00", "")
	f.Add("POST", "/v2/a/blobs/uploads/?mount=x&from=y", "")
	f.Add("DELETE", "/v2//blobs/uploads//", "")
	o := newFakeOrigin()
	x := newFakeIndex(o)
	cfg := DefaultConfig()
	cfg.Users = filepath.Join(f.TempDir(), "users")
	if err := os.WriteFile(cfg.Users, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	h, err := New(cfg, o, x)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, target, rng string) {
		if !strings.HasPrefix(target, "/") {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), method, "http://gateway"+target, strings.NewReader("x"))
		if err != nil {
			return
		}
		req.Header.Set("Range", rng)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code < 300 && (method == http.MethodPut || method == http.MethodPost || method == http.MethodDelete || method == http.MethodPatch) {
			t.Errorf("%s %s by nobody: %d", method, target, w.Code)
		}
	})
}
