package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
)

func TestRanges(t *testing.T) {
	g := newGateway(t, nil)
	path := "/v2/team/app/blobs/" + g.blob("team/app", "0123456789").String()
	for _, tt := range []struct {
		header, want, at string
		status           int
	}{
		{"", "0123456789", "", 200}, {"bytes=2-4", "234", "bytes 2-4/10", 206}, {"bytes=7-", "789", "bytes 7-9/10", 206},
		{"bytes=-3", "789", "bytes 7-9/10", 206}, {"bytes=-99", "0123456789", "bytes 0-9/10", 206}, {"bytes=8-99", "89", "bytes 8-9/10", 206},
		{"bytes=0-9", "0123456789", "bytes 0-9/10", 206}, {"bytes=10-", "", "bytes */10", 416}, {"bytes=99-", "", "bytes */10", 416},
		{"bytes=5-4", "", "", 416}, {"bytes=x", "", "", 416}, {"bytes=0-5,0-5,0-5", "0123456789", "", 200}, // more than there is
	} {
		resp, body := g.do("bob", "GET", path, "", "Range", tt.header)
		if resp.StatusCode != tt.status || tt.status < 300 && body != tt.want || resp.Header.Get("Content-Range") != tt.at {
			t.Errorf("%s: %s %q %q; want %d %q %q", tt.header, resp.Status, body, resp.Header.Get("Content-Range"), tt.status, tt.want, tt.at)
		}
	}
	empty := "/v2/team/app/blobs/" + g.blob("team/app", "").String()
	if resp, body := g.do("bob", "GET", empty, "", "Range", "bytes=0-9"); resp.StatusCode != 200 || body != "" || resp.ContentLength != 0 {
		t.Errorf("of nothing: %s %q", resp.Status, body)
	}
}

// Several parts come in one answer, and those that lie close together with one request to an origin.
func TestSeveralRanges(t *testing.T) {
	g := newGateway(t, nil)
	data := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	path := "/v2/team/app/blobs/" + g.blob("team/app", data).String()
	for _, tt := range []struct {
		header string
		want   [][2]int
		opens  int
	}{
		{"bytes=1-2,5-6", [][2]int{{1, 3}, {5, 7}}, 1},
		{"bytes=1-2, 5-6,100-200", [][2]int{{1, 3}, {5, 7}, {100, 201}}, 1},
		{"bytes=0-1,500000-500001", [][2]int{{0, 2}, {500000, 500002}}, 2},
		{"bytes=500000-500001,0-1", [][2]int{{500000, 500002}, {0, 2}}, 2},
		{"bytes=10-20,15-30", [][2]int{{10, 21}, {15, 31}}, 2},
		{"bytes=-5,0-3", [][2]int{{1<<20 - 5, 1 << 20}, {0, 4}}, 2},
		{"bytes=0-3,-5", [][2]int{{0, 4}, {1<<20 - 5, 1 << 20}}, 2},
	} {
		g.origin.opens = 0
		resp, body := g.do("bob", "GET", path, "", "Range", tt.header)
		kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if err != nil || resp.StatusCode != 206 || kind != "multipart/byteranges" || resp.ContentLength != int64(len(body)) {
			t.Errorf("%s: %s %v", tt.header, resp.Status, resp.Header)
			continue
		}
		parts := multipart.NewReader(strings.NewReader(body), params["boundary"])
		for _, w := range tt.want {
			p, err := parts.NextPart()
			if err != nil {
				t.Fatalf("%s: %v", tt.header, err)
			}
			got, err := io.ReadAll(p)
			at := fmt.Sprintf("bytes %d-%d/%d", w[0], w[1]-1, len(data))
			if err != nil || string(got) != data[w[0]:w[1]] || p.Header.Get("Content-Range") != at || p.Header.Get("Content-Type") != blobType {
				t.Errorf("%s: %q %v (%v), want %s", tt.header, got, p.Header, err, at)
			}
		}
		if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: then %v", tt.header, err)
		}
		if g.origin.opens != tt.opens {
			t.Errorf("%s: the origin was asked %d times, want %d", tt.header, g.origin.opens, tt.opens)
		}
	}
	var many []string
	for i := range maxRuns + 1 {
		many = append(many, fmt.Sprintf("%d-%d", 500*i, 500*i))
	}
	apart := func(list []string) string { slices.Reverse(list); return "bytes=" + strings.Join(list, ",") }
	g.origin.opens = 0
	if resp, body := g.do("bob", "GET", path, "", "Range", apart(many)); resp.StatusCode != 200 || body != data || g.origin.opens != 1 {
		t.Errorf("too many: %s, %d bytes, %d requests", resp.Status, len(body), g.origin.opens)
	}
}

// What is named by its digest is told from others by it, and asked for once. HEAD says what GET says.
func TestHeaders(t *testing.T) {
	g := newGateway(t, nil)
	d := g.blob("team/app", "0123456789")
	raw := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[]}`
	if resp, body := g.do("alice", "PUT", "/v2/team/app/manifests/1", raw); resp.StatusCode != 201 {
		t.Fatal(resp.Status, body)
	}
	m := digest.FromString(raw)
	for path, tt := range map[string]struct {
		d         digest.Digest
		mediaType string
		body      string
		more      map[string]string
	}{
		"/v2/team/app/blobs/" + d.String(): {d, blobType, "0123456789", map[string]string{
			"Accept-Ranges": "bytes", "Cache-Control": maxAge}},
		"/v2/team/app/manifests/1":             {m, ocispec.MediaTypeImageIndex, raw, nil},
		"/v2/team/app/manifests/" + m.String(): {m, ocispec.MediaTypeImageIndex, raw, nil},
		"/v2/team/app/blobs/" + m.String():     {m, blobType, raw, nil}, // a manifest is a blob, too
	} {
		etag := `"` + tt.d.String() + `"`
		for _, method := range []string{"GET", "HEAD"} {
			want := tt.body
			if method == "HEAD" {
				want = ""
			}
			resp, body := g.do("bob", method, path, "")
			h := resp.Header
			if resp.StatusCode != 200 || body != want || resp.ContentLength != int64(len(tt.body)) || h.Get("Etag") != etag ||
				h.Get("Docker-Content-Digest") != tt.d.String() || h.Get("Content-Type") != tt.mediaType ||
				h.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
				t.Errorf("%s %s: %s %v %q", method, path, resp.Status, h, body)
			}
			for k, v := range tt.more {
				if h.Get(k) != v {
					t.Errorf("%s %s: %s is %q, want %q", method, path, k, h.Get(k), v)
				}
			}
			for known, status := range map[string]int{etag: 304, tt.d.String(): 304, `"x", ` + etag: 304, "*": 304, `"x"`: 200} {
				g.origin.opens = 0
				resp, body := g.do("bob", method, path, "", "If-None-Match", known)
				if resp.StatusCode != status || status == 304 && (body != "" || g.origin.opens != 0) {
					t.Errorf("%s %s, known %s: %s %q, %d requests", method, path, known, resp.Status, body, g.origin.opens)
				}
			}
		}
	}
	// A part of what has changed meanwhile is no part.
	path := "/v2/team/app/blobs/" + d.String()
	if resp, body := g.do("bob", "GET", path, "", "Range", "bytes=1-2", "If-Range", `"x"`); resp.StatusCode != 200 || body != "0123456789" {
		t.Errorf("If-Range: %s %q", resp.Status, body)
	}
}

// Lists are lists, also of nothing, in pages.
func TestLists(t *testing.T) {
	g := newGateway(t, nil)
	about := digest.FromString("subject")
	raw := func(i int, subject digest.Digest) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"artifactType":"a/b","annotations":{"i":"%d"},`+
			`"subject":{"mediaType":"x/y","digest":%q,"size":1}}`, ocispec.MediaTypeImageIndex, i, subject)
	}
	for i := range 3 {
		for _, repo := range []string{"team/app", "team/other"} {
			if resp, body := g.do("alice", "PUT", fmt.Sprintf("/v2/%s/manifests/%d", repo, i), raw(i, about)); resp.StatusCode != 201 {
				t.Fatal(resp.Status, body)
			}
		}
	}
	const jsonType = "application/json"
	for _, tt := range []struct {
		path, want, link string
		status           int
	}{
		{"team/app/tags/list", `{"name":"team/app","tags":["0","1","2"]}`, "", 200},
		{"team/app/tags/list?n=0", `{"name":"team/app","tags":[]}`, "", 200},
		{"team/app/tags/list?n=2", `{"name":"team/app","tags":["0","1"]}`, `</v2/team/app/tags/list?last=1&n=2>; rel="next"`, 200},
		{"team/app/tags/list?n=2&last=1", `{"name":"team/app","tags":["2"]}`, "", 200},
		{"team/app/tags/list?n=3", `{"name":"team/app","tags":["0","1","2"]}`, "", 200},
		{"team/app/tags/list?last=2", `{"name":"team/app","tags":[]}`, "", 200},
		{"team/app/tags/list?n=99999999", `{"name":"team/app","tags":["0","1","2"]}`, "", 200},
		{"team/app/tags/list?n=-1", "PAGINATION_NUMBER_INVALID", "", 400},
		{"team/app/tags/list?n=x", "PAGINATION_NUMBER_INVALID", "", 400},
		{"team/app/tags/list?n=99999999999999999999", "PAGINATION_NUMBER_INVALID", "", 400},
		{"team/app/tags/list?n=%zz", "UNSUPPORTED", "", 400},
		{"team/nobody/tags/list", "NAME_UNKNOWN", "", 404},
		{"team/nobody/tags/list?n=0", "NAME_UNKNOWN", "", 404},
		{"_catalog", `{"repositories":["team/app","team/other"]}`, "", 200},
		{"_catalog?n=1", `{"repositories":["team/app"]}`, `</v2/_catalog?last=team%2Fapp&n=1>; rel="next"`, 200},
		{"_catalog?n=0", `{"repositories":[]}`, "", 200},
		{"_catalog?n=-1", "PAGINATION_NUMBER_INVALID", "", 400},
		{"team/app/referrers/" + digest.FromString("nobody").String(),
			`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, "", 200},
		{"team/app/referrers/sha256:x", "DIGEST_INVALID", "", 400},
	} {
		resp, body := g.do("bob", "GET", "/v2/"+tt.path, "")
		mediaType := jsonType
		if strings.Contains(tt.path, "referrers") && tt.status == 200 {
			mediaType = ocispec.MediaTypeImageIndex
		}
		if resp.StatusCode != tt.status || tt.status == 200 && body != tt.want || !strings.Contains(body, tt.want) ||
			resp.Header.Get("Link") != tt.link || resp.Header.Get("Content-Type") != mediaType {
			t.Errorf("%s: %s %s %v; want %d %s %s", tt.path, resp.Status, body, resp.Header, tt.status, tt.want, tt.link)
		}
	}
	for _, tag := range []string{"0", "1", "2"} {
		g.do("alice", "DELETE", "/v2/team/app/manifests/"+tag, "")
	}
	if _, body := g.do("bob", "GET", "/v2/team/app/tags/list", ""); body != `{"name":"team/app","tags":[]}` {
		t.Errorf("after the last tag was deleted: %s", body)
	}
	if resp, body := g.do("bob", "GET", "/v2/team/app/referrers/"+about.String()+"?artifactType=x/y", ""); body !=
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}` ||
		resp.Header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("of another type: %s %v", body, resp.Header)
	}
}

// Referrers are more than one answer has.
func TestReferrersPages(t *testing.T) {
	g := newGateway(t, nil)
	about := digest.FromString("subject")
	put := func(repo string, n, annotation int) {
		for i := range n {
			raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"artifactType":"a/b","annotations":{"i":"%d","long":%q},`+
				`"subject":{"mediaType":"x/y","digest":%q,"size":1}}`, ocispec.MediaTypeImageIndex, i, strings.Repeat("x", annotation), about)
			m, err := index.ParseManifest("", []byte(raw))
			if err != nil {
				t.Fatal(err)
			}
			g.index.mu.Lock()
			g.index.repo(repo).manifests[m.Descriptor.Digest] = m
			g.index.mu.Unlock()
		}
	}
	put("team/many", maxReferrers+5, 0)
	put("team/long", 20, 200<<10)
	for repo, want := range map[string]int{"team/many": maxReferrers + 5, "team/long": 20} {
		seen, pages := map[digest.Digest]bool{}, 0
		for at := "/v2/" + repo + "/referrers/" + about.String() + "?artifactType=a/b"; at != ""; pages++ {
			resp, body := g.do("bob", "GET", at, "")
			var page ocispec.Index
			if err := json.Unmarshal([]byte(body), &page); err != nil || len(body) > 4<<20 || resp.Header.Get("OCI-Filters-Applied") == "" {
				t.Fatalf("%s: %d bytes, %v", at, len(body), err)
			}
			for _, d := range page.Manifests {
				seen[d.Digest] = true
			}
			at, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
		}
		if len(seen) != want || pages != 2 {
			t.Errorf("%s: %d referrers on %d pages, want %d on 2", repo, len(seen), pages, want)
		}
	}
}

func TestMethods(t *testing.T) {
	g := newGateway(t, nil)
	sum := digest.FromString("x").String()
	for path, allow := range map[string]string{
		"/v2/": "GET, HEAD", "/v2/_catalog": "GET, HEAD", "/v2/team/app/tags/list": "GET, HEAD", "/v2/team/app/referrers/" + sum: "GET, HEAD",
		"/v2/team/app/manifests/1": "DELETE, GET, HEAD, PUT", "/v2/team/app/blobs/" + sum: "DELETE, GET, HEAD",
		"/v2/team/app/blobs/uploads/": "POST", "/v2/team/app/blobs/uploads/x": "DELETE, GET, HEAD, PATCH, PUT",
	} {
		resp, body := g.do("alice", "OPTIONS", path, "")
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != allow || !strings.Contains(body, "UNSUPPORTED") {
			t.Errorf("%s: %s %q %s", path, resp.Status, resp.Header.Get("Allow"), body)
		}
	}
	for path, want := range map[string]string{
		"/": "404", "/v1/": "404", "/v2/x": "404", "/v2/TEAM/manifests/1": "400 NAME_INVALID",
		"/v2/team/app/manifests/sha256:x":          "400 DIGEST_INVALID",
		"/v2/team/app/manifests/blake3:" + sum[7:]: "400 DIGEST_INVALID", "/v2/team/app/manifests/": "400 TAG_INVALID",
		"/v2/" + strings.Repeat("a", 201) + "/manifests/1": "400 NAME_INVALID",
	} {
		resp, body := g.do("alice", "GET", path, "")
		status, code, _ := strings.Cut(want, " ")
		if fmt.Sprint(resp.StatusCode) != status || !strings.Contains(body, code) || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s %s, want %s", path, resp.Status, body, want)
		}
	}
	if resp, body := g.do("alice", "GET", "/v2/", ""); body != "{}" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("ping: %q %v", body, resp.Header)
	}
}

// A manifest has the digest by which it was pushed, also by a tag, and as many tags as were given with it.
func TestManifestsByOtherDigests(t *testing.T) {
	g := newGateway(t, nil)
	raw := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[]}`
	long := digest.SHA512.FromString(raw)
	tagged := func(tag string) string {
		resp, body := g.do("bob", "GET", "/v2/team/app/manifests/"+tag, "")
		if body != raw {
			return resp.Status
		}
		return resp.Header.Get("Docker-Content-Digest")
	}
	resp, body := g.do("alice", "PUT", "/v2/team/app/manifests/one?digest="+long.String(), raw)
	if resp.StatusCode != 201 || resp.Header.Get("Docker-Content-Digest") != long.String() || tagged("one") != long.String() {
		t.Errorf("by a tag: %s %s, tagged %s", resp.Status, body, tagged("one"))
	}
	resp, body = g.do("alice", "PUT", "/v2/team/app/manifests/"+long.String()+"?tag=two&tag=three", raw)
	if resp.StatusCode != 201 || strings.Join(resp.Header.Values("OCI-Tag"), ",") != "two,three" || tagged("two") != long.String() ||
		tagged("three") != long.String() {
		t.Errorf("with tags: %s %s %v", resp.Status, body, resp.Header)
	}
	for path, status := range map[string]int{
		"bad?digest=" + digest.SHA512.FromString("other").String(): 400, "bad?digest=sha512:x": 400, long.String() + "?tag=bad&tag=.x": 400,
		long.String() + strings.Repeat("?tag=bad", 1) + strings.Repeat("&tag=bad", maxTags): 414, ".x": 400,
	} {
		if resp, body := g.do("alice", "PUT", "/v2/team/app/manifests/"+path, raw); resp.StatusCode != status {
			t.Errorf("%.60s: %s %s", path, resp.Status, body)
		}
	}
	if got := tagged("bad"); !strings.HasPrefix(got, "404") {
		t.Errorf("after what was refused: %s", got)
	}
}

// An upload belongs to its repository, and to who began it.
func TestUploadsBelong(t *testing.T) {
	g := newGateway(t, func(c *Config) {
		c.Rules = append(c.Rules, RuleConfig{Users: []string{"carol"}, Namespaces: []string{"team/.*"}, Actions: []string{"push"}})
	})
	resp, _ := g.do("alice", "POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	d := digest.FromString("0123456789")
	if resp, _ := g.do("alice", "PATCH", at, "01234"); resp.StatusCode != 202 {
		t.Fatal(resp.Status)
	}
	elsewhere := strings.Replace(at, "team/app", "team/other", 1)
	for _, method := range []string{"GET", "HEAD", "PATCH", "PUT", "DELETE"} {
		for _, tt := range []struct{ as, at string }{{"carol", at}, {"alice", elsewhere}} {
			resp, body := g.do(tt.as, method, tt.at+"?digest="+d.String(), "56789")
			if resp.StatusCode != 404 || method != "HEAD" && !strings.Contains(body, "BLOB_UPLOAD_UNKNOWN") {
				t.Errorf("%s by %s: %s %s", method, tt.as, resp.Status, body)
			}
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		resp, _ := g.do("alice", method, at, "")
		if resp.StatusCode != 204 || resp.Header.Get("Range") != "0-4" || resp.Header.Get("Location") != at ||
			resp.Header.Get("Docker-Upload-Uuid") == "" {
			t.Errorf("%s: %s %v", method, resp.Status, resp.Header)
		}
	}
	if resp, body := g.do("alice", "PUT", at+"?digest="+d.String(), "56789"); resp.StatusCode != 201 {
		t.Errorf("its own end: %s %s", resp.Status, body)
	}
	// What an earlier release has begun is known by its repository at most.
	for _, u := range []*fakeUpload{{}, {}} {
		g.origin.uploads["old"] = u
		if resp, body := g.do("carol", "PATCH", "/v2/team/app/blobs/uploads/b2xk", "x"); resp.StatusCode != 202 {
			t.Errorf("of an earlier release: %s %s", resp.Status, body)
		}
	}
}

// What is wrong with a chunk is said as what it is.
func TestChunks(t *testing.T) {
	g := newGateway(t, nil)
	resp, _ := g.do("alice", "POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	if resp.Header.Get("Range") != "0-0" || resp.ContentLength != 0 {
		t.Errorf("begun: %v", resp.Header)
	}
	for _, tt := range []struct {
		rng, body, want string
		status          int
	}{
		{"0-3", "01234", "SIZE_INVALID", 400}, {"x", "0", "BLOB_UPLOAD_INVALID", 400}, {"4-2", "0", "BLOB_UPLOAD_INVALID", 400},
		{"-1-2", "0", "BLOB_UPLOAD_INVALID", 400}, {"3-4", "01", "RANGE_INVALID", 416},
		{"0-1", "01", "", 202}, {"0-1", "01", "RANGE_INVALID", 416},
		{"2-2", "2", "", 202}, {"", "34", "", 202},
	} {
		resp, body := g.do("alice", "PATCH", at, tt.body, "Content-Range", tt.rng)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %s %s, want %d %s", tt.rng, resp.Status, body, tt.status, tt.want)
		}
	}
	for query, want := range map[string]string{"": "DIGEST_INVALID", "?digest=x": "DIGEST_INVALID", "?digest=blake3:00": "DIGEST_INVALID"} {
		if resp, body := g.do("alice", "PUT", at+query, ""); resp.StatusCode != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %s %s", query, resp.Status, body)
		}
	}
	// The wrong digest ends it: whoever sent other bytes begins again.
	if resp, body := g.do("alice", "PUT", at+"?digest="+digest.FromString("x").String(), ""); resp.StatusCode != 400 ||
		!strings.Contains(body, "DIGEST_INVALID") {
		t.Errorf("other bytes: %s %s", resp.Status, body)
	}
	if len(g.origin.uploads) != 0 {
		t.Errorf("%d uploads are left", len(g.origin.uploads))
	}
	if resp, _ := g.do("alice", "POST", "/v2/team/app/blobs/uploads/?digest="+digest.FromString("x").String(), "y"); resp.StatusCode != 400 ||
		len(g.origin.uploads) != 0 {
		t.Errorf("other bytes in one request: %s, %d uploads are left", resp.Status, len(g.origin.uploads))
	}
}

// What breaks off is seen to break off; what cannot begin is an error, without what is only true of whole blobs.
func TestOriginFails(t *testing.T) {
	g := newGateway(t, nil)
	path := "/v2/team/app/blobs/" + g.blob("team/app", "0123456789").String()
	g.origin.body = func(r io.Reader) io.Reader { return iotest.ErrReader(errors.New("gone")) }
	for _, rng := range []string{"", "bytes=1-2"} {
		resp, body := g.do("bob", "GET", path, "", "Range", rng)
		if h := resp.Header; resp.StatusCode != 503 || h.Get("Etag") != "" || h.Get("Content-Range") != "" ||
			h.Get("Cache-Control") != "" || !strings.Contains(body, "gone") {
			t.Errorf("%q: %s %v %s", rng, resp.Status, h, body)
		}
	}
	g.origin.body = func(r io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(r, 1), iotest.ErrReader(errors.New("gone")))
	}
	for _, rng := range []string{"", "bytes=1-2", "bytes=1-2,4-5"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("bob", "pw-bob")
		req.Header.Set("Range", rng)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil {
			t.Errorf("%q: %s %q, without an error", rng, resp.Status, body)
		}
	}
}

// Clients are told what is wrong, once, and not where.
func TestTold(t *testing.T) {
	missing := &index.MissingError{Repository: "a", Missing: []index.Missing{{Digest: "sha256:x", Kind: "blob", Why: "no origin has it"}}}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%w: %w", ociregistry.ErrDenied, errors.New("bob may not push a")),
			"requested access to the resource is denied: bob may not push a"},
		{ociregistry.ErrBlobUnknown, "blob unknown to registry"},
		{unavailable(fmt.Errorf("origin http://10.0.0.1:7480: dial tcp 10.0.0.1:7480: connect: connection refused: %w", errdefs.ErrUnavailable)),
			"origin: dial tcp: connect: connection refused"},
		{fmt.Errorf(`Get "https://origin-0.svc.cluster.local:7480/v1/blobs/sha256:x?namespace=a": context deadline exceeded`),
			"context deadline exceeded"},
		{fmt.Errorf("index https://[fd00::1]:7490: GET /v1/tag?repository=a&name=1: the storage is away: %w", errdefs.ErrUnavailable),
			"index: the storage is away"},
		{fmt.Errorf("read tcp [fd00::1]:1->[fd00::2]:2: reset"), "read tcp: reset"},
		{fmt.Errorf("tag 1: not found: %w: %w", errdefs.ErrNotFound, errdefs.ErrNotFound), "tag 1"},
		{fmt.Errorf("upload x: upload x: full: full"), "upload x: full"},
		{errdefs.ErrNotFound, "not found"},
		{fmt.Errorf("%w: %w", ociregistry.ErrManifestBlobUnknown, fmt.Errorf("index http://x:1: %w", missing)), missing.Error()},
		{errors.Join(errors.New("origin http://a:1: x"), errors.New("origin http://b:1: x")), "origin: x"},
	} {
		if got := told(tt.err); got != tt.want {
			t.Errorf("%v:\n%q, want\n%q", tt.err, got, tt.want)
		}
	}
}

// A blob is mounted from where it was seen last, if the client does not say from where, and from nowhere where the user may not pull.
func TestMountFromAnywhere(t *testing.T) {
	g := newGateway(t, nil)
	mount := func(as, repo string, d digest.Digest) int {
		resp, _ := g.do(as, "POST", "/v2/"+repo+"/blobs/uploads/?mount="+d.String(), "")
		if _, err := g.index.Blob(t.Context(), repo, d); (err == nil) != (resp.StatusCode == 201) {
			t.Errorf("%s to %s: %s, %v", d, repo, resp.Status, err)
		}
		return resp.StatusCode
	}
	d := digest.FromString("pushed")
	if resp, body := g.do("alice", "POST", "/v2/team/app/blobs/uploads/?digest="+d.String(), "pushed"); resp.StatusCode != 201 {
		t.Fatal(resp.Status, body)
	}
	pulled, unseen := g.blob("team/app", "pulled"), g.blob("team/app", "unseen")
	g.do("bob", "GET", "/v2/team/app/blobs/"+pulled.String(), "")
	for d, want := range map[digest.Digest]int{d: 201, pulled: 201, unseen: 202} {
		if got := mount("carol", "other/new", d); got != 202 {
			t.Errorf("of what carol may not pull: %d", got)
		}
		if got := mount("alice", "team/new", d); got != want {
			t.Errorf("mount: %d, want %d", got, want)
		}
	}
	g.do("alice", "DELETE", "/v2/team/app/blobs/"+d.String(), "")
	g.do("alice", "DELETE", "/v2/team/new/blobs/"+d.String(), "")
	if got := mount("alice", "team/newer", d); got != 202 {
		t.Errorf("of what is there no longer: %d", got)
	}
}
