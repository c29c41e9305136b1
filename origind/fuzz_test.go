package origind

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/control/origin"
)

// Whatever is asked for, the range lies within the blob, and is empty only if the
// blob is.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=5-9", "bytes=-5", "bytes=9-5", "bytes=99999999999999999999-",
		"bytes=-99999999999999999999", "bytes=0-1,2-3", "bytes=--1", "items=0-1"} {
		f.Add(s, int64(10))
	}
	f.Add("bytes=0-0", int64(1))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 1 || size > origin.MaxSize {
			return
		}
		off, n, partial, err := parseRange(header, size)
		if err != nil {
			return
		}
		if off < 0 || n < 1 || off+n > size || !partial && (off != 0 || n != size) {
			t.Errorf("%q of %d: %d bytes at %d, partial %t", header, size, n, off, partial)
		}
	})
}

// No request makes the API panic, and every error has a class that the client
// knows.
func FuzzRequest(f *testing.F) {
	d := "sha256:" + strings.Repeat("a", 64)
	for _, s := range [][3]string{
		{"GET", "/v1/blobs/" + d, "bytes=0-"}, {"HEAD", "/v1/blobs/" + d + "?namespace=kept/app", ""}, {"DELETE", "/v1/blobs/" + d, ""},
		{"GET", "/v1/blobs/sha512:" + d, ""}, {"POST", "/v1/uploads?namespace=kept/app", ""},
		{"PATCH", "/v1/uploads/" + strings.Repeat("0", 32) + "?offset=0", ""},
		{"PUT", "/v1/uploads/" + strings.Repeat("0", 32) + "?digest=" + d, ""},
		{"GET", "/v1/uploads/..%2f", ""}, {"DELETE", "/v1/uploads/x", ""}, {"X", "/", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	s, _ := newServer(f, testConfig(f, f.TempDir(), stores{}))
	h := s.handler()
	f.Fuzz(func(t *testing.T, method, target, rng string) {
		text := method + " " + target + " HTTP/1.1\r\nHost: o\r\nRange: " + rng + "\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil || r.RequestURI == "*" { // which ServeMux answers itself
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 400 && origin.ClassOf(w.Header().Get(origin.HeaderError)) == nil {
			t.Errorf("%s %s: status %d, class %q", method, target, w.Code, w.Header().Get(origin.HeaderError))
		}
	})
}
