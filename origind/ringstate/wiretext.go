package ringstate

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/origind/record"
)

// Asks and answers but for Status as JSON: control/ORIGIN.md section 9 says what the fields mean.

type textReadLog struct {
	After uint64 `json:"after"`
}

type textEntry struct {
	Digest    digest.Digest `json:"digest"`
	Namespace string        `json:"namespace,omitempty"`
	Stamp     record.Stamp  `json:"stamp"`
}

type textLogPage struct {
	First   uint64                   `json:"first"`
	Next    uint64                   `json:"next"`
	Entries list[textEntry, perPage] `json:"entries"`
}

func logPageText(p *LogPage) (textLogPage, error) {
	t := textLogPage{p.First, p.Next, list[textEntry, perPage]{}}
	for _, e := range p.Entries {
		t.Entries = append(t.Entries, textEntry(e))
	}
	_, err := t.value()
	return t, err
}

func (t textLogPage) value() (*LogPage, error) {
	p := &LogPage{First: t.First, Next: t.Next}
	for _, e := range t.Entries {
		d := record.Deletion(e)
		if err := d.Check(); err != nil {
			return nil, err
		}
		p.Entries = append(p.Entries, d)
	}
	n := uint64(len(t.Entries))
	if t.First == 0 || t.Next < t.First-1 || t.Next-(t.First-1) < n {
		return nil, fmt.Errorf("%d entries from %d on, and %d is where to go on", n, t.First, t.Next)
	}
	return p, t.Entries.check()
}

type textDeleted struct {
	textEntry
	Erase *record.Place `json:"erase,omitempty"`
}

func deletedText(d Deleted) (textDeleted, error) {
	t := textDeleted{textEntry: textEntry(d.Entry)}
	if d.Erase != (record.Place{}) {
		t.Erase = &d.Erase
	}
	_, err := t.value()
	return t, err
}

func (t textDeleted) value() (Deleted, error) {
	d := Deleted{Entry: record.Deletion(t.textEntry)}
	if err := d.Entry.Check(); err != nil {
		return d, err
	}
	if t.Erase == nil {
		return d, nil
	}
	d.Erase = *t.Erase
	return d, d.Erase.Check()
}

type textTook struct {
	Seq    uint64                  `json:"seq"`
	Record textRecord              `json:"record"`
	Heard  list[string, perMember] `json:"heard"`
}

func tookText(a *Took) (t textTook, err error) {
	if t.Record, err = recordText(a.Record); err != nil {
		return t, err
	}
	t.Seq, t.Heard = a.Seq, append(list[string, perMember]{}, a.Heard...)
	return t, errors.Join(t.check(), t.Heard.check())
}

// check refuses a number that no entry has, as of an answer that says nothing.
func (t textTook) check() error {
	if t.Seq == 0 {
		return errors.New("seq is 0")
	}
	return checkNames(t.Heard)
}

func (t textTook) value() (*Took, error) {
	rec, err := t.Record.any()
	if err != nil {
		return nil, err
	}
	return &Took{Seq: t.Seq, Record: rec, Heard: t.Heard}, t.check()
}

type textReplica struct {
	Digest  digest.Digest            `json:"digest"`
	Record  textRecord               `json:"record"`
	View    textView                 `json:"view"`
	Sources list[string, perSources] `json:"sources"`
	Put     bool                     `json:"put,omitempty"`
	Urgent  bool                     `json:"urgent,omitempty"`
}

func replicaText(q *Replica) (textReplica, error) {
	rec, err := aboutText(q.Digest, q.Record)
	t := textReplica{q.Digest, rec, textView(q.View), append(list[string, perSources]{}, q.Sources...), q.Put, q.Urgent}
	return t, errors.Join(err, checkNames(t.Sources), t.Sources.check())
}

func (t textReplica) value() (*Replica, error) {
	rec, err := t.Record.about(t.Digest)
	if err != nil {
		return nil, err
	}
	return &Replica{t.Digest, rec, View(t.View), t.Sources, t.Put, t.Urgent}, checkNames(t.Sources)
}

// aboutText is recordText for an ask about a blob.
func aboutText(d digest.Digest, r *record.Record) (textRecord, error) {
	if r != nil && r.Digest != d {
		return nil, fmt.Errorf("the record of %s with an ask about %s", r.Digest, d)
	}
	if err := origin.CheckDigest(d); err != nil {
		return nil, err
	}
	return recordText(r)
}

func (t textRecord) about(d digest.Digest) (*record.Record, error) {
	if err := origin.CheckDigest(d); err != nil {
		return nil, err
	}
	return t.of(d)
}

type textReplied struct {
	Code   textCode   `json:"code"`
	Owner  bool       `json:"owner,omitempty"`
	Record textRecord `json:"record"`
}

func repliedText(a *Replied) (textReplied, error) {
	rec, err := recordText(a.Record)
	if err == nil && a.Code == CodePinned && a.Record == nil {
		err = errPinned
	}
	return textReplied{textCode(a.Code), a.Owner, rec}, err
}

var errPinned = errors.New("it is pinned, and there is no record")

func (t textReplied) value() (*Replied, error) {
	rec, err := t.Record.any()
	if err == nil && Code(t.Code) == CodePinned && rec == nil {
		err = errPinned
	}
	return &Replied{Code(t.Code), t.Owner, rec}, err
}

type textConsult struct {
	Digest digest.Digest `json:"digest"`
	Record textRecord    `json:"record"`
}

func consultText(q *Consult) (textConsult, error) {
	rec, err := aboutText(q.Digest, q.Record)
	return textConsult{q.Digest, rec}, err
}

func (t textConsult) value() (*Consult, error) {
	rec, err := t.Record.about(t.Digest)
	return &Consult{t.Digest, rec}, err
}

type textConsulted struct {
	Record  textRecord                   `json:"record"`
	Pending list[record.Place, perHomes] `json:"pending"`
	Erasing bool                         `json:"erasing,omitempty"`
}

func consultedText(a *Consulted) (t textConsulted, err error) {
	t.Record, err = recordText(a.Record)
	t.Pending, t.Erasing = append(list[record.Place, perHomes]{}, a.Pending...), a.Erasing
	return t, errors.Join(err, checkPlaces(t.Pending), t.Pending.check())
}

func (t textConsulted) value() (*Consulted, error) {
	rec, err := t.Record.any()
	if err == nil && t.Pending == nil {
		err = errors.New("pending is missing")
	}
	if err != nil {
		return nil, err
	}
	return &Consulted{rec, t.Pending, t.Erasing}, checkPlaces(t.Pending)
}

func checkPlaces(all []record.Place) error {
	for _, p := range all {
		if err := p.Check(); err != nil {
			return err
		}
	}
	return nil
}

type textHave struct {
	Digest digest.Digest `json:"digest"`
}

type textHas struct {
	Yes    *bool `json:"has"`
	Unsure bool  `json:"unsure,omitempty"`
}

func hasText(a Has) textHas { return textHas{&a.Yes, a.Unsure} }

// value refuses an answer that says nothing: it is no no.
func (t textHas) value() (Has, error) {
	if t.Yes == nil {
		return Has{}, errors.New("has is missing")
	}
	return Has{*t.Yes, t.Unsure}, nil
}

type textCompare struct {
	View    textView                 `json:"view"`
	Buckets list[uint16, perBuckets] `json:"buckets,omitzero"`
	Subs    list[uint16, perSubs]    `json:"subs,omitzero"`
}

func compareText(q Compare) (textCompare, error) {
	t := textCompare{View: textView(q.View), Subs: q.Subs}
	if q.Buckets != nil {
		t.Buckets = list[uint16, perBuckets]{}
	}
	for _, b := range q.Buckets {
		t.Buckets = append(t.Buckets, uint16(b))
	}
	_, err := t.value()
	return t, errors.Join(err, t.Buckets.check(), t.Subs.check())
}

func (t textCompare) value() (Compare, error) {
	q := Compare{View: View(t.View), Subs: t.Subs}
	if t.Buckets != nil && t.Subs != nil || t.Buckets != nil && len(t.Buckets) == 0 || t.Subs != nil && len(t.Subs) == 0 {
		return q, errors.New("it names no buckets, or both kinds of them")
	}
	for _, b := range t.Buckets {
		if b > 255 {
			return q, fmt.Errorf("bucket %d", b)
		}
		q.Buckets = append(q.Buckets, uint8(b))
	}
	return q, nil
}

type textCompared struct {
	OK    bool                     `json:"ok"`
	Sums  textSums                 `json:"sums,omitempty"`
	Items list[textItems, perSubs] `json:"items,omitempty"`
}

func comparedText(a *Compared) (textCompared, error) {
	t := textCompared{OK: a.OK, Sums: a.Sums}
	for _, items := range a.Items {
		t.Items = append(t.Items, items)
	}
	return t, errors.Join(t.Items.check(), checkSums(t.Sums))
}

func (t textCompared) value() (*Compared, error) {
	a := &Compared{OK: t.OK, Sums: t.Sums}
	for _, items := range t.Items {
		a.Items = append(a.Items, items)
	}
	return a, checkSums(t.Sums)
}

func checkSums(sums []Sum) error {
	if len(sums) > 256*bucketsAtOnce {
		return fmt.Errorf("%d sums", len(sums))
	}
	return nil
}

// textSums are sums in base64, one after the other: the XOR, and the count in 4 bytes.
type textSums []Sum

const sumLen = len(Item{}) + 4

func (s textSums) MarshalText() ([]byte, error) {
	b := make([]byte, 0, len(s)*sumLen)
	for _, sum := range s {
		b = binary.BigEndian.AppendUint32(append(b, sum.XOR[:]...), sum.N)
	}
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

func (s *textSums) UnmarshalText(text []byte) error {
	b, err := unbase64(text, sumLen)
	if err != nil {
		return err
	}
	*s = nil
	for ; len(b) > 0; b = b[sumLen:] {
		*s = append(*s, Sum{Item(b[:len(Item{})]), binary.BigEndian.Uint32(b[len(Item{}):])})
	}
	return nil
}

// textItems are items in base64, one after the other.
type textItems []Item

func (s textItems) MarshalText() ([]byte, error) {
	b := make([]byte, 0, len(s)*len(Item{}))
	for _, i := range s {
		b = append(b, i[:]...)
	}
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

func (s *textItems) UnmarshalText(text []byte) error {
	b, err := unbase64(text, len(Item{}))
	if err != nil {
		return err
	}
	*s = nil
	for ; len(b) > 0; b = b[len(Item{}):] {
		*s = append(*s, Item(b[:len(Item{})]))
	}
	return nil
}

func unbase64(text []byte, each int) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil || len(b)%each != 0 {
		return nil, fmt.Errorf("%d characters are no base64 of %d bytes each", len(text), each)
	}
	return b, nil
}

// textView is a view in hexadecimal digits.
type textView View

func (v textView) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, v[:]), nil }

func (v *textView) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(v)) {
		return fmt.Errorf("view %q", shorten(string(text)))
	}
	_, err := hex.Decode(v[:], text)
	return err
}

// textCode is a Code as a word.
type textCode Code

func codes() []string { return []string{"later", "pinned", "taking", "written", "removed", "full"} }

func (c textCode) MarshalText() ([]byte, error) { return toWord(codes(), int(c)) }

func (c *textCode) UnmarshalText(text []byte) error {
	n, err := fromWord(codes(), text)
	*c = textCode(n)
	return err
}

func toWord(words []string, n int) ([]byte, error) {
	if n >= len(words) {
		return nil, fmt.Errorf("%d is none of %q", n, words)
	}
	return []byte(words[n]), nil
}

func fromWord(words []string, text []byte) (int, error) {
	for n, w := range words {
		if w == string(text) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%q is none of %q", shorten(string(text)), words)
}
