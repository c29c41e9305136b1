package ociapi

import (
	"io"
	"net/http"
	"time"
)

// TokenPath is where a gateway gives tokens. No repository is there: their names have no element that begins with "_".
const TokenPath = "/v2/_token"

// stallTimeout ends a request whose client neither sends nor takes anything.
const stallTimeout = time.Minute

// Patient lets a request's body and answer take as long as they move, and what a handler does between them as long as it
// takes. Blobs have no size that a timeout for all could be made for.
func Patient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.SetWriteDeadline(time.Time{}) // there is one when something is written
		r.Body = &patientBody{r.Body, rc}
		h.ServeHTTP(&patientWriter{w, rc}, r)
	})
}

type patientBody struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (b *patientBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(stallTimeout))
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		// The server goes on reading, to know when the client is gone: a deadline would end the request.
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

type patientWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patientWriter) WriteHeader(status int) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(stallTimeout))
	w.ResponseWriter.WriteHeader(status)
}

func (w *patientWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(stallTimeout))
	return w.ResponseWriter.Write(p)
}
