package ociapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"cuelabs.dev/go/oci/ociregistry"
)

// coded is an error of the API.
type coded struct {
	error
	code string
}

func (c coded) Code() string            { return c.code }
func (c coded) Detail() json.RawMessage { return nil }
func (c coded) Unwrap() error           { return c.error }

// WithStatus returns an error with a code and a status, whatever the spec's status of that code is.
func WithStatus(status int, code string, err error) error {
	return statusError{coded{err, code}, status}
}

// statusError is an error with a status. Its text says nothing of that; clients see it.
type statusError struct {
	coded
	status int
}

func (e statusError) StatusCode() int          { return e.status }
func (e statusError) Response() *http.Response { return nil }
func (e statusError) ResponseBody() []byte     { return nil }

// retryAfter is when to ask again, in seconds, what is answered with a status that ends by itself.
var retryAfter = map[int]int{http.StatusServiceUnavailable: 2, http.StatusTooManyRequests: 10}

// Status returns the status of an error, which is its own or that of its code.
func Status(err error) int {
	if e, ok := errors.AsType[ociregistry.HTTPError](err); ok {
		return e.StatusCode()
	}
	_, status := ociregistry.MarshalError(err)
	return status
}

// WriteError answers with an error, as the API has them. It says text, or what err says if that is "".
func WriteError(w http.ResponseWriter, err error, text string) {
	one := ociregistry.WireError{Code_: "UNKNOWN", Message: text}
	if e, ok := errors.AsType[ociregistry.Error](err); ok {
		one.Code_, one.Detail_ = e.Code(), e.Detail()
	}
	if text == "" {
		one.Message = err.Error()
	}
	body, merr := json.Marshal(ociregistry.WireErrors{Errors: []ociregistry.WireError{one}})
	if merr != nil {
		body = []byte(`{"errors":[]}`)
	}
	status := Status(err)
	if s := retryAfter[status]; s > 0 && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", strconv.Itoa(s))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
