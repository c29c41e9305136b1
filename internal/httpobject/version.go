package httpobject

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// version is what tells the bytes of an object from those of its other versions. The zero
// value is of none.
type version struct {
	etag     string // strong, with its quotes; or empty
	modified string // Last-Modified as it came, if it is strong; or empty
	size     int64  // -1: unknown
}

// versionOf returns the version of an answer (RFC 9110, 8.8.2.2 and 8.8.3).
func versionOf(resp *http.Response, size int64) version {
	v := version{size: size}
	if e := resp.Header.Get("ETag"); len(e) >= 2 && strings.HasPrefix(e, `"`) && strings.HasSuffix(e, `"`) {
		v.etag = e
	}
	m := resp.Header.Get("Last-Modified")
	at, err := http.ParseTime(m)
	now, derr := http.ParseTime(resp.Header.Get("Date"))
	if err == nil && derr == nil && now.Sub(at) >= time.Second { // a second write would have another time
		v.modified = m
	}
	return v
}

// condition is the value of If-Range; "": the version has none.
func (v version) condition() string {
	if v.etag != "" {
		return v.etag
	}
	return v.modified
}

// check reports that an answer is not certainly of this version, if that can be told. Not all servers know
// If-Range, so that an answer has to say so itself.
func (v version) check(got version) error {
	same := v.size < 0 || got.size < 0 || v.size == got.size
	switch {
	case v == version{}:
		return nil
	case v.etag != "":
		same = same && v.etag == got.etag
	case v.modified != "":
		same = same && v.modified == got.modified
	}
	if same {
		return nil
	}
	return fmt.Errorf("it changed while it was being read, or the server no longer says its version (%s, now %s): %w: %w",
		v, got, io.ErrUnexpectedEOF, errdefs.ErrUnavailable)
}

func (v version) String() string {
	return fmt.Sprintf("ETag %.80q, Last-Modified %.40q, %d bytes", v.etag, v.modified, v.size)
}
