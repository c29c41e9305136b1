package ociapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"cuelabs.dev/go/oci/ociregistry"
)

// shown is what a client is told of an error, and its status.
func shown(err error) string {
	if err == nil {
		return ""
	}
	w := httptest.NewRecorder()
	WriteError(w, err, "")
	var all ociregistry.WireErrors
	err = json.Unmarshal(w.Body.Bytes(), &all)
	if err != nil || len(all.Errors) != 1 || w.Header().Get("Content-Type") != "application/json" {
		return w.Body.String()
	}
	return fmt.Sprintf("%s %d", all.Errors[0].Code_, w.Code)
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		err         error
		want, again string
	}{
		{ociregistry.ErrBlobUnknown, "BLOB_UNKNOWN 404", ""},
		{fmt.Errorf("x: %w", ociregistry.ErrDenied), "DENIED 403", ""},
		{errors.New("x"), "UNKNOWN 500", ""},
		{Refuse(405, "UNSUPPORTED", "not %d", 1), "UNSUPPORTED 405", ""}, // 400 by its code
		{fmt.Errorf("x: %w", WithStatus(503, "UNAVAILABLE", errors.New("y"))), "UNAVAILABLE 503", "2"},
		{WithStatus(429, "TOOMANYREQUESTS", errors.New("y")), "TOOMANYREQUESTS 429", "10"},
	} {
		w := httptest.NewRecorder()
		WriteError(w, tt.err, "")
		if got := shown(tt.err); got != tt.want || w.Header().Get("Retry-After") != tt.again {
			t.Errorf("%v: %s, again after %q", tt.err, got, w.Header().Get("Retry-After"))
		}
	}
	w := httptest.NewRecorder()
	if WriteError(w, errors.New("a secret"), "a text"); !strings.Contains(w.Body.String(), `"message":"a text"`) {
		t.Errorf("it says %s", w.Body)
	}
	if cause := errors.New("cause"); !errors.Is(WithStatus(500, "X", cause), cause) {
		t.Error("the cause is lost")
	}
}
