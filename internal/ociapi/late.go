package ociapi

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Late is a ResponseWriter that sends nothing before the first bytes of the body are there, so that
// something else can still be answered if they do not come; see NoLater. Whoever has nothing to
// write calls Begin. All but NoLater's sending is done by one goroutine.
type Late struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	header http.Header

	mu     sync.Mutex // guards the next two, and sending the header
	status int
	begun  bool
}

// NewLate returns one for an answer of which nothing is written yet.
func NewLate(w http.ResponseWriter) *Late {
	return &Late{w: w, rc: http.NewResponseController(w), header: http.Header{}}
}

// Header returns what is added to the answer's header when it begins.
func (l *Late) Header() http.Header { return l.header }

// WriteHeader notes a status; one that is not that of bytes of a blob is sent at once.
func (l *Late) WriteHeader(status int) {
	l.mu.Lock()
	l.status = status
	l.mu.Unlock()
	if status != http.StatusOK && status != http.StatusPartialContent {
		l.begin(false)
	}
}

// Begin sends the header, if there is one and it was not sent yet.
func (l *Late) Begin() { l.begin(false) }

// Begun reports whether the header was sent.
func (l *Late) Begun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.begun
}

func (l *Late) begin(flush bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.begun || l.status == 0 {
		return
	}
	l.begun = true
	h := l.w.Header()
	for k, v := range l.header {
		h[k] = v
	}
	l.w.WriteHeader(l.status)
	if flush {
		_ = l.rc.Flush() // that the client is gone is noticed by who writes the body
	}
}

// NoLater has the header sent after d. The caller calls stop, which waits for that, before
// it answers otherwise.
func (l *Late) NoLater(d time.Duration) (stop func()) {
	done := make(chan struct{})
	t := time.AfterFunc(d, func() {
		defer close(done)
		l.begin(true)
	})
	return func() {
		if !t.Stop() {
			<-done
		}
	}
}

// Write implements io.Writer.
func (l *Late) Write(p []byte) (int, error) {
	l.begin(false)
	return l.w.Write(p)
}

var bodyBuf = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// ReadFrom sends what r gives as soon as it gives it.
func (l *Late) ReadFrom(r io.Reader) (total int64, err error) {
	buf := bodyBuf.Get().(*[]byte)
	defer bodyBuf.Put(buf)
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			m, werr := l.Write((*buf)[:n])
			total += int64(m)
			if werr == nil {
				werr = l.rc.Flush()
			}
			if werr != nil {
				return total, werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}
