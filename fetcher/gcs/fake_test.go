package gcs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/api/storage/v1"
)

// fake is as much of Google's storage as is asked, and does what that documents: more than fake-gcs-server.
type fake struct {
	mu          sync.Mutex
	last        int64 // generation
	objects     map[string]*stored
	sessions    map[string]*upload
	keeps       int      // how much of a chunk is kept at most, in bytes; 0: all
	permissions []string // that one has; nil: all
	elsewhere   string   // where uploads are said to go on
	authorized  []string // Authorization headers that came
	before      func(r *http.Request)
}

type stored struct {
	storage.Object
	data []byte
}

type upload struct {
	meta storage.Object
	data []byte
	done *stored
}

func newFake() *fake { return &fake{objects: map[string]*stored{}, sessions: map[string]*upload{}} }

const fakeBucket = "capelin-test"

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"errors":[{"message":%q,"domain":"global","reason":%q}]}}`,
		code, message, message, reason)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.before != nil {
		f.before(r)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.authorized = append(f.authorized, r.Header.Get("Authorization"))
	path := r.URL.EscapedPath()
	uploads := strings.HasPrefix(path, "/upload")
	path, ok := strings.CutPrefix(strings.TrimPrefix(path, "/upload"), "/storage/v1/b/"+fakeBucket)
	if !ok {
		refuse(w, 404, "notFound", "The specified bucket does not exist.")
		return
	}
	name, _ := url.PathUnescape(strings.TrimPrefix(path, "/o/"))
	switch {
	case path == "/iam/testPermissions":
		got := r.URL.Query()["permissions"]
		if f.permissions != nil {
			got = slices.DeleteFunc(got, func(p string) bool { return !slices.Contains(f.permissions, p) })
		}
		_ = json.NewEncoder(w).Encode(storage.TestIamPermissionsResponse{Permissions: got})
	case uploads && r.URL.Query().Get("uploadType") == "multipart":
		f.insert(w, r)
	case uploads && r.Method == http.MethodPost:
		f.begin(w, r)
	case uploads:
		f.chunk(w, r)
	case path == "/o":
		f.list(w, r)
	case f.objects[name] == nil:
		refuse(w, 404, "notFound", "No such object: "+fakeBucket+"/"+name)
	case r.Method == http.MethodDelete:
		if f.precondition(w, r, name) {
			delete(f.objects, name)
			w.WriteHeader(http.StatusNoContent)
		}
	default:
		f.get(w, r, f.objects[name])
	}
}

func (f *fake) precondition(w http.ResponseWriter, r *http.Request, name string) bool {
	want := r.URL.Query().Get("ifGenerationMatch")
	is := int64(0)
	if o := f.objects[name]; o != nil {
		is = o.Generation
	}
	if want != "" && want != strconv.FormatInt(is, 10) {
		refuse(w, 412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return false
	}
	return true
}

func (f *fake) store(meta storage.Object, data []byte) *stored {
	f.last = max(f.last+1, time.Now().UnixMicro())
	meta.Generation, meta.Size, meta.Crc32c = f.last, uint64(len(data)), checksum(crc32.Checksum(data, castagnoli))
	meta.Updated = time.Now().UTC().Format(time.RFC3339Nano)
	o := &stored{meta, data}
	f.objects[meta.Name] = o
	return o
}

func (f *fake) insert(w http.ResponseWriter, r *http.Request) {
	_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	parts := multipart.NewReader(r.Body, params["boundary"])
	var meta storage.Object
	var data []byte
	p, err := parts.NextPart()
	if err == nil {
		err = json.NewDecoder(p).Decode(&meta)
	}
	if err == nil {
		p, err = parts.NextPart()
	}
	if err == nil {
		data, err = io.ReadAll(p)
	}
	if err == nil {
		if _, err = parts.NextPart(); err == io.EOF {
			err = nil
		}
	}
	switch {
	case err != nil:
		refuse(w, 400, "badRequest", err.Error())
	case meta.Crc32c != "" && meta.Crc32c != checksum(crc32.Checksum(data, castagnoli)):
		refuse(w, 400, "invalid", "the CRC32C is another")
	case f.precondition(w, r, meta.Name):
		_ = json.NewEncoder(w).Encode(f.store(meta, data).Object)
	}
}

func (f *fake) begin(w http.ResponseWriter, r *http.Request) {
	u := &upload{}
	if err := json.NewDecoder(r.Body).Decode(&u.meta); err != nil {
		refuse(w, 400, "parseError", err.Error())
		return
	}
	id := strconv.Itoa(len(f.sessions))
	f.sessions[id] = u
	w.Header().Set("Location", cmp.Or(f.elsewhere, "http://"+r.Host+r.URL.Path)+"?uploadType=resumable&upload_id="+id)
}

// chunk passes over what it has already, and answers with the object once it is complete.
func (f *fake) chunk(w http.ResponseWriter, r *http.Request) {
	u := f.sessions[r.URL.Query().Get("upload_id")]
	data, err := io.ReadAll(r.Body)
	var from, last int64
	span, total, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
	if span == "*" {
		from = -1
	} else if _, serr := fmt.Sscanf(span, "%d-%d", &from, &last); serr != nil {
		err = serr
	}
	switch {
	case u == nil:
		refuse(w, 404, "notFound", "no such upload")
		return
	case u.done != nil:
		_ = json.NewEncoder(w).Encode(u.done.Object)
		return
	case err != nil || from > int64(len(u.data)) || from >= 0 && last-from+1 != int64(len(data)):
		refuse(w, 400, "invalid", fmt.Sprint("not the next bytes: ", span, err))
		return
	}
	if from >= 0 {
		fresh := data[min(int64(len(u.data))-from, int64(len(data))):]
		if f.keeps > 0 {
			fresh = fresh[:min(f.keeps, len(fresh))]
		}
		u.data = append(u.data, fresh...)
	}
	if total == strconv.Itoa(len(u.data)) {
		if h := r.Header.Get("X-Goog-Hash"); h != "crc32c="+checksum(crc32.Checksum(u.data, castagnoli)) {
			refuse(w, 400, "invalid", "hash "+h)
			return
		}
		u.done = f.store(u.meta, u.data)
		_ = json.NewEncoder(w).Encode(u.done.Object)
		return
	}
	if len(u.data) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(u.data)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

func (f *fake) get(w http.ResponseWriter, r *http.Request, o *stored) {
	if g := r.URL.Query().Get("generation"); g != "" && g != strconv.FormatInt(o.Generation, 10) {
		refuse(w, 404, "notFound", "No such object: "+o.Name+"#"+g)
		return
	}
	if r.URL.Query().Get("alt") != "media" {
		_ = json.NewEncoder(w).Encode(o.Object)
		return
	}
	w.Header().Set("X-Goog-Generation", strconv.FormatInt(o.Generation, 10))
	w.Header().Set("X-Goog-Stored-Content-Encoding", cmp.Or(o.ContentEncoding, "identity"))
	w.Header().Set("Content-Type", mediaType)
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(o.data)))
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	most, _ := strconv.Atoi(q.Get("maxResults"))
	l := storage.Objects{}
	for _, name := range slices.Sorted(maps.Keys(f.objects)) {
		if !strings.HasPrefix(name, q.Get("prefix")) || name < max(q.Get("startOffset"), q.Get("pageToken")) {
			continue
		}
		if len(l.Items) == cmp.Or(most, 1000) {
			l.NextPageToken = name
			break
		}
		l.Items = append(l.Items, &f.objects[name].Object)
	}
	_ = json.NewEncoder(w).Encode(l)
}
