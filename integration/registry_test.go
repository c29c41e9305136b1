package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/integration/harness"
)

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	dockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
	octets      = "application/octet-stream"
)

// asked is a request that is sent to two registries.
type asked struct {
	what, method, path string
	header             []string // names and values
	body               string
	// differs is what their answers have not in common, as docs/registry.md says it: "<what>: <distribution's>, <ours>". Empty: nothing.
	differs []string
}

// answered is what is compared of an answer. Texts of errors are each registry's own.
type answered struct {
	status, body string
	header       map[string]string
}

// twin is one of the registries.
type twin struct {
	client *http.Client
	base   string
	upload string // the path of the upload that was begun last
}

var (
	hostPattern   = regexp.MustCompile(`^https?://[^/]+`)
	uploadPattern = regexp.MustCompile(`/blobs/uploads/[^/?]+(\?.*)?$`)
)

// ask sends a request and returns what is compared of the answer.
func (r *twin) ask(t *testing.T, a *asked) answered {
	t.Helper()
	path := strings.ReplaceAll(a.path, "{upload}", r.upload)
	if q := strings.LastIndex(path, "?"); q > strings.Index(path, "?") { // the upload's has a query already
		path = path[:q] + "&" + path[q+1:]
	}
	req := get(http.NewRequestWithContext(t.Context(), a.method, r.base+path, strings.NewReader(a.body)))(t)
	for i := 0; i < len(a.header); i += 2 {
		req.Header.Add(a.header[i], a.header[i+1])
	}
	resp := get(r.client.Do(req))(t)
	defer resp.Body.Close()
	raw := get(io.ReadAll(resp.Body))(t)
	got := answered{status: resp.Status[:3], header: map[string]string{}}
	for k, v := range resp.Header {
		got.header[k] = strings.Join(v, ", ")
	}
	delete(got.header, "Date")
	delete(got.header, "X-Content-Type-Options") // which the gateway always has
	if at := got.header["Location"]; at != "" {
		local := hostPattern.ReplaceAllString(at, "")
		if strings.Contains(local, "/blobs/uploads/") {
			r.upload = local
		}
		got.header["Location"] = uploadPattern.ReplaceAllString(local, "/blobs/uploads/<id>")
	}
	if got.header["Docker-Upload-Uuid"] != "" {
		got.header["Docker-Upload-Uuid"] = "<id>"
	}
	kind, _, _ := strings.Cut(got.header["Content-Type"], ";")
	switch {
	case kind == "multipart/byteranges":
		boundary := got.header["Content-Type"][strings.Index(got.header["Content-Type"], "boundary=")+len("boundary="):]
		raw = bytes.ReplaceAll(raw, []byte(boundary), []byte("<boundary>"))
		got.header["Content-Type"] = kind
	case kind == "application/json" && a.method != "HEAD":
		delete(got.header, "Content-Length") // a line's end more or less, and texts of errors
		raw = shape(raw)
	case resp.StatusCode >= 400:
		delete(got.header, "Content-Length")
	}
	got.body = string(bytes.TrimSpace(raw))
	return got
}

// shape leaves of errors their codes.
func shape(raw []byte) []byte {
	var e struct{ Errors []struct{ Code string } }
	if json.Unmarshal(raw, &e) == nil && len(e.Errors) > 0 {
		return []byte(e.Errors[0].Code)
	}
	return raw
}

// differences says what two answers have not in common.
func differences(theirs, ours answered) (all []string) {
	differ := func(what, a, b string) {
		if a != b {
			all = append(all, fmt.Sprintf("%s: %s, %s", what, a, b))
		}
	}
	differ("status", theirs.status, ours.status)
	names := map[string]bool{}
	for k := range theirs.header {
		names[k] = true
	}
	for k := range ours.header {
		names[k] = true
	}
	for k := range names {
		differ(k, theirs.header[k], ours.header[k])
	}
	differ("body", theirs.body, ours.body)
	slices.Sort(all)
	return all
}

// The same requests, to distribution and to the gateway: what their answers have not in common is known.
func TestLikeDistribution(t *testing.T) {
	ctx, c := newCluster(t)
	server := get(c.NewServer(ctx, "server", harness.ServerOptions{}))(t)
	reference := get(c.NewBareRegistry(ctx, "reference"))(t)
	twins := [2]*twin{}
	for i, at := range []struct {
		host *harness.Host
		addr string
	}{{reference.Host, reference.Addr}, {server.Host, server.Gateway}} {
		tr := &http.Transport{DialContext: at.host.DialContext, DisableCompression: true}
		t.Cleanup(tr.CloseIdleConnections)
		twins[i] = &twin{client: &http.Client{Transport: tr}, base: "http://" + at.addr}
	}
	for _, a := range askedOfBoth() {
		theirs, ours := twins[0].ask(t, &a), twins[1].ask(t, &a)
		if got := differences(theirs, ours); !slices.Equal(got, a.differs) {
			t.Errorf("%s: %s %.120s\n\tdiffers in %q,\n\t      want %q", a.what, a.method, a.path, got, a.differs)
		}
	}
}

// What is pushed to both.
const (
	pushedTo        = "/v2/team/app"
	pushedLayer     = "0123456789abcdef"
	pushedConfig    = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`
	pushedBlobs     = pushedTo + "/blobs/"
	pushedManifests = pushedTo + "/manifests/"
	pushedTags      = pushedTo + "/tags/list"
)

func sum(s string) string { return digest.FromString(s).String() }

func typed(kind string) []string { return []string{"Content-Type", kind} }

var absent = sum("nobody has this")

// askedOfBoth are requests in an order in which each finds what it is about.
func askedOfBoth() []asked {
	ping := []asked{{what: "ping", method: "GET", path: "/v2/", differs: []string{"Capelin-Cluster: , default"}}}
	return slices.Concat(ping, askedOfUploads(), askedOfBlobs(), askedOfManifests(), askedOfLists(), askedOfNothing())
}

func askedOfUploads() (all []asked) {
	begin := asked{what: "begin", method: "POST", path: pushedBlobs + "uploads/"}
	chunk := func(what, rng, body string) asked {
		return asked{what: what, method: "PATCH", path: "{upload}", header: append(typed(octets), "Content-Range", rng), body: body}
	}
	for _, data := range []string{pushedLayer, pushedConfig} {
		all = append(all, begin,
			asked{what: "status", method: "GET", path: "{upload}"},
			asked{what: "status", method: "HEAD", path: "{upload}"},
			chunk("chunk", "0-4", data[:5]), chunk("chunk again", "0-4", data[:5]), chunk("chunk too far", "9-9", "x"),
			asked{what: "status", method: "GET", path: "{upload}"},
			asked{what: "end", method: "PUT", path: "{upload}?digest=" + sum(data), header: typed(octets), body: data[5:]},
		)
	}
	return append(all, begin,
		asked{what: "end without a digest", method: "PUT", path: "{upload}", header: typed(octets), body: "x"}, begin,
		asked{what: "end of other bytes", method: "PUT", path: "{upload}?digest=" + absent, header: typed(octets), body: "x"},
		asked{what: "it is over", method: "GET", path: "{upload}", differs: []string{
			"Content-Type: , application/json", "Docker-Upload-Uuid: <id>, ", "Location: " + pushedBlobs + "uploads/<id>, ", "Range: 0-0, ",
			"body: , BLOB_UPLOAD_UNKNOWN", "status: 204, 404"}}, begin,
		asked{what: "cancel", method: "DELETE", path: "{upload}"},
		asked{what: "cancel again", method: "DELETE", path: "{upload}"},
		asked{what: "mount", method: "POST", path: "/v2/team/other/blobs/uploads/?mount=" + sum(pushedLayer) + "&from=team/app"},
		asked{what: "mount of nothing", method: "POST", path: "/v2/team/other/blobs/uploads/?mount=" + absent + "&from=team/app"},
	)
}

func askedOfBlobs() (all []asked) {
	at := pushedBlobs + sum(pushedLayer)
	for _, method := range []string{"GET", "HEAD"} {
		all = append(all,
			asked{what: "blob", method: method, path: at},
			asked{what: "no blob", method: method, path: pushedBlobs + absent},
			asked{what: "blob of another repository", method: method, path: "/v2/team/third/blobs/" + sum(pushedLayer)},
			asked{what: "known blob", method: method, path: at, header: []string{"If-None-Match", `"` + sum(pushedLayer) + `"`}},
		)
	}
	for _, rng := range []string{
		"2-4", "5-", "-3", "-99", "8-99", "16-", "99-", "5-4", "x", "1-2,5-6", "0-0,-1", "0-9,0-9",
	} {
		all = append(all, asked{what: "part " + rng, method: "GET", path: at, header: []string{"Range", "bytes=" + rng}})
	}
	return all
}

// pushedImage is an image of a type.
func pushedImage(kind string) string {
	configType, layerType := "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"
	if kind == dockerImage {
		configType, layerType = "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"
	}
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},`+
		`"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		kind, configType, sum(pushedConfig), len(pushedConfig), layerType, sum(pushedLayer), len(pushedLayer))
}

// pushedIndex is an index, by its type, of an image of a type.
func pushedIndex(kind, of string) string {
	m := pushedImage(of)
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,`+
		`"platform":{"architecture":"amd64","os":"linux"}}]}`, kind, of, sum(m), len(m))
}

func askedOfManifests() (all []asked) {
	accept := func(kind string, more ...string) []string { return append([]string{"Accept", kind}, more...) }
	parts := []string{"Accept-Ranges: , bytes"} // of manifests, too
	oci := pushedImage(ociManifest)
	for _, m := range []struct{ tag, kind, raw string }{
		{"oci", ociManifest, oci}, {"docker", dockerImage, pushedImage(dockerImage)},
		{"index", ociIndex, pushedIndex(ociIndex, ociManifest)}, {"list", dockerList, pushedIndex(dockerList, dockerImage)},
	} {
		put := func(what, path, kind, raw string, differs ...string) asked {
			return asked{what: what, method: "PUT", path: path, header: typed(kind), body: raw, differs: differs}
		}
		all = append(all,
			put("push "+m.tag, pushedManifests+m.tag, m.kind, m.raw),
			put("push by digest "+m.tag, pushedManifests+sum(m.raw), m.kind, m.raw),
			put("push by another digest", pushedManifests+absent, m.kind, m.raw),
			put("push as a form", pushedManifests+"bad", "application/x-www-form-urlencoded", m.raw),
			put("push of garbage", pushedManifests+"bad", m.kind, m.raw+"}}"),
			put("push of nothing", pushedManifests+"bad", m.kind, ""),
			put("push incomplete", "/v2/team/empty/manifests/bad", m.kind, m.raw, "status: 400, 404"),
		)
		for _, method := range []string{"GET", "HEAD"} {
			all = append(all,
				asked{what: m.tag + " by tag", method: method, path: pushedManifests + m.tag, header: accept(m.kind), differs: parts},
				asked{what: m.tag + " by digest", method: method, path: pushedManifests + sum(m.raw), header: accept(m.kind), differs: parts},
				asked{what: m.tag + " that is known", method: method, path: pushedManifests + m.tag,
					header:  accept(m.kind, "If-None-Match", `"`+sum(m.raw)+`"`),
					differs: []string{"Docker-Content-Digest: , " + sum(m.raw), `Etag: , "` + sum(m.raw) + `"`}},
			)
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		anyway := []string{"Accept-Ranges: , bytes", fmt.Sprintf("Content-Length: , %d", len(oci)),
			"Content-Type: application/json, " + ociManifest, "Docker-Content-Digest: , " + sum(oci), `Etag: , "` + sum(oci) + `"`}
		if method == "GET" {
			anyway = append(anyway, "body: MANIFEST_UNKNOWN, "+oci)
		}
		all = append(all,
			asked{what: "no tag", method: method, path: pushedManifests + "nobody"},
			asked{what: "no manifest", method: method, path: pushedManifests + absent},
			asked{what: "no digest", method: method, path: pushedManifests + "sha256:x"},
			asked{what: "without Accept", method: method, path: pushedManifests + "oci", differs: append(anyway, "status: 404, 200")},
		)
	}
	return all
}

func askedOfLists() (all []asked) {
	for _, q := range []string{"", "?n=2", "?n=0", "?n=5", "?last=zzz", "?n=-1", "?n=x"} {
		all = append(all, asked{what: "tags", method: "GET", path: pushedTags + q})
	}
	for _, q := range []string{"", "?n=0", "?last=zzz", "?n=-1", "?n=x", "?n=1&last=team/app"} {
		all = append(all, asked{what: "catalog", method: "GET", path: "/v2/_catalog" + q})
	}
	// Distribution's Link leads to a page that is empty.
	toNothing := func(path, last, n string) []string {
		return []string{fmt.Sprintf(`Link: <%s?last=%s&n=%s>; rel="next", `, path, last, n)}
	}
	none := `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[]}`
	return append(all,
		asked{what: "tags of nobody", method: "GET", path: "/v2/team/nobody/tags/list"},
		asked{what: "the last tags", method: "GET", path: pushedTags + "?n=4", differs: toNothing(pushedTags, "oci", "4")},
		asked{what: "the last tags", method: "GET", path: pushedTags + "?n=2&last=index", differs: toNothing(pushedTags, "oci", "2")},
		asked{what: "the last repository", method: "GET", path: "/v2/_catalog?n=1", differs: toNothing("/v2/_catalog", "team%2Fapp", "1")},
		asked{what: "referrers", method: "GET", path: pushedTo + "/referrers/" + absent, differs: []string{
			fmt.Sprintf("Content-Length: , %d", len(none)), "Content-Type: text/plain; charset=utf-8, " + ociIndex,
			"body: 404 page not found, " + none, "status: 404, 200"}},
	)
}

// askedOfNothing are requests that cannot be, and deletions.
func askedOfNothing() []asked {
	text, notAllowed := "Content-Type: text/plain; charset=utf-8, application/json", "body: Method not allowed, UNSUPPORTED"
	all := []asked{
		{what: "another method", method: "POST", path: pushedManifests + "oci", differs: []string{text, notAllowed}},
		{what: "another method", method: "PUT", path: pushedBlobs + sum(pushedLayer), differs: []string{text, notAllowed}},
		{what: "another method", method: "DELETE", path: pushedTags, differs: []string{"Allow: GET, GET, HEAD", text, notAllowed}},
		{what: "another method", method: "GET", path: pushedBlobs + "uploads/", differs: []string{
			"Allow: , POST", "body: BLOB_UPLOAD_UNKNOWN, UNSUPPORTED", "status: 404, 405"}},
		{what: "no name", method: "GET", path: "/v2/TEAM/tags/list", differs: []string{
			text, "body: 404 page not found, NAME_INVALID", "status: 404, 400"}},
		{what: "no path", method: "GET", path: pushedTo, differs: []string{text, "body: 404 page not found, UNSUPPORTED"}},
	}
	for _, path := range []string{
		pushedManifests + "oci", pushedManifests + sum(pushedImage(ociManifest)), "/v2/team/other/blobs/" + sum(pushedLayer),
	} {
		again := asked{what: "delete", method: "DELETE", path: path}
		all = append(all, again, again)
	}
	return all
}

// Uploads that nobody ends are one user's, and stop that user's pushes at most; nobody goes on with another one's.
func TestUploadsThatNobodyEnds(t *testing.T) {
	ctx, c := newCluster(t)
	dave := harness.User{Name: "dave", Password: "secret-d", Namespaces: ".*", Actions: []string{"pull", "push"}}
	server := get(c.NewServer(ctx, "server", harness.ServerOptions{Users: []harness.User{alice, carol, dave}}))(t)
	tr := &http.Transport{DialContext: server.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	do := func(u harness.User, method, path, body string) (int, http.Header, string) {
		t.Helper()
		req := get(http.NewRequestWithContext(ctx, method, "http://"+server.Gateway+path, strings.NewReader(body)))(t)
		req.SetBasicAuth(u.Name, u.Password)
		resp := get((&http.Client{Transport: tr}).Do(req))(t)
		defer resp.Body.Close()
		return resp.StatusCode, resp.Header, string(get(io.ReadAll(resp.Body))(t))
	}
	const begin = "/v2/%s/blobs/uploads/"
	status, h, text := 202, http.Header(nil), ""
	n := 0
	for ; n < 1024 && status == 202; n++ {
		status, h, text = do(carol, "POST", fmt.Sprintf(begin, "other/app"), "")
	}
	if status != 429 || h.Get("Retry-After") == "" || !strings.Contains(text, "TOOMANYREQUESTS") || strings.Contains(text, "http://") {
		t.Errorf("after %d uploads: %d %v %s", n, status, h, text)
	}
	status, h, text = do(alice, "POST", fmt.Sprintf(begin, "team/app"), "")
	if status != 202 {
		t.Fatalf("somebody else's push then: %d %s", status, text)
	}
	at := h.Get("Location")
	if status, _, text := do(alice, "PATCH", at, "01234"); status != 202 {
		t.Errorf("its bytes: %d %s", status, text)
	}
	for who, try := range map[string]func() int{
		"another user":       func() int { s, _, _ := do(dave, "PATCH", at, "x"); return s },
		"another repository": func() int { s, _, _ := do(alice, "PATCH", strings.Replace(at, "team/app", "team/b", 1), "x"); return s },
		"who ends it":        func() int { s, _, _ := do(dave, "DELETE", at, ""); return s },
	} {
		if got := try(); got != 404 {
			t.Errorf("%s: %d", who, got)
		}
	}
	if status, _, text := do(alice, "PUT", at+"?digest="+sum("0123456789"), "56789"); status != 201 {
		t.Errorf("its end: %d %s", status, text)
	}
}
