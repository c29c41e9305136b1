package record

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// maxV1 bounds the bytes of a record of format 1.
const maxV1 = 1 << 20

// v1 is format 1.
type v1 struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Homes  []v1Home      `json:"homes"`
}

type v1Home struct {
	Place
	Namespaces []string `json:"namespaces,omitempty"` // the latest push last
	More       bool     `json:"more,omitempty"`
	Written    bool     `json:"written,omitempty"`
}

// FromV1 reads a record of format 1 of the blob d, as the member by has it. What it was pushed to has the stamp V1, and what a
// backend has was seen there right after that.
func FromV1(b []byte, d digest.Digest, by string) (*Record, error) {
	var old v1
	var err error
	if len(b) > maxV1 {
		err = fmt.Errorf("it has more than %d bytes", maxV1)
	} else if err = json.Unmarshal(b, &old); err == nil && old.Digest != d {
		err = fmt.Errorf("it is about %q", old.Digest)
	}
	r := &Record{Digest: d, Size: old.Size}
	for _, h := range old.Homes {
		r = Merge(r, old.home(h, by))
	}
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s in format 1: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

func (old *v1) home(h v1Home, by string) *Record {
	to := Home{Place: h.Place, By: by, Since: V1, Namespaces: Stamps{}}
	for _, ns := range h.Namespaces {
		to.Namespaces[ns] = V1
	}
	if h.More {
		to.More = V1
	}
	if len(h.Namespaces) == 0 && !h.More {
		to.Namespaces[""] = V1 // it lives there all the same
	}
	if h.Written {
		to.Written = V1 + 1
	}
	return &Record{Digest: old.Digest, Size: old.Size, Homes: []Home{to}}
}

// V1 returns the record in format 1, for an origin without a ring: where the blob lives now. It is nil if the blob lives
// nowhere: format 1 has no such record. Removals are left out, and so are the places where the blob still has to be erased.
func (r *Record) V1() ([]byte, error) {
	if !r.Live() {
		return nil, nil
	}
	old := v1{Digest: r.Digest, Size: r.Size}
	for i := range r.Homes {
		if h := &r.Homes[i]; r.Lives(h) {
			old.Homes = append(old.Homes, r.v1Home(h))
		}
	}
	b, err := json.MarshalIndent(old, "", " ")
	if err == nil && len(b) > maxV1 {
		err = fmt.Errorf("%d bytes are more than %d", len(b), maxV1)
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s cannot be written in format 1: %w", r.Digest, err)
	}
	return b, nil
}

func (r *Record) v1Home(h *Home) v1Home {
	to := v1Home{Place: h.Place, More: h.More > r.Removed[""], Written: !h.Kept() && !r.PendingAt(h)}
	for ns, s := range h.Namespaces {
		if ns != "" && s > r.removal(ns) {
			to.Namespaces = append(to.Namespaces, ns)
		}
	}
	slices.SortFunc(to.Namespaces, func(a, b string) int {
		return cmp.Or(cmp.Compare(h.Namespaces[a], h.Namespaces[b]), cmp.Compare(a, b))
	})
	return to
}
