package s3

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// fake is a server that answers as a test says.
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	answer   func(w http.ResponseWriter, r *http.Request)
	requests []string
}

func newFake(t *testing.T, answer func(w http.ResponseWriter, r *http.Request)) (*fake, *Backend) {
	t.Helper()
	nothing(t)
	f := &fake{answer: answer}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f, openFake(t, Config{Bucket: "b", Prefix: "p/", Endpoint: f.URL, PathStyle: true})
}

func openFake(t *testing.T, c Config) *Backend {
	t.Helper()
	b, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	answer := f.answer
	f.mu.Unlock()
	answer(w, r)
}

func (f *fake) set(answer func(w http.ResponseWriter, r *http.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer, f.requests = answer, nil
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// refusal answers as S3 does; without a code, as what stands on the way does.
func refusal(status int, code string) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Request-Id", "R1")
		if code == "" {
			w.WriteHeader(status)
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>because\nof it</Message></Error>", code)
		}
	}
}

func TestClasses(t *testing.T) {
	f, b := newFake(t, nil)
	for _, tt := range []struct {
		status int
		code   string
		want   error
		tries  int
	}{
		{404, "NoSuchKey", errdefs.ErrNotFound, 1},
		{404, "NoSuchBucket", errdefs.ErrUnavailable, 1},
		{404, "", errdefs.ErrUnavailable, 1}, // nobody knows who says so
		{404, "NotFound", errdefs.ErrUnavailable, 1},
		{403, "AccessDenied", errdefs.ErrPermissionDenied, 1},
		{403, "AllAccessDisabled", errdefs.ErrPermissionDenied, 1},
		{403, "", errdefs.ErrPermissionDenied, 1},
		{401, "", errdefs.ErrUnauthenticated, 1},
		{403, "InvalidAccessKeyId", errdefs.ErrUnauthenticated, 1},
		{403, "SignatureDoesNotMatch", errdefs.ErrUnauthenticated, 1},
		{400, "ExpiredToken", errdefs.ErrUnauthenticated, 1},
		{403, "InvalidObjectState", errdefs.ErrUnavailable, 1},
		{403, "QuotaExceeded", errdefs.ErrResourceExhausted, 1},
		{507, "", errdefs.ErrResourceExhausted, 1},
		{501, "NotImplemented", errdefs.ErrNotImplemented, 1},
		{409, "ObjectParentIsFile", errdefs.ErrFailedPrecondition, 1},
		{301, "PermanentRedirect", errdefs.ErrUnavailable, 1},
		{302, "", errdefs.ErrUnavailable, 1},
		{400, "InvalidRequest", errdefs.ErrUnavailable, 1},
		{408, "", errdefs.ErrUnavailable, maxTries},
		{429, "", errdefs.ErrUnavailable, maxTries},
		{500, "InternalError", errdefs.ErrUnavailable, maxTries},
		{503, "SlowDown", errdefs.ErrUnavailable, maxTries},
	} {
		f.set(refusal(tt.status, tt.code))
		_, err := b.Stat(t.Context(), "k")
		if !errors.Is(err, tt.want) || errors.Is(err, errdefs.ErrNotFound) != (tt.want == errdefs.ErrNotFound) {
			t.Errorf("%d %s: %v, want %v", tt.status, tt.code, err, tt.want)
		}
		if got := f.count(); got != tt.tries {
			t.Errorf("%d %s: asked %d times, want %d", tt.status, tt.code, got, tt.tries)
		}
		if s := fmt.Sprint(err); !strings.Contains(s, b.Name()) || !strings.Contains(s, " k: ") || strings.Contains(s, "\n") ||
			!strings.Contains(s, "R1") || strings.Contains(s, "secret") {
			t.Errorf("%d %s: %q", tt.status, tt.code, s)
		}
	}
}

// TestCheckSays what to do.
func TestCheckSays(t *testing.T) {
	f, b := newFake(t, nil)
	ok := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("list-type") {
			fmt.Fprint(w, `<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`)
			return
		}
		refusal(404, "NoSuchKey")(w, r)
	}
	f.set(ok)
	if err := b.Check(t.Context()); err != nil || f.count() != 2 {
		t.Errorf("%v, by %d requests", err, f.count())
	}
	for _, tt := range []struct {
		answer func(w http.ResponseWriter, r *http.Request)
		class  error
		says   string
	}{
		{refusal(403, "AccessDenied"), errdefs.ErrPermissionDenied, "s3:ListBucket on arn:aws:s3:::b:"},
		{refusal(403, "InvalidAccessKeyId"), errdefs.ErrUnauthenticated, "credentials"},
		{refusal(404, "NoSuchBucket"), errdefs.ErrUnavailable, "make the bucket"},
		{func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
			refusal(301, "PermanentRedirect")(w, r)
		}, errdefs.ErrUnavailable, "eu-north-1"},
		{func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("list-type") {
				ok(w, r)
				return
			}
			refusal(403, "AccessDenied")(w, r)
		}, errdefs.ErrPermissionDenied, "s3:GetObject on arn:aws:s3:::b/p/*"},
	} {
		f.set(tt.answer)
		if err := b.Check(t.Context()); !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("got %v, want %q", err, tt.says)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Check(gone); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestStrangeAnswers: what a storage must not say is no object, and none is read without a bound.
func TestStrangeAnswers(t *testing.T) {
	f, b := newFake(t, nil)
	endless := func(status int) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte("<ListBucketResult><Error><Code>"))
			for {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
					return
				}
			}
		}
	}
	header := func(status int, kv ...string) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < len(kv); i += 2 {
				w.Header().Set(kv[i], kv[i+1])
			}
			w.WriteHeader(status)
			fmt.Fprint(w, "x")
		}
	}
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"endless refusal": endless(403), "endless 404": endless(404), "no ETag": header(206, "Content-Range", "bytes 0-0/5"),
		"no range": header(206, "Etag", `"e"`, "Content-Range", "bytes 0-0/*"),
		"wrong":    header(206, "Etag", `"e"`, "Content-Range", "bytes 3-2/1"),
		"nonsense": header(206, "Etag", `"e"`, "Content-Range", strings.Repeat("bytes", 1000)),
	} {
		f.set(answer)
		if _, err := b.Stat(t.Context(), "k"); err == nil || errdefs.IsNotFound(err) || len(err.Error()) > 2*maxText {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.set(endless(200))
	if _, _, err := b.List(t.Context(), "", "", 0); !errdefs.IsUnavailable(err) {
		t.Errorf("an endless list: %v", err)
	}
	f.set(header(206, "Etag", `"e"`, "Content-Range", "bytes 0-0/5"))
	if _, _, err := b.Open(t.Context(), "k", 3, 1); !errdefs.IsUnavailable(err) {
		t.Errorf("another range than was asked for: %v", err)
	}
	f.set(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")
	})
	if _, _, err := b.List(t.Context(), "", "", 0); !errdefs.IsUnavailable(err) {
		t.Errorf("a list that goes on nowhere: %v", err)
	}
}

// TestOneVersion: a server that ignores If-Match, and cuts its answers, has nobody read bytes of two versions.
func TestOneVersion(t *testing.T) {
	n := 0
	_, b := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("Etag", fmt.Sprintf("\"%d\"", n))
		if n > 1 {
			if r.Header.Get("If-Match") != `"1"` {
				t.Errorf("If-Match is %q", r.Header.Get("If-Match"))
			}
			w.Header().Set("Content-Range", "bytes 4-9/10")
			w.WriteHeader(206)
			fmt.Fprint(w, "bbbbbb")
			return
		}
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "aaaa")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	r, _, err := b.Open(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); string(got) != "aaaa" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestStall: a server by which nothing moves is given up, and asked again.
func TestStall(t *testing.T) {
	hang := make(chan struct{})
	f, b := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-hang:
		}
	})
	defer close(hang)
	b.http.stall, b.http.complete = 20*time.Millisecond, 20*time.Millisecond
	_, err := b.Stat(t.Context(), "k")
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.Canceled) || f.count() != maxTries {
		t.Errorf("asked %d times, %v", f.count(), err)
	}
	// One that hangs in the middle of an object.
	f.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"e"`)
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "aaaa")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	r, _, err := b.Open(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); string(got) != "aaaa" || !errdefs.IsUnavailable(err) {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestAway: a server that is not there has changed nothing.
func TestAway(t *testing.T) {
	f, b := newFake(t, nil)
	f.Close()
	_, err := b.WriteIf(t.Context(), "k", []byte("x"), "")
	if !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "not known") || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

// TestAuthority: with a certificate authority of one's own (AWS_CA_BUNDLE).
func TestAuthority(t *testing.T) {
	nothing(t)
	s := httptest.NewTLSServer(http.HandlerFunc(refusal(404, "NoSuchKey")))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", file)
	b := openFake(t, Config{Bucket: "b", Endpoint: s.URL, PathStyle: true})
	if _, err := b.Stat(t.Context(), "k"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

// TestHeaders: what is configured is asked for, of a PUT and of an upload.
func TestHeaders(t *testing.T) {
	f, _ := newFake(t, nil)
	var mu sync.Mutex
	seen := map[string]http.Header{}
	f.set(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		q := r.URL.Query()
		switch {
		case q.Has("uploads"):
			seen["create"] = r.Header.Clone()
			fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		case r.Method == http.MethodPost:
			seen["complete"] = r.Header.Clone()
			fmt.Fprint(w, `<CompleteMultipartUploadResult><ETag>"whole"</ETag></CompleteMultipartUploadResult>`)
		case q.Has("partNumber"):
			seen["part"] = r.Header.Clone()
			w.Header().Set("Etag", `"part"`)
		default:
			seen["put"] = r.Header.Clone()
			w.Header().Set("Etag", `"put"`)
		}
	})
	b := openFake(t, Config{
		Bucket: "b", Endpoint: f.URL, PathStyle: true, SSE: "aws:kms", KMSKey: "key", StorageClass: "STANDARD_IA", Checksums: "when_supported",
	})
	b.swept.Store(time.Now().Unix()) // its turn is in another test
	for _, size := range []int64{1, partSize + 1} {
		info, err := b.Write(t.Context(), "k", size, bytes.NewReader(make([]byte, size)))
		if want := map[bool]string{true: "put", false: "whole"}[size == 1]; err != nil || info.Version != want || info.Size != size {
			t.Errorf("%d bytes: %+v, %v", size, info, err)
		}
	}
	for _, request := range []string{"put", "create"} {
		h := seen[request]
		if h.Get("X-Amz-Server-Side-Encryption") != "aws:kms" || h.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id") != "key" ||
			h.Get("X-Amz-Storage-Class") != "STANDARD_IA" || h.Get("X-Amz-Meta-Capelin-Write") == "" {
			t.Errorf("%s: %v", request, h)
		}
	}
	sum := seen["part"].Get("X-Amz-Checksum-Crc32") + seen["part"].Get("X-Amz-Trailer")
	if sum == "" || seen["create"].Get("X-Amz-Checksum-Algorithm") != "CRC32" {
		t.Errorf("no checksums: %v", seen)
	}
	if !strings.Contains(seen["put"].Get("User-Agent"), "capelin/") {
		t.Error(seen["put"].Get("User-Agent"))
	}
}

// TestSweep: uploads that were left behind a day ago are aborted, and no others, once.
func TestSweep(t *testing.T) {
	now := time.Date(2020, 1, 3, 12, 0, 0, 0, time.UTC) // the storage's
	var mu sync.Mutex
	var aborted []string
	lists := 0
	f, b := newFake(t, nil)
	f.set(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		q := r.URL.Query()
		w.Header().Set("Date", now.Format(http.TimeFormat))
		switch {
		case q.Has("uploads") && r.Method == http.MethodPost:
			fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		case q.Has("uploads"):
			if got := q.Get("prefix"); got != "p/blobs/" {
				t.Errorf("listed %q", got)
			}
			lists++
			upload := func(key, id string, age time.Duration) string {
				return fmt.Sprintf("<Upload><Key>%s</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>",
					key, id, now.Add(-age).Format(time.RFC3339))
			}
			if q.Get("key-marker") == "" {
				fmt.Fprint(w, "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>",
					"<NextKeyMarker>m</NextKeyMarker><NextUploadIdMarker>n</NextUploadIdMarker>",
					upload("p/blobs/a", "old", 25*time.Hour), upload("p/blobs/a", "young", 23*time.Hour),
					upload("other", "foreign", 90*time.Hour), "</ListMultipartUploadsResult>")
				return
			}
			fmt.Fprint(w, "<ListMultipartUploadsResult>", upload("p/blobs/b", "older", 100*time.Hour), "</ListMultipartUploadsResult>")
		case r.Method == http.MethodDelete:
			aborted = append(aborted, q.Get("uploadId"))
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost:
			fmt.Fprint(w, `<CompleteMultipartUploadResult><ETag>"whole"</ETag></CompleteMultipartUploadResult>`)
		default:
			w.Header().Set("Etag", `"part"`)
		}
	})
	write := func(size int) {
		if _, err := b.Write(t.Context(), "k", int64(size), bytes.NewReader(make([]byte, size))); err != nil {
			t.Fatal(err)
		}
		b.wg.Wait()
	}
	write(1)
	if lists != 0 {
		t.Error("a small object has uploads listed")
	}
	write(partSize + 1)
	write(partSize + 1)
	if lists != 2 || fmt.Sprint(aborted) != "[old older]" {
		t.Errorf("aborted %q by %d lists", aborted, lists)
	}
	b.swept.Add(-int64(sweepEvery/time.Second) - 1)
	write(partSize + 1)
	if lists != 4 {
		t.Errorf("a day later: %d lists", lists)
	}
}

// TestTries: a write under a condition is sent as often as everything else, by one of the two who could repeat it.
func TestTries(t *testing.T) {
	f, b := newFake(t, nil)
	for _, tt := range []struct {
		status int
		code   string
		want   error
		puts   int
	}{
		{412, "PreconditionFailed", errdefs.ErrConflict, 1},
		{404, "NoSuchKey", errdefs.ErrConflict, 1},
		{404, "NoSuchBucket", errdefs.ErrUnavailable, 1},
		{403, "AccessDenied", errdefs.ErrPermissionDenied, 1},
		{501, "NotImplemented", errdefs.ErrNotImplemented, 1}, // it knows no conditions
		{409, "ConditionalRequestConflict", errdefs.ErrUnavailable, maxTries},
		{429, "", errdefs.ErrUnavailable, maxTries},
		{503, "SlowDown", errdefs.ErrUnavailable, maxTries},
	} {
		puts := 0
		f.set(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				puts++
				refusal(tt.status, tt.code)(w, r)
				return
			}
			refusal(403, "")(w, r)
		})
		_, err := b.WriteIf(t.Context(), "k", []byte("x"), "v")
		if !errors.Is(err, tt.want) || puts != tt.puts {
			t.Errorf("%d %s: %v after %d tries, want %v after %d", tt.status, tt.code, err, puts, tt.want, tt.puts)
		}
	}
}

// TestLostEnd: the answer to the end of an upload is lost, and the upload is not there any more when it is ended again.
func TestLostEnd(t *testing.T) {
	f, b := newFake(t, nil)
	b.swept.Store(time.Now().Unix())
	for _, tt := range []struct {
		name    string
		there   func(mine string) string // the write that what is there is from
		aborted bool                     // the upload was there after all
		ok      bool
	}{
		{"it was done", func(mine string) string { return mine }, false, true},
		{"another has written since", func(string) string { return "another" }, false, false},
		{"it was not done", func(mine string) string { return mine }, true, false},
	} {
		mine, ends := "", 0
		f.set(func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			switch {
			case q.Has("uploads"):
				mine = r.Header.Get("X-Amz-Meta-" + metaWrite)
				fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
			case r.Method == http.MethodPost:
				if ends++; ends == 1 {
					panic(http.ErrAbortHandler)
				}
				refusal(404, codeNoSuchUpload)(w, r)
			case r.Method == http.MethodDelete && tt.aborted:
				w.WriteHeader(http.StatusNoContent)
			case r.Method == http.MethodDelete:
				refusal(404, codeNoSuchUpload)(w, r)
			case r.Method == http.MethodHead:
				w.Header().Set("Etag", `"whole"`)
				w.Header().Set("X-Amz-Meta-"+metaWrite, tt.there(mine))
			default:
				w.Header().Set("Etag", `"part"`)
			}
		})
		info, err := b.Write(t.Context(), "k", partSize+1, bytes.NewReader(make([]byte, partSize+1)))
		if tt.ok && (err != nil || info.Version != "whole" || info.Size != partSize+1) || !tt.ok && !errdefs.IsUnavailable(err) || ends != 2 {
			t.Errorf("%s: %+v, %v, ended %d times", tt.name, info, err, ends)
		}
	}
}
