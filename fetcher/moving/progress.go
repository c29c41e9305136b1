package moving

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Progress is how far a move is.
type Progress struct {
	Phase    string `json:"phase"` // copying, verifying, following, closed, moved
	Objects  int64  `json:"objects"`
	Copied   int64  `json:"copied"`   // objects that the new storage did not have
	Bytes    int64  `json:"bytes"`    // that were copied
	Verified int64  `json:"verified"` // objects that were read from the new storage, and are what the old one has
	Mended   int64  `json:"mended"`   // objects that verifying found to differ, because they were changed meanwhile or before a restart
	Followed int64  `json:"followed"` // objects that were changed meanwhile
	Waited   int64  `json:"waited"`   // objects that were copied while writes waited
	// At is the key up to which all is copied. Keys are in the order of digests, so that it says how much that is of the whole.
	At string `json:"at,omitempty"`
	// Damaged are blobs whose bytes are wrong in the old storage, by their keys. They were not copied.
	Damaged []string `json:"damaged,omitempty"`
}

// String is for people.
func (p Progress) String() string {
	at := ""
	if share, ok := p.share(); ok && p.Phase == copying {
		at = fmt.Sprintf(", about %d %% of all", share)
	}
	return fmt.Sprintf("%s%s: %d objects, %d copied (%d bytes), %d compared, of which %d were copied again; %d changed meanwhile, "+
		"%d of them while writes waited", p.Phase, at, p.Objects, p.Copied, p.Bytes, p.Verified, p.Mended, p.Followed+p.Waited, p.Waited)
}

// share is how much of all blobs has a key before At, in percent.
func (p Progress) share() (int, bool) {
	switch dir, rest, _ := strings.Cut(p.At, "/"); dir {
	case "records":
		return 100, true
	case "blobs":
		_, rest, _ = strings.Cut(rest, "/")
		first, _, _ := strings.Cut(rest, "/")
		if n, err := strconv.ParseUint(first, 16, 8); err == nil {
			return int(n) * 100 / 256, true
		}
	}
	return 0, false
}

// DamagedError is that the old storage has blobs with wrong bytes.
type DamagedError struct {
	Storage string
	Keys    []string
}

func (e *DamagedError) Error() string {
	const shown = 20
	names, more := e.Keys, ""
	if len(names) > shown {
		names, more = names[:shown], fmt.Sprintf(" and %d more", len(names)-shown)
	}
	return fmt.Sprintf("%s has %d blobs whose bytes are not what their digests say, and which were not copied: %s%s; delete them and push "+
		"them again, or move without them", e.Storage, len(e.Keys), strings.Join(names, ", "), more)
}

// Unwrap makes it an errdefs.ErrFailedPrecondition.
func (e *DamagedError) Unwrap() error { return errdefs.ErrFailedPrecondition }
