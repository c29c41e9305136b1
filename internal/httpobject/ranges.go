package httpobject

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

const maxOffset = math.MaxInt64

func inside(off, size int64) error {
	if off > size {
		return fmt.Errorf("offset %d is outside of %d bytes: %w", off, size, errdefs.ErrOutOfRange)
	}
	return nil
}

// rangeOf returns the header's value; "": the whole object. It names the last byte
// if that can be known, because some servers want that.
func rangeOf(off, n, size int64, known bool) string {
	last := int64(-1)
	if n > 0 && n <= maxOffset-off {
		last = off + n - 1
	}
	if known && (last < 0 || last >= size) {
		last = size - 1
	}
	switch {
	case off == 0 && (last < 0 || known && last == size-1):
		return ""
	case last < 0:
		return fmt.Sprintf("bytes=%d-", off)
	}
	return fmt.Sprintf("bytes=%d-%d", off, last)
}

// contentRange reads "bytes 5-9/100", with -1 for what is a "*".
func contentRange(v string) (start, size int64, err error) {
	bad := fmt.Errorf("Content-Range %q: %w", v[:min(len(v), 100)], errdefs.ErrUnavailable)
	spec, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, 0, bad
	}
	span, total, ok := strings.Cut(spec, "/")
	if !ok {
		return 0, 0, bad
	}
	start, size = -1, -1
	if total != "*" {
		if size, err = strconv.ParseInt(total, 10, 64); err != nil || size < 0 {
			return 0, 0, bad
		}
	}
	if span != "*" {
		first, last, _ := strings.Cut(span, "-")
		end, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			return 0, 0, bad
		}
		if start, err = strconv.ParseInt(first, 10, 64); err != nil || start < 0 || end < start {
			return 0, 0, bad
		}
	}
	return start, size, nil
}
