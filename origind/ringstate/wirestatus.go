package ringstate

import (
	"errors"
	"fmt"

	"github.com/capelin-io/capelin/origind/record"
)

// textStatus is a Status as JSON. Members say it to each other each second; people read it when something is wrong.
type textStatus struct {
	Name        string                       `json:"name"`
	Addr        string                       `json:"address"`
	Zone        string                       `json:"zone,omitempty"`
	Mode        textMode                     `json:"mode"`
	ModeAt      Order                        `json:"mode_at"`
	Starting    bool                         `json:"starting"`
	Full        bool                         `json:"full"`
	Replicas    int                          `json:"replicas"`
	MinReplicas int                          `json:"min_replicas"`
	Under       int                          `json:"under"`
	Exchanged   Order                        `json:"exchanged"`
	View        textView                     `json:"view"`
	Clock       record.Stamp                 `json:"clock"`
	Time        record.Stamp                 `json:"time,omitempty"`
	Order       Order                        `json:"order"`
	LogHead     uint64                       `json:"log_head"`
	Whole       textWhole                    `json:"whole"`
	Members     list[textMember, perMember]  `json:"members"`
	Removals    list[textRemoval, perMember] `json:"removals"`
	Lost        list[textLost, perLost]      `json:"lost"`
	Storages    list[textStorage, perPlaces] `json:"storages,omitempty"`
}

type textStorage struct {
	Backend string `json:"backend"`
	ID      string `json:"id"`
}

type textMember struct {
	Name        string   `json:"name"`
	Addr        string   `json:"address,omitempty"`
	Zone        string   `json:"zone,omitempty"`
	Incarnation uint64   `json:"incarnation"`
	Mode        textMode `json:"mode"`
	ModeAt      Order    `json:"mode_at"`
	Heard       bool     `json:"heard"`
	Gone        bool     `json:"gone"`
	Read        uint64   `json:"read"`
	ReadBy      uint64   `json:"read_by"`
}

type textRemoval struct {
	Name       string `json:"name"`
	Removed    Order  `json:"removed,omitempty"`
	Readmitted Order  `json:"readmitted,omitempty"`
	Forgotten  Order  `json:"forgotten,omitempty"`
}

type textLost struct {
	Name        string `json:"name"`
	Incarnation uint64 `json:"incarnation"`
	At          Order  `json:"at"`
	Drained     bool   `json:"drained,omitempty"`
}

type textWhole struct {
	At  Order `json:"at"`
	Min int   `json:"min_replicas"`
}

func statusText(s *Status) (textStatus, error) {
	t := textStatus{
		Name: s.Name, Addr: s.Addr, Zone: s.Zone, Mode: textMode(s.Mode), ModeAt: s.ModeAt, Starting: s.Starting, Full: s.Full,
		Replicas: s.Replicas, MinReplicas: s.MinReplicas, Under: s.Under, Exchanged: s.Exchanged, View: textView(s.View),
		Clock: s.Clock, Time: s.Time, Order: s.Order, LogHead: s.LogHead, Whole: textWhole(s.Whole),
		Members: list[textMember, perMember]{}, Removals: list[textRemoval, perMember]{}, Lost: list[textLost, perLost]{},
	}
	for _, m := range s.Members {
		t.Members = append(t.Members, textMember{
			m.Name, m.Addr, m.Zone, m.Incarnation, textMode(m.Mode), m.ModeAt, m.Heard, m.Gone, m.Read, m.ReadBy,
		})
	}
	for _, r := range s.Removals {
		t.Removals = append(t.Removals, textRemoval(r))
	}
	for _, l := range s.Lost {
		t.Lost = append(t.Lost, textLost(l))
	}
	for _, b := range s.Storages {
		t.Storages = append(t.Storages, textStorage(b))
	}
	return t, t.check()
}

func (t textStatus) value() (*Status, error) {
	s := &Status{
		Name: t.Name, Addr: t.Addr, Zone: t.Zone, Mode: Mode(t.Mode), ModeAt: t.ModeAt, Starting: t.Starting, Full: t.Full,
		Replicas: t.Replicas, MinReplicas: t.MinReplicas, Under: t.Under, Exchanged: t.Exchanged, View: View(t.View),
		Clock: t.Clock, Time: t.Time, Order: t.Order, LogHead: t.LogHead, Whole: Whole(t.Whole),
	}
	for _, m := range t.Members {
		s.Members = append(s.Members, MemberView{
			m.Name, m.Addr, m.Zone, m.Incarnation, Mode(m.Mode), m.ModeAt, m.Heard, m.Gone, m.Read, m.ReadBy,
		})
	}
	for _, r := range t.Removals {
		s.Removals = append(s.Removals, Removal(r))
	}
	for _, l := range t.Lost {
		s.Lost = append(s.Lost, Lost(l))
	}
	for _, b := range t.Storages {
		s.Storages = append(s.Storages, Storage(b))
	}
	return s, t.check()
}

func (t *textStatus) check() error {
	errs := []error{
		checkName(t.Name), checkWords(t.Addr, t.Zone), checkOrders(t.ModeAt, t.Exchanged, t.Order, t.Whole.At),
		t.Members.check(), t.Removals.check(), t.Lost.check(), t.Storages.check(),
	}
	if t.Replicas < 1 || t.MinReplicas < 1 || t.Replicas > maxCopies || t.MinReplicas > maxCopies || t.Under < 0 ||
		t.Clock > record.MaxStamp || t.Time > record.MaxStamp || t.Whole.Min < 0 || t.Whole.Min > maxCopies ||
		(t.Whole.At == 0) != (t.Whole.Min == 0) {
		errs = append(errs, fmt.Errorf("replicas %d, min_replicas %d, under %d, clock %d, time %d, or whole: %+v", t.Replicas, t.MinReplicas,
			t.Under, t.Clock, t.Time, t.Whole))
	}
	for _, m := range t.Members {
		errs = append(errs, checkName(m.Name), checkWords(m.Addr, m.Zone), checkOrders(m.ModeAt))
	}
	for _, r := range t.Removals {
		errs = append(errs, checkName(r.Name), checkOrders(r.Removed, r.Readmitted, r.Forgotten))
	}
	for _, l := range t.Lost {
		errs = append(errs, checkName(l.Name), checkOrders(l.At))
	}
	for _, b := range t.Storages {
		errs = append(errs, checkName(b.Backend), checkName(b.ID))
	}
	return errors.Join(errs...)
}

// textMode is a Mode as a word.
type textMode Mode

func modes() []string {
	return []string{Joining.String(), Up.String(), Draining.String(), Drained.String()}
}

func (m textMode) MarshalText() ([]byte, error) { return toWord(modes(), int(m)) }

func (m *textMode) UnmarshalText(text []byte) error {
	n, err := fromWord(modes(), text)
	*m = textMode(n)
	return err
}
