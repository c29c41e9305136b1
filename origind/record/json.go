package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
)

// Limits of a record, beside MaxNamespaces and those of digests, sizes, namespaces and keys.
const (
	MaxHomes  = 32
	MaxName   = 255     // bytes of a backend's or a member's name
	MaxRecord = 4 << 20 // bytes of a record, as JSON and packed
)

const format = 2

// text is a record as JSON.
type text struct {
	Format  int           `json:"format"`
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size,omitempty"`
	Removed Stamps        `json:"removed,omitempty"`
	Homes   textHomes     `json:"homes,omitempty"`
}

type textHomes []textHome

type textHome struct {
	Place
	By         string `json:"by"`
	Since      Stamp  `json:"since"`
	Namespaces Stamps `json:"namespaces,omitempty"`
	More       Stamp  `json:"more,omitempty"`
	Written    Stamp  `json:"written,omitempty"`
}

// JSON returns a record that is valid as JSON: the only one for what it says, so that equal records have equal bytes.
func (r *Record) JSON() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	t := text{format, r.Digest, r.Size, r.Removed, nil}
	for _, h := range r.Homes {
		t.Homes = append(t.Homes, textHome(h))
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(t); err != nil {
		return nil, fmt.Errorf("record of %s: %w", r.Digest, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), sized(r.Digest, b.Len())
}

// sized reports that a record has too many bytes.
func sized(d digest.Digest, n int) error {
	if n > MaxRecord {
		return fmt.Errorf("record of %s: %d bytes are more than %d: remove the blob from namespaces: %w",
			d, n, MaxRecord, errdefs.ErrResourceExhausted)
	}
	return nil
}

// Parse reads a record of format 2 of the blob d. Fields that are not known are refused: to drop one would be to forget
// what another member knows.
func Parse(b []byte, d digest.Digest) (*Record, error) {
	if err := sized(d, len(b)); err != nil {
		return nil, err
	}
	r, err := parse(b)
	if err == nil && r.Digest != d {
		err = fmt.Errorf("it is about %q", r.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

func parse(b []byte) (*Record, error) {
	var t text
	if err := json.Unmarshal(b, &struct{ Format *int }{&t.Format}); err != nil {
		return nil, err
	}
	if t.Format != format {
		return nil, fmt.Errorf("its format is %d, only %d is known: all members have to be of the release that writes it", t.Format, format)
	}
	if err := strict(b).Decode(&t); err != nil {
		return nil, err
	}
	r := &Record{Digest: t.Digest, Size: t.Size, Removed: t.Removed}
	for _, h := range t.Homes {
		r.Homes = append(r.Homes, Home(h))
	}
	return r, r.check()
}

func strict(b []byte) *json.Decoder {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec
}

// UnmarshalJSON reads homes, and not more than there may be.
func (hs *textHomes) UnmarshalJSON(b []byte) error {
	return elements(b, '[', MaxHomes, func(dec *json.Decoder) error {
		var h textHome
		err := dec.Decode(&h)
		*hs = append(*hs, h)
		return err
	})
}

// UnmarshalJSON reads stamps, and not more than there may be.
func (m *Stamps) UnmarshalJSON(b []byte) error {
	*m = Stamps{}
	return elements(b, '{', MaxNamespaces+1, func(dec *json.Decoder) error {
		ns, err := dec.Token()
		if err != nil {
			return err
		}
		var s Stamp
		err = dec.Decode(&s)
		(*m)[ns.(string)] = s
		return err
	})
}

// elements calls f for each element of a list or an object, at most most times.
func elements(b []byte, open json.Delim, most int, f func(dec *json.Decoder) error) error {
	dec := strict(b)
	if first, err := dec.Token(); err != nil || first != open {
		return fmt.Errorf("it has %v where %v belongs", first, open)
	}
	for n := 0; dec.More(); n++ {
		if n == most {
			return fmt.Errorf("more than %d homes or namespaces", most)
		}
		if err := f(dec); err != nil {
			return err
		}
	}
	return nil
}

// Fits reports whether a record that was merged of valid ones has not too many homes, and few enough bytes that all
// namespaces can be removed yet.
func (r *Record) Fits() bool {
	n := len(r.Removed)
	for _, h := range r.Homes {
		n += len(h.Namespaces)
	}
	if len(r.Homes) > MaxHomes || n <= MaxNamespaces { // nearly always
		return len(r.Homes) <= MaxHomes
	}
	b, err := r.JSON()
	return err == nil && len(b)+(MaxNamespaces-len(r.Removed))*maxRemoval <= MaxRecord
}

// maxRemoval is what a namespace and its stamp take as JSON: each byte of the name at most two.
const maxRemoval = 2*origin.MaxNamespace + 25

// Check reports what is wrong with a record, as errdefs.ErrInvalidArgument, or as errdefs.ErrResourceExhausted if
// it has too many homes: a merge of two that are valid may have.
func (r *Record) Check() error {
	err := r.check()
	if err == nil {
		return nil
	}
	var class error = errdefs.ErrInvalidArgument
	if len(r.Homes) > MaxHomes {
		class = errdefs.ErrResourceExhausted
	}
	return fmt.Errorf("record of %s: %w: %w", r.Digest, err, class)
}

func (r *Record) check() error {
	if err := origin.CheckDigest(r.Digest); err != nil {
		return err
	}
	if r.Size < 0 || r.Size > origin.MaxSize || r.Size == 0 && r.Live() {
		return fmt.Errorf("a size of %d bytes", r.Size)
	}
	if err := checkStamps(r.Removed, MaxStamp); err != nil {
		return fmt.Errorf("removed: %w", err)
	}
	if len(r.Homes) > MaxHomes {
		return fmt.Errorf("%d homes, %d are the most", len(r.Homes), MaxHomes)
	}
	for i, h := range r.Homes {
		if err := h.check(); err != nil {
			return fmt.Errorf("home %s %s: %w", shorten(h.Backend), shorten(h.Key), err)
		}
		if i > 0 && r.Homes[i-1].Compare(h.Place) >= 0 {
			return fmt.Errorf("home %s %s is there twice, or out of order", h.Backend, h.Key)
		}
	}
	if n := len(r.named()); n > MaxNamespaces {
		return fmt.Errorf("%d namespaces, %d are the most", n, MaxNamespaces)
	}
	return nil
}

func (h *Home) check() error {
	by := checkName(h.By)
	if h.By == "" && h.Since == V1 {
		by = nil
	}
	if err := errors.Join(by, h.Place.check()); err != nil {
		return err
	}
	if h.Since == 0 || max(h.Since, h.Written) > MaxStamp || h.More > h.Since {
		return fmt.Errorf("stamps that cannot be: since %d, more %d, written %d", h.Since, h.More, h.Written)
	}
	return checkStamps(h.Namespaces, h.Since)
}

// Check reports what is wrong with a place, as errdefs.ErrInvalidArgument.
func (p Place) Check() error {
	if err := p.check(); err != nil {
		return fmt.Errorf("backend %s, key %s: %w: %w", shorten(p.Backend), shorten(p.Key), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (p Place) check() error {
	if err := checkName(p.Backend); err != nil || p.Kept() {
		return err
	}
	if err := fetcher.CheckKey(p.Key); err != nil {
		return err
	}
	if !utf8.ValidString(p.Key) {
		return errors.New("its key is no UTF-8")
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > MaxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("%q is no name of a backend or a member", shorten(name))
	}
	return nil
}

func checkStamps(m Stamps, most Stamp) error {
	for ns, s := range m {
		if err := origin.CheckNamespace(ns); err != nil {
			return err
		}
		if !utf8.ValidString(ns) {
			return fmt.Errorf("namespace %q is no UTF-8", ns)
		}
		if s == 0 || s > most {
			return fmt.Errorf("namespace %q has the stamp %d, which is not in 1..%d", ns, s, most)
		}
	}
	return nil
}

func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
