package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/httpclient"
)

// RingStatus is what a member says of its ring (control/ORIGIN.md section 9).
type RingStatus struct {
	Name        string `json:"name"` // of the member that says so
	View        string `json:"view"` // in hexadecimal digits: the same at members that see the same ring
	Replicas    int    `json:"replicas"`
	MinReplicas int    `json:"min_replicas"`
	// Whole: each blob is proved to have its copies at all its owners. Why says why that is not so, a line for each
	// reason, which names who is to blame.
	Whole bool     `json:"whole"`
	Why   []string `json:"why,omitempty"`
	// Missed are members whose lost disks are not back, and nobody has said that they never will be.
	Missed  []string     `json:"missed,omitempty"`
	Members []RingMember `json:"members"` // those that were removed, too, by name
	Lost    []RingLost   `json:"lost,omitempty"`
	Blobs   int          `json:"blobs"` // that it has pinned
	Under   int          `json:"under"` // those of them that it does not know to be at all their owners
	Repair  RingRepair   `json:"repair"`
	// Backends are those of this member that have been asked whether they can be used, by name.
	Backends []RingBackend `json:"backends,omitempty"`
	// Disks are those of this member, if it has several, as they are configured.
	Disks []RingDisk `json:"disks,omitempty"`
}

// RingDisk says how one of a member's disks is.
type RingDisk struct {
	Path  string     `json:"path"`
	Up    bool       `json:"up"`              // it is used
	Since *time.Time `json:"since,omitempty"` // when it failed
	Error string     `json:"error,omitempty"` // why, in a line
	Blobs int        `json:"blobs,omitempty"` // whole ones that are there
	Free  int64      `json:"free,omitempty"`  // bytes
}

// RingBackend says whether a member can use a backend.
type RingBackend struct {
	Name  string    `json:"name"`
	Up    bool      `json:"up"`
	Since time.Time `json:"since"`           // it is so, as far as this member knows
	Error string    `json:"error,omitempty"` // what is wrong now, in a line
	// Storage is the id of the storage behind it, if it is known, and Differs are members that have another storage behind the backend of
	// that name.
	Storage string   `json:"storage,omitempty"`
	Differs []string `json:"differs,omitempty"`
}

// RingState says how a member is.
type RingState string

const (
	RingUp       RingState = "up"
	RingStarting RingState = "starting" // not long ago; it waits for the others, and for what was deleted
	RingJoining  RingState = "joining"  // new, or its disk is
	RingDown     RingState = "down"     // no sign of life lately
	RingGone     RingState = "gone"     // the same for long: it owns nothing any more
	RingDraining RingState = "draining" // it leaves, and has what others still lack
	RingDrained  RingState = "drained"  // nothing that it has is needed
	RingRemoved  RingState = "removed"  // by an operator
)

// RingMember is what a member says of another one, or of itself.
type RingMember struct {
	Name    string    `json:"name"`
	Address string    `json:"address,omitempty"` // "": it was never heard of
	Zone    string    `json:"zone,omitempty"`
	State   RingState `json:"state"`
	// Since is when it was last heard of, of one that is down or gone. nil: that is not known.
	Since *time.Time `json:"since,omitempty"`
	Full  bool       `json:"full,omitempty"`  // it takes no pushes
	Under *int       `json:"under,omitempty"` // RingStatus.Under of it, as it last said; nil: it does not say
	// Skew is how many milliseconds its clock is ahead of that of the member that says so, or behind (negative); 0: 5 s at most,
	// or not known.
	Skew int64 `json:"skew,omitempty"`
}

// RingLost is a disk that was in the ring, and is not any more.
type RingLost struct {
	Name        string `json:"name"`
	Incarnation uint64 `json:"incarnation"`
	Drained     bool   `json:"drained,omitempty"` // nothing on it was needed
}

// RingRepair is what a member is doing so that there are enough copies.
type RingRepair struct {
	Blobs int   `json:"blobs"`           // that are still to be given to others, or taken
	Bytes int64 `json:"bytes,omitempty"` // of them; 0: not known
	Rate  int64 `json:"rate,omitempty"`  // bytes a second, lately; 0: none, or not known
}

// RingDo is what an operator says of a member.
type RingDo string

const (
	RingRemove  RingDo = "removed"    // it is no member any more
	RingForget  RingDo = "forgotten"  // the same; and nobody waits for what only its lost disks had
	RingReadmit RingDo = "readmitted" // it may be one again
)

// maxRingStatus is how many bytes a RingStatus has at most.
const maxRingStatus = 1 << 20

// Asker is a member of a ring that asks another one.
type Asker struct {
	Name        string
	Incarnation uint64 // of its disk
	Address     string // where others reach it; "": it does not say
}

// Ring asks a member of a ring. from is whoever asks; inc and name are the member's, also with an
// error, as far as it has said them. Whoever asks sees to it that the answer is of whom it meant. The answer has at
// most maxAnswer bytes. Nothing is asked twice, and it takes as long as ctx lasts.
func (m *Member) Ring(
	ctx context.Context, from Asker, kind string, ask []byte, maxAnswer int64,
) (inc uint64, name string, answer []byte, err error) {
	r := &httpclient.Request{
		Method: "POST", Path: PathRing + "/" + url.PathEscape(kind), Body: bytes.NewReader(ask),
		Header: http.Header{
			"Content-Type": {"application/json"}, HeaderMember: {from.Name}, HeaderIncarnation: {strconv.FormatUint(from.Incarnation, 10)},
		},
	}
	if from.Address != "" {
		r.Header.Set(HeaderAddress, from.Address)
	}
	resp, err := m.c.send(ctx, m.o, r)
	if resp == nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	inc, name, nerr := m.speaker(r, resp)
	if err != nil {
		return inc, name, nil, err
	}
	if nerr != nil {
		return 0, "", nil, nerr
	}
	answer, err = m.body(r, resp, maxAnswer)
	return inc, name, answer, err
}

// speaker returns who answers.
func (m *Member) speaker(r *httpclient.Request, resp *http.Response) (inc uint64, name string, err error) {
	h := resp.Header
	inc, err = strconv.ParseUint(h.Get(HeaderIncarnation), 10, 64)
	name = h.Get(HeaderMember)
	if err != nil || inc == 0 || name == "" {
		text := fmt.Sprintf("%s is %q, %s is %q", HeaderMember, shorten(name), HeaderIncarnation, shorten(h.Get(HeaderIncarnation)))
		return 0, "", m.c.http.Stranger(m.o, r, text)
	}
	if resp.TLS != nil {
		if err := identity.VerifyNode(*resp.TLS, name, identity.RoleOrigin); err != nil {
			return 0, "", m.c.http.Stranger(m.o, r, fmt.Sprintf("it says that it is %s: %v", shorten(name), err))
		}
	}
	return inc, name, nil
}

// body reads an answer's body.
func (m *Member) body(r *httpclient.Request, resp *http.Response, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, m.c.http.Stranger(m.o, r, fmt.Sprintf("it answers with more than %d bytes", most))
	}
	if err != nil {
		return nil, fmt.Errorf("origin %s: %s %s: %w: %w", m.o.Base, r.Method, r.Path, err, errdefs.ErrUnavailable)
	}
	return b, nil
}

// RingStatus returns what the member says of its ring. errdefs.ErrNotImplemented: it is of a release that knows none.
func (m *Member) RingStatus(ctx context.Context) (*RingStatus, error) {
	r := &httpclient.Request{Method: "GET", Path: PathRing}
	resp, err := m.c.send(ctx, m.o, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := m.body(r, resp, maxRingStatus)
	if err != nil {
		return nil, err
	}
	st := new(RingStatus)
	if err := json.Unmarshal(b, st); err != nil {
		return nil, m.c.http.Stranger(m.o, r, fmt.Sprintf("status of a ring: %v", err))
	}
	return st, nil
}

// Drain has the member leave its ring, or stay after all. It returns at once; the member's state says how far it is.
// errdefs.ErrConflict: too few owners would remain.
func (m *Member) Drain(ctx context.Context, on bool) error {
	method := "DELETE"
	if on {
		method = "PUT"
	}
	return m.operate(ctx, method, PathRing+"/drain")
}

// Operate says something of a member of the ring, which all others hear of. errdefs.ErrConflict: too few owners would remain.
func (m *Member) Operate(ctx context.Context, name string, do RingDo) error {
	if err := CheckMember(name); err != nil {
		return err
	}
	return m.operate(ctx, "PUT", PathRing+"/members/"+url.PathEscape(name)+"/"+string(do))
}

func (m *Member) operate(ctx context.Context, method, path string) error {
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := m.c.send(ctx, m.o, &httpclient.Request{Method: method, Path: path})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Text is a state as people read it: for how long, and whether it is full.
func (m *RingMember) Text(now time.Time) string {
	s := string(m.State)
	if m.Since != nil && (m.State == RingDown || m.State == RingGone) {
		s += " for " + now.Sub(*m.Since).Round(time.Second).String()
	}
	if m.Full {
		s += ", full"
	}
	return s
}

// Stuck reports whether so many disks are missed that they may have had the only copies of something. Time does not
// help then: they have to come back, or be forgotten.
func (s *RingStatus) Stuck() bool {
	n := 0
	for _, l := range s.Lost {
		if !l.Drained && slices.Contains(s.Missed, l.Name) {
			n++
		}
	}
	return !s.Whole && n > 0 && n >= s.MinReplicas
}

// Member returns what the status says of a member; nil: nothing.
func (s *RingStatus) Member(name string) *RingMember {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i]
		}
	}
	return nil
}

// CheckMember reports what is wrong with a member's name, as errdefs.ErrInvalidArgument.
func CheckMember(name string) error {
	if len(name) > MaxMember || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || strings.TrimSpace(name) != name ||
		name == "" || name == "." || name == ".." {
		return fmt.Errorf("%q is not the name of a member: %w", shorten(name), errdefs.ErrInvalidArgument)
	}
	return nil
}
