package ringstate

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
	"github.com/capelin-io/capelin/origind/record"
)

// Kind names an ask, and its answer, in URLs (control/ORIGIN.md section 9).
type Kind string

const (
	KindStatus  Kind = "status"  // Probe, *Status
	KindLog     Kind = "log"     // ReadLog, *LogPage
	KindDeleted Kind = "deleted" // Deleted, *Took
	KindReplica Kind = "replica" // *Replica, *Replied
	KindConsult Kind = "consult" // *Consult, *Consulted
	KindHave    Kind = "have"    // Have, Has
	KindCompare Kind = "compare" // Compare, *Compared
)

// Limits of asks and answers, in bytes of JSON: a record of record.MaxRecord fits in both.
const (
	MaxAsk    = record.MaxRecord + 256<<10
	MaxAnswer = 8 << 20
)

// Limits of what is in them, beside those of compare, of records and LogPageMax.
const (
	maxSources = 64
	maxLost    = 1024 // disks
	// maxBackends is how many storages a member may tell of.
	maxBackends = 64
	maxCopies   = 255 // of replicas and min_replicas
	// maxOrder leaves room to count on from what another member says.
	maxOrder Order = 1 << 62
)

// Known reports whether there is such an ask.
func (k Kind) Known() bool {
	switch k {
	case KindStatus, KindLog, KindDeleted, KindReplica, KindConsult, KindHave, KindCompare:
		return true
	}
	return false
}

// KindOf returns the kind of an ask; "" of none of this package's.
func KindOf(a Ask) Kind {
	switch a.(type) {
	case Probe:
		return KindStatus
	case ReadLog:
		return KindLog
	case Deleted:
		return KindDeleted
	case *Replica:
		return KindReplica
	case *Consult:
		return KindConsult
	case Have:
		return KindHave
	case Compare:
		return KindCompare
	}
	return ""
}

// EncodeAsk returns an ask as JSON. An error is of what DecodeAsk would refuse.
func EncodeAsk(a Ask) ([]byte, error) {
	k := KindOf(a)
	var t any
	var err error
	switch a := a.(type) {
	case Probe:
		t = struct{}{}
	case ReadLog:
		t = textReadLog(a)
	case Deleted:
		t, err = deletedText(a)
	case *Replica:
		t, err = replicaText(a)
	case *Consult:
		t, err = consultText(a)
	case Have:
		t, err = textHave(a), origin.CheckDigest(a.Digest)
	case Compare:
		t, err = compareText(a)
	default:
		err = fmt.Errorf("%T is none", a)
	}
	return encoded("ask", k, t, err, MaxAsk)
}

// DecodeAsk reads an ask. What is wrong with it is errdefs.ErrInvalidArgument; fields that are not known are
// ignored, but for those of records.
func DecodeAsk(k Kind, b []byte) (Ask, error) {
	var a Ask
	err := sizes(b, MaxAsk)
	if err != nil {
		return nil, wrong("ask", k, err)
	}
	switch k {
	case KindStatus:
		a, err = decode(b, func(struct{}) (Probe, error) { return Probe{}, nil })
	case KindLog:
		a, err = decode(b, func(t textReadLog) (ReadLog, error) { return ReadLog(t), nil })
	case KindDeleted:
		a, err = decode(b, textDeleted.value)
	case KindReplica:
		a, err = decode(b, textReplica.value)
	case KindConsult:
		a, err = decode(b, textConsult.value)
	case KindHave:
		a, err = decode(b, func(t textHave) (Have, error) { return Have(t), origin.CheckDigest(t.Digest) })
	case KindCompare:
		a, err = decode(b, textCompare.value)
	default:
		err = errors.New("no such ask")
	}
	if err != nil {
		return nil, wrong("ask", k, err)
	}
	return a, nil
}

// EncodeAnswer returns an answer as JSON. An error is of what DecodeAnswer would refuse.
func EncodeAnswer(a Answer) ([]byte, error) {
	switch a := a.(type) {
	case *Status:
		t, err := statusText(a)
		return encoded("answer", KindStatus, t, err, MaxAnswer)
	case *LogPage:
		t, err := logPageText(a)
		return encoded("answer", KindLog, t, err, MaxAnswer)
	case *Took:
		t, err := tookText(a)
		return encoded("answer", KindDeleted, t, err, MaxAnswer)
	case *Replied:
		t, err := repliedText(a)
		return encoded("answer", KindReplica, t, err, MaxAnswer)
	case *Consulted:
		t, err := consultedText(a)
		return encoded("answer", KindConsult, t, err, MaxAnswer)
	case Has:
		return encoded("answer", KindHave, hasText(a), nil, MaxAnswer)
	case *Compared:
		t, err := comparedText(a)
		return encoded("answer", KindCompare, t, err, MaxAnswer)
	}
	return encoded("answer", "", nil, fmt.Errorf("%T is none", a), 0)
}

// DecodeAnswer reads the answer to an ask of a kind, as DecodeAsk does. Whether it is about the blob that was asked
// for is found out by whoever asked.
func DecodeAnswer(k Kind, b []byte) (Answer, error) {
	var a Answer
	err := sizes(b, MaxAnswer)
	if err != nil {
		return nil, wrong("answer", k, err)
	}
	switch k {
	case KindStatus:
		a, err = decode(b, textStatus.value)
	case KindLog:
		a, err = decode(b, textLogPage.value)
	case KindDeleted:
		a, err = decode(b, textTook.value)
	case KindReplica:
		a, err = decode(b, textReplied.value)
	case KindConsult:
		a, err = decode(b, textConsulted.value)
	case KindHave:
		a, err = decode(b, textHas.value)
	case KindCompare:
		a, err = decode(b, textCompared.value)
	default:
		err = errors.New("no such ask")
	}
	if err != nil {
		return nil, wrong("answer", k, err)
	}
	return a, nil
}

func encoded(what string, k Kind, t any, err error, most int) ([]byte, error) {
	var b bytes.Buffer
	if err == nil {
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false) // records are as they are
		err = enc.Encode(t)
	}
	if err == nil && b.Len() > most {
		err = fmt.Errorf("%d bytes are more than %d", b.Len(), most)
	}
	if err != nil {
		return nil, wrong(what, k, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func wrong(what string, k Kind, err error) error {
	return fmt.Errorf("%s %s of a ring: %w: %w", what, shorten(string(k)), err, errdefs.ErrInvalidArgument)
}

func sizes(b []byte, most int) error {
	if len(b) > most {
		return fmt.Errorf("%d bytes are more than %d", len(b), most)
	}
	if !utf8.Valid(b) {
		return errors.New("it is no UTF-8")
	}
	return nil
}

func decode[T, V any](b []byte, value func(T) (V, error)) (v V, err error) {
	var t T
	if err := json.Unmarshal(b, &t); err != nil {
		return v, err
	}
	return value(t)
}

// limit is how long a list may be. It is a type so that a list knows before it is read.
type limit interface{ most() int }

type (
	perPage    struct{}
	perMember  struct{}
	perSources struct{}
	perLost    struct{}
	perHomes   struct{}
	perBuckets struct{}
	perSubs    struct{}
	perPlaces  struct{}
)

func (perPage) most() int    { return LogPageMax }
func (perMember) most() int  { return maxMembers }
func (perSources) most() int { return maxSources }
func (perLost) most() int    { return maxLost }
func (perHomes) most() int   { return record.MaxHomes }
func (perBuckets) most() int { return bucketsAtOnce }
func (perSubs) most() int    { return subsAtOnce }
func (perPlaces) most() int  { return maxBackends }

// list is a list in JSON, of at most so many elements.
type list[T any, L limit] []T

func (l list[T, L]) check() error {
	var most L
	if len(l) > most.most() {
		return fmt.Errorf("a list of more than %d", most.most())
	}
	return nil
}

// UnmarshalJSON reads a list, and no further than it may be long.
func (l *list[T, L]) UnmarshalJSON(b []byte) error {
	*l = nil
	dec := json.NewDecoder(bytes.NewReader(b))
	first, err := dec.Token()
	if err != nil || first == nil {
		return err
	}
	if first != json.Delim('[') {
		return fmt.Errorf("%v where a list belongs", first)
	}
	*l = list[T, L]{}
	for dec.More() {
		var v T
		if err := dec.Decode(&v); err != nil {
			return err
		}
		*l = append(*l, v)
		if err := l.check(); err != nil {
			return err
		}
	}
	return nil
}

// textRecord is a record as it is, or nothing.
type textRecord json.RawMessage

func recordText(r *record.Record) (textRecord, error) {
	if r == nil {
		return nil, nil
	}
	b, err := r.JSON()
	return b, err
}

func (t textRecord) MarshalJSON() ([]byte, error) {
	if t == nil {
		return []byte("null"), nil
	}
	return t, nil
}

func (t *textRecord) UnmarshalJSON(b []byte) error {
	*t = nil
	if string(b) != "null" {
		*t = bytes.Clone(b)
	}
	return nil
}

// of returns the record, which is to be of the blob d.
func (t textRecord) of(d digest.Digest) (*record.Record, error) {
	if t == nil {
		return nil, nil
	}
	return record.Parse(t, d)
}

// any returns the record, of any blob.
func (t textRecord) any() (*record.Record, error) {
	var of struct{ Digest digest.Digest }
	if t != nil {
		if err := json.Unmarshal(t, &of); err != nil {
			return nil, err
		}
	}
	return t.of(of.Digest)
}

func checkName(s string) error {
	if s == "" {
		return errors.New("no name")
	}
	return checkWords(s)
}

// checkWords checks a name, an address or a zone, which may be empty.
func checkWords(all ...string) error {
	for _, s := range all {
		if len(s) > record.MaxName || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return fmt.Errorf("%q is no name, address or zone", shorten(s))
		}
	}
	return nil
}

func checkNames(all []string) error {
	for _, s := range all {
		if err := checkName(s); err != nil {
			return err
		}
	}
	return nil
}

func checkOrders(all ...Order) error {
	for _, o := range all {
		if o > maxOrder {
			return fmt.Errorf("order %d", o)
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
