package origind

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// ringFile is ring.json (record/FORMAT.md, section 5).
type ringFile struct {
	incarnation uint64
	log         uint64           // the deletion log's id
	saved       *ringstate.Saved // nil: nothing was decided yet
	disks       *diskSet         // nil: there was only ever one
}

// diskSet is what is known of a member's disks.
type diskSet struct {
	at    record.Stamp // when it was last changed; never goes back
	ids   []uint64     // those that have all that is kept, ascending
	lost  []uint64     // those whose blobs are not known to be elsewhere, ascending
	clean bool         // nothing was kept after this
}

const maxDisks = 256

const (
	ringFormat = 1
	maxRing    = 4 << 20 // bytes
)

// ringEnvelope is all of the file.
type ringEnvelope struct {
	Format int             `json:"format"`
	CRC    string          `json:"crc"` // of Ring's bytes as they stand there
	Ring   json.RawMessage `json:"ring"`
}

type ringText struct {
	Incarnation hexID         `json:"incarnation"`
	Log         hexID         `json:"log"`
	Clock       record.Stamp  `json:"clock,omitempty"`
	Order       uint64        `json:"order,omitempty"`
	Members     []memberText  `json:"members,omitempty"`
	Removals    []removalText `json:"removals,omitempty"`
	Lost        []lostText    `json:"lost,omitempty"`
	Whole       *wholeText    `json:"whole,omitempty"`
	Lowest      int           `json:"lowest,omitempty"`
	Disks       *disksText    `json:"disks,omitempty"`
}

type disksText struct {
	At    record.Stamp `json:"at"`
	IDs   []hexID      `json:"ids"`
	Lost  []hexID      `json:"lost,omitempty"`
	Clean bool         `json:"clean,omitempty"`
}

func hexIDs(ids []uint64) (all []hexID) {
	for _, id := range ids {
		all = append(all, hexID(id))
	}
	return all
}

func numbers(ids []hexID) (all []uint64) {
	for _, id := range ids {
		all = append(all, uint64(id))
	}
	return all
}

type memberText struct {
	Name        string `json:"name"`
	Addr        string `json:"addr,omitempty"`
	Zone        string `json:"zone,omitempty"`
	Incarnation hexID  `json:"incarnation,omitzero"`
	Mode        string `json:"mode"`
	ModeAt      uint64 `json:"mode_at"`
	Gone        bool   `json:"gone,omitempty"`
	Read        uint64 `json:"read"`
}

type removalText struct {
	Name       string `json:"name"`
	Removed    uint64 `json:"removed,omitempty"`
	Readmitted uint64 `json:"readmitted,omitempty"`
	Forgotten  uint64 `json:"forgotten,omitempty"`
}

type lostText struct {
	Name        string `json:"name"`
	Incarnation hexID  `json:"incarnation"`
	At          uint64 `json:"at"`
	Drained     bool   `json:"drained,omitempty"`
}

type wholeText struct {
	At  uint64 `json:"at"`
	Min int    `json:"min"`
}

// hexID is a random number, as 16 hexadecimal digits: readers of JSON take large numbers for floating point.
type hexID uint64

func (h hexID) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(h)), nil }

// UnmarshalText reads what MarshalText writes.
func (h *hexID) UnmarshalText(b []byte) error {
	v := hexID(0)
	raw, err := hex.DecodeString(string(b))
	for _, c := range raw {
		v = v<<8 | hexID(c)
	}
	if again, _ := v.MarshalText(); err != nil || string(again) != string(b) {
		return fmt.Errorf("%.20q is not 16 hexadecimal digits", b)
	}
	*h = v
	return nil
}

// modes are the names of what members say of themselves.
var modes = [...]string{ringstate.Joining: "joining", ringstate.Up: "up", ringstate.Draining: "draining", ringstate.Drained: "drained"}

// text returns the file's bytes. What could not be read again is errdefs.ErrInvalidArgument.
func (f *ringFile) text() ([]byte, error) {
	t := ringText{Incarnation: hexID(f.incarnation), Log: hexID(f.log)}
	if d := f.disks; d != nil {
		t.Disks = &disksText{d.at, hexIDs(d.ids), hexIDs(d.lost), d.clean}
	}
	err := f.check()
	if err == nil {
		err = t.fill(f.saved)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	ring, err := json.MarshalIndent(t, " ", " ")
	if err != nil {
		return nil, err
	}
	b := fmt.Appendf(nil, "{\n \"format\": %d,\n \"crc\": %q,\n \"ring\": %s\n}\n", ringFormat, ringCRC(ring), ring)
	if len(b) > maxRing {
		return nil, fmt.Errorf("%d bytes are more than %d: %w", len(b), maxRing, errdefs.ErrResourceExhausted)
	}
	return b, nil
}

func ringCRC(ring []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(ring, crc32.MakeTable(crc32.Castagnoli)))
}

func (t *ringText) fill(s *ringstate.Saved) error {
	if s == nil {
		return nil
	}
	t.Clock, t.Order, t.Lowest = s.Clock, uint64(s.Order), s.Lowest
	for _, m := range s.Members {
		if int(m.Mode) >= len(modes) {
			return fmt.Errorf("mode %d of %s", m.Mode, m.Name)
		}
		t.Members = append(t.Members, memberText{
			m.Name, m.Addr, m.Zone, hexID(m.Incarnation), modes[m.Mode], uint64(m.ModeAt), m.Gone, m.Read,
		})
	}
	for _, r := range s.Removals {
		t.Removals = append(t.Removals, removalText{r.Name, uint64(r.Removed), uint64(r.Readmitted), uint64(r.Forgotten)})
	}
	for _, l := range s.Lost {
		t.Lost = append(t.Lost, lostText{l.Name, hexID(l.Incarnation), uint64(l.At), l.Drained})
	}
	if s.Whole != (ringstate.Whole{}) {
		t.Whole = &wholeText{uint64(s.Whole.At), s.Whole.Min}
	}
	return nil
}

// file is the other way round.
func (t *ringText) file() (*ringFile, error) {
	f := &ringFile{incarnation: uint64(t.Incarnation), log: uint64(t.Log)}
	if d := t.Disks; d != nil {
		f.disks = &diskSet{d.At, numbers(d.IDs), numbers(d.Lost), d.Clean}
	}
	if len(t.Members) == 0 {
		return f, f.check()
	}
	s := &ringstate.Saved{Incarnation: f.incarnation, Clock: t.Clock, Order: ringstate.Order(t.Order), Lowest: t.Lowest}
	for _, m := range t.Members {
		mode := slices.Index(modes[:], m.Mode)
		if mode < 0 {
			return nil, fmt.Errorf("mode %.20q of %s", m.Mode, m.Name)
		}
		s.Members = append(s.Members, ringstate.SavedMember{
			Name: m.Name, Addr: m.Addr, Zone: m.Zone, Incarnation: uint64(m.Incarnation),
			Mode: ringstate.Mode(mode), ModeAt: ringstate.Order(m.ModeAt), Gone: m.Gone, Read: m.Read,
		})
	}
	for _, r := range t.Removals {
		s.Removals = append(s.Removals, ringstate.Removal{
			Name: r.Name, Removed: ringstate.Order(r.Removed), Readmitted: ringstate.Order(r.Readmitted), Forgotten: ringstate.Order(r.Forgotten),
		})
	}
	for _, l := range t.Lost {
		s.Lost = append(s.Lost, ringstate.Lost{Name: l.Name, Incarnation: uint64(l.Incarnation), At: ringstate.Order(l.At), Drained: l.Drained})
	}
	if t.Whole != nil {
		s.Whole = ringstate.Whole{At: ringstate.Order(t.Whole.At), Min: t.Whole.Min}
	}
	f.saved = s
	return f, f.check()
}

// check reports what cannot be.
func (f *ringFile) check() error {
	if f.incarnation == 0 {
		return errors.New("no incarnation")
	}
	if d := f.disks; d != nil {
		sorted := func(ids []uint64) bool {
			return len(ids) <= maxDisks && slices.IsSorted(ids) && !slices.Contains(ids, 0)
		}
		if d.at > record.MaxStamp || len(d.ids) == 0 || !sorted(d.ids) || !sorted(d.lost) {
			return fmt.Errorf("disks %x, lost %x, at %d", d.ids, d.lost, d.at)
		}
	}
	s := f.saved
	if s == nil {
		return nil
	}
	if s.Incarnation != f.incarnation || s.Clock > record.MaxStamp || s.Lowest < 1 || s.Whole.Min < 0 || len(s.Members) == 0 {
		return fmt.Errorf("incarnation %x of %x, clock %d, %d members, lowest %d, whole with %d",
			s.Incarnation, f.incarnation, s.Clock, len(s.Members), s.Lowest, s.Whole.Min)
	}
	var names []string
	for _, m := range s.Members {
		names = append(names, m.Name, m.Addr, m.Zone)
	}
	for _, r := range s.Removals {
		names = append(names, r.Name)
	}
	for _, l := range s.Lost {
		names = append(names, l.Name)
	}
	for _, name := range names {
		if !utf8.ValidString(name) {
			return fmt.Errorf("%q is no UTF-8", name)
		}
	}
	return nil
}

// readRing reads a ring.json. If there is none the error is fs.ErrNotExist.
func readRing(path string) (f *ringFile, text []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	text, err = io.ReadAll(io.LimitReader(file, maxRing+1))
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", path, err)
	}
	f, err = parseRing(text)
	switch {
	case errdefs.IsFailedPrecondition(err):
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	case err != nil:
		return nil, nil, fmt.Errorf("%s is damaged: restore it, or move it away: to the others this member has a new disk then, "+
			"and reads their deletion logs before it serves: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return f, text, nil
}

// parseRing reads a ring.json. One that only a later release understands is errdefs.ErrFailedPrecondition.
func parseRing(b []byte) (*ringFile, error) {
	if len(b) > maxRing {
		return nil, fmt.Errorf("it has more than %d bytes", maxRing)
	}
	var e ringEnvelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, err
	}
	if e.Format > ringFormat {
		return nil, fmt.Errorf("it has format %d, and this release knows %d: a later release has written it, run that: %w",
			e.Format, ringFormat, errdefs.ErrFailedPrecondition)
	}
	if e.Format != ringFormat || e.CRC != ringCRC(e.Ring) {
		return nil, fmt.Errorf("format %d, crc %.20q where %s belongs", e.Format, e.CRC, ringCRC(e.Ring))
	}
	var t ringText
	if err := json.Unmarshal(e.Ring, &t); err != nil {
		return nil, err
	}
	return t.file()
}
