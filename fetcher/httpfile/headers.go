package httpfile

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpguts"
)

// maxHeaders is how long a file of headers may be, in bytes.
const maxHeaders = 64 << 10

// readHeaders reads a file of headers; "": none. Its errors have nothing of what is in the
// file.
func readHeaders(path string) (http.Header, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading header_file: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxHeaders+1))
	if err != nil {
		return nil, fmt.Errorf("reading header_file: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if len(data) > maxHeaders {
		return nil, fmt.Errorf("header_file %s has more than %d bytes: %w", path, maxHeaders, errdefs.ErrFailedPrecondition)
	}
	h := http.Header{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("header_file %s, line %d is not a header (Name: value): %w", path, i+1, errdefs.ErrFailedPrecondition)
		}
		h.Add(name, value)
	}
	return h, nil
}
