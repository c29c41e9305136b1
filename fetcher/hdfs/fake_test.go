package hdfs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a namenode and a datanode, of which it has what a real cluster was seen to do (see package integration/storages).
type fake struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string]*inode
	last  int64
	// limit is how many entries are in an answer to LISTSTATUS_BATCH.
	limit   int
	noInode bool // it does not know files by their inodes
	refuse  func(r *http.Request, op string) (status int, exception string)
}

type inode struct {
	id   int64
	dir  bool
	data []byte
	time time.Time
}

func newFake(t *testing.T) *fake {
	f := &fake{files: map[string]*inode{"/": {dir: true}}, limit: 3, last: 16384}
	f.mkdirs("/capelin")
	f.Server = httptest.NewServer(http.StripPrefix("/webhdfs/v1", http.HandlerFunc(f.serve)))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) config() Config {
	return Config{Namenodes: []string{f.URL}, Path: "/capelin", User: "capelin"}
}

func (f *fake) open(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.tries = 4 // not a time: verdicts do not depend on it
	b.backoff = time.Millisecond
	b.transport.ExpectContinueTimeout = 50 * time.Millisecond // Go's servers do not always say that they want no body
	return b
}

func (f *fake) add(p string, i *inode) *inode {
	f.last++
	i.id, i.time = f.last, cmp.Or(i.time, time.Now())
	f.files[p] = i
	return i
}

// mkdirs reports whether no file is in the way.
func (f *fake) mkdirs(p string) bool {
	if i := f.files[p]; i != nil {
		return i.dir
	}
	if !f.mkdirs(path.Dir(p)) {
		return false
	}
	f.add(p, &inode{dir: true})
	return true
}

func refused(w http.ResponseWriter, status int, exception, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"RemoteException": map[string]string{"exception": exception, "message": text + "\n\tat x.y"}})
}

func missing(w http.ResponseWriter, p string) {
	refused(w, http.StatusNotFound, "FileNotFoundException", "File does not exist: "+p)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func status(i *inode, suffix string) map[string]any {
	kind := "FILE"
	if i.dir {
		kind = "DIRECTORY"
	}
	return map[string]any{"pathSuffix": suffix, "type": kind, "length": len(i.data), "fileId": i.id, "modificationTime": i.time.UnixMilli()}
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	p, q := path.Clean(r.URL.Path), r.URL.Query()
	op := q.Get("op")
	var body []byte
	if q.Has("datanode") && op == "CREATE" {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		if code, exception := f.refuse(r, op); code != 0 {
			refused(w, code, exception, "of the test")
			return
		}
	}
	if id, ok := strings.CutPrefix(p, "/.reserved/.inodes/"); ok {
		p = "/?"
		for name, i := range f.files {
			if strconv.FormatInt(i.id, 10) == id && !f.noInode {
				p = name
			}
		}
	}
	if (op == "OPEN" || op == "CREATE") && !q.Has("datanode") {
		if op == "OPEN" && f.files[p] == nil {
			missing(w, p)
			return
		}
		http.Redirect(w, r, f.URL+"/webhdfs/v1"+r.URL.EscapedPath()+"?"+r.URL.RawQuery+"&datanode=", http.StatusTemporaryRedirect)
		return
	}
	f.do(w, r, op, p, body)
}

func (f *fake) do(w http.ResponseWriter, r *http.Request, op, p string, body []byte) {
	i, q := f.files[p], r.URL.Query()
	switch op {
	case "CREATE":
		if !f.mkdirs(path.Dir(p)) || i != nil && i.dir {
			refused(w, http.StatusForbidden, "ParentNotDirectoryException", p+" (is not a directory)")
			return
		}
		f.add(p, &inode{data: body})
		w.WriteHeader(http.StatusCreated)
	case "MKDIRS":
		if !f.mkdirs(p) {
			refused(w, http.StatusForbidden, "ParentNotDirectoryException", p+" (is not a directory)")
			return
		}
		reply(w, map[string]bool{"boolean": true})
	case "RENAME":
		f.rename(w, p, q.Get("destination"))
	case "DELETE":
		if i != nil && i.dir && slices.ContainsFunc(slices.Collect(maps.Keys(f.files)), func(n string) bool { return path.Dir(n) == p }) {
			refused(w, http.StatusForbidden, "PathIsNotEmptyDirectoryException", p)
			return
		}
		delete(f.files, p)
		reply(w, map[string]bool{"boolean": i != nil})
	case "LISTSTATUS_BATCH":
		f.list(w, p, q.Get("startAfter"))
	default:
		if i == nil {
			missing(w, p)
			return
		}
		switch op {
		case "OPEN":
			off, _ := strconv.Atoi(q.Get("offset"))
			n, _ := strconv.Atoi(q.Get("length"))
			_, _ = w.Write(i.data[off:min(off+n, len(i.data))])
		case "GETFILESTATUS":
			reply(w, map[string]any{"FileStatus": status(i, "")})
		case "CHECKACCESS":
		default:
			refused(w, http.StatusBadRequest, "IllegalArgumentException", op)
		}
	}
}

func (f *fake) rename(w http.ResponseWriter, from, to string) {
	i, dst, dir := f.files[from], f.files[to], f.files[path.Dir(to)]
	switch {
	case i == nil || dir == nil:
		missing(w, from)
	case !dir.dir:
		refused(w, http.StatusForbidden, "ParentNotDirectoryException", path.Dir(to)+" (is not a directory)")
	case dst != nil && dst.dir:
		refused(w, http.StatusForbidden, "IOException", "Source and destination must both be directories")
	default:
		delete(f.files, from)
		f.files[to] = i
	}
}

// list sorts bytes as Java does: signed.
func (f *fake) list(w http.ResponseWriter, dir, after string) {
	i := f.files[dir]
	if i == nil {
		missing(w, dir)
		return
	}
	signed := func(a, b string) int {
		return slices.CompareFunc([]byte(a), []byte(b), func(x, y byte) int { return int(int8(x)) - int(int8(y)) })
	}
	var names []string
	for p := range f.files {
		if p != "/" && path.Dir(p) == dir && signed(path.Base(p), after) > 0 {
			names = append(names, path.Base(p))
		}
	}
	slices.SortFunc(names, signed)
	entries := []any{}
	for _, n := range names[:min(f.limit, len(names))] {
		entries = append(entries, status(f.files[path.Join(dir, n)], n))
	}
	if !i.dir {
		entries = []any{status(i, "")}
	}
	left := max(0, len(names)-f.limit)
	fmt.Fprintf(w, `{"DirectoryListing":{"partialListing":{"FileStatuses":{"FileStatus":%s}},"remainingEntries":%d}}`, marshal(entries), left)
}

func marshal(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}
