package gateway

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"cuelabs.dev/go/oci/ociregistry/ociauth"
)

// audits returns what has been logged as refused while do ran.
func audits(t *testing.T, do func()) []string {
	t.Helper()
	var b bytes.Buffer
	was, level := log.L.Logger.Out, log.L.Logger.Level
	log.L.Logger.SetOutput(&b)
	log.L.Logger.SetLevel(logrus.InfoLevel)
	do()
	log.L.Logger.SetOutput(was)
	log.L.Logger.SetLevel(level)
	var all []string
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, "refused") {
			all = append(all, line)
		}
	}
	return all
}

// A pull that goes as it should refuses nobody, with or without a login, however often it is challenged; a refusal is logged
// once, with who was refused what.
func TestAuditOfRefusals(t *testing.T) {
	g := newGateway(t, nil)
	d := g.blob("team/app", "layer").String()
	p := g.blob("public/app", "free").String()
	expired := newTokens(g.index)
	old := expired.now().Add(-tokenFor - 2*tokenLeeway)
	expired.now = func() time.Time { return old }
	past, _, _, err := expired.issue(t.Context(), owner{user: "alice"}, access{{ociauth.TypeRepository, "team/app", []string{"pull"}}})
	if err != nil {
		t.Fatal(err)
	}
	good := audits(t, func() {
		g.do("", "GET", "/v2/", "")
		g.do("", "GET", "/v2/_catalog", "")
		g.do("", "GET", "/v2/team/app/blobs/"+d, "")
		token, _ := g.token("bob", "repository:team/app:pull")
		g.do("Bearer "+token, "GET", "/v2/team/app/blobs/"+d, "")
		g.do("Bearer "+token, "GET", "/v2/team/other/tags/list", "") // which he may, with another token
		g.do("Bearer "+past, "GET", "/v2/team/app/blobs/"+d, "")     // which is renewed
		token, _ = g.token("", "repository:public/app:pull")
		g.do("Bearer "+token, "GET", "/v2/public/app/blobs/"+p, "")
		g.do("nobody", "GET", "/v2/public/app/blobs/"+p, "")
		g.do("", "POST", "/v2/team/app/blobs/uploads/?mount="+d+"&from=public/app", "")
	})
	if len(good) != 0 {
		t.Errorf("nobody was refused, and the log says\n%s", strings.Join(good, ""))
	}
	token, _ := g.token("", "repository:team/app:pull")
	for _, tt := range []struct{ as, method, path, want string }{
		{"bob", "POST", "/v2/team/app/blobs/uploads/", "user=bob"},
		{"bob", "POST", "/v2/team/app/blobs/uploads/?mount=" + d + "&from=public/app", "user=bob"},
		{"carol", "GET", "/v2/team/app/blobs/" + d, "user=carol"},
		{"mallory", "GET", "/v2/", "mallory"},
		{"Bearer bad", "GET", "/v2/", "wrong"},
		{"Bearer " + token, "GET", "/v2/team/app/blobs/" + d, "user=anonymous"}, // who had a chance to log in
	} {
		if all := audits(t, func() { g.do(tt.as, tt.method, tt.path, "") }); len(all) != 1 || !strings.Contains(all[0], tt.want) {
			t.Errorf("%s %s by %q: %d lines\n%s", tt.method, tt.path, tt.as, len(all), strings.Join(all, ""))
		}
	}
}

// Nobody is who says so (skopeo, podman and buildah do, when they are challenged), and may do what nobody may.
func TestNobodyByName(t *testing.T) {
	g := newGateway(t, nil)
	d := g.blob("team/app", "layer").String()
	p := g.blob("public/app", "free").String()
	for path, want := range map[string]int{
		"/v2/public/app/blobs/" + p: 200, "/v2/team/app/blobs/" + d: 401, "/v2/": 401, "/v2/_catalog": 200,
	} {
		if resp, body := g.do("nobody", "GET", path, ""); resp.StatusCode != want {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
}

// Many guesses over HTTP are told when to come back.
func TestTooManyGuesses(t *testing.T) {
	g := newGateway(t, nil)
	var last int
	for i := 0; i < 2*addressBurst && last != 429; i++ {
		resp, body := g.do("stranger"+strings.Repeat("x", i), "GET", "/v2/", "")
		if last = resp.StatusCode; last == 429 && (resp.Header.Get("Retry-After") != "1" || resp.Header.Get("WWW-Authenticate") != "" ||
			!strings.Contains(body, "TOOMANYREQUESTS")) {
			t.Errorf("%v %s", resp.Header, body)
		}
	}
	if last != 429 {
		t.Errorf("after all: %d", last)
	}
}

// "*" in a rule stands for any characters, those of names that OIDC brings included.
func TestUserPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, user string
		want          bool
	}{
		{"ci-*", "ci-1", true}, {"ci-*", "xci-1", false}, {"*", "github:a/b", true}, {"github:octo-org/*", "github:octo-org/app/x", true},
		{"github:octo-org/*", "github:octo-organ/app", false}, {"github:*/app", "github:a/app", true}, {"a?c", "a/c", true},
		{"[ab]/c", "a/c", true},
	} {
		if got := (&rule{users: []string{tt.pattern}}).forUser(tt.user); got != tt.want {
			t.Errorf("%s is for %s: %v", tt.pattern, tt.user, got)
		}
	}
}
