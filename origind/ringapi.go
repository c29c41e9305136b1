package origind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// Limits of what members ask each other (control/ORIGIN.md section 9). They are not among maxRequests: a member that
// has much to do is not down.
const (
	maxAsks = 1024             // at once
	askWait = 10 * time.Second // for the answer; who asks waits less
)

// Who may do what with the ring.
var (
	members   = []identity.Role{identity.RoleOrigin}
	operators = []identity.Role{identity.RoleAdmin}
)

// ringMember is this origin as a member of its ring. Errors are errdefs classes; what is refused because too
// few owners would remain is errdefs.ErrConflict. It may be used by any goroutine.
type ringMember interface {
	// asked returns the answer to another member's ask. It waits for it, or until ctx ends.
	asked(ctx context.Context, from origin.Asker, ask ringstate.Ask) (ringstate.Answer, error)
	incarnation() uint64
	status(ctx context.Context) (*origin.RingStatus, error)
	drain(ctx context.Context, on bool) error
	operate(ctx context.Context, name string, do ringstate.MemberDo) error
}

// ringAPI serves what is below origin.PathRing.
type ringAPI struct {
	*api
	name  string // of this member
	ring  ringMember
	slots chan struct{} // holds a token per request
}

// ringHandler returns the part of the API that is about the ring: for origin.PathRing and all below it.
func (a *api) ringHandler(name string, m ringMember) http.Handler {
	g := &ringAPI{a, name, m, make(chan struct{}, maxAsks)}
	mux := http.NewServeMux()
	handle := func(pattern string, roles []identity.Role, f func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, g.wrap(roles, f))
	}
	handle("GET "+origin.PathRing, readers, g.getStatus)
	handle("POST "+origin.PathRing+"/{kind}", members, g.ask)
	handle("PUT "+origin.PathRing+"/drain", operators, g.putDrain)
	handle("DELETE "+origin.PathRing+"/drain", operators, g.putDrain)
	handle("PUT "+origin.PathRing+"/members/{name}/{do}", operators, g.putMember)
	handle("/", nil, func(_ http.ResponseWriter, r *http.Request) error {
		return fmt.Errorf("%s is nothing that a ring is asked: %w", strconv.Quote(shorten(r.Method+" "+r.URL.Path)), errdefs.ErrNotImplemented)
	})
	return mux
}

// wrap is api.wrap for small requests and answers.
func (g *ringAPI) wrap(roles []identity.Role, f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return g.within(g.slots, "asks", func(w http.ResponseWriter, r *http.Request) error {
		err := g.allow(r, roles)
		if err == nil {
			err = bounded(w, time.Now().Add(moveTimeout))
		}
		if err != nil {
			return err
		}
		return f(w, r)
	})
}

// bounded sets until when a request has to have arrived, and its answer to have been sent.
func bounded(w http.ResponseWriter, t time.Time) error {
	rc := http.NewResponseController(w)
	err := errors.Join(rc.SetReadDeadline(t), rc.SetWriteDeadline(t.Add(askWait)))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

func (g *ringAPI) getStatus(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), askWait)
	defer cancel()
	st, err := g.ring.status(ctx)
	if err != nil {
		return err
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	answerJSON(w, b)
	return nil
}

// answerJSON sends an answer; an error would be the connection's.
func answerJSON(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}

// maxAddress is how many bytes an address has: a name of the DNS and a port.
const maxAddress = 255 + len(":65535")

// asker returns which member makes a request.
func (g *ringAPI) asker(r *http.Request) (origin.Asker, error) {
	name := r.Header.Get(origin.HeaderMember)
	if err := origin.CheckMember(name); err != nil {
		return origin.Asker{}, fmt.Errorf("%s: %w", origin.HeaderMember, err)
	}
	if g.s.identity != nil {
		if err := identity.VerifyNode(*r.TLS, name, identity.RoleOrigin); err != nil {
			return origin.Asker{}, fmt.Errorf("%q asks: %w: %w", shorten(name), err, errdefs.ErrPermissionDenied)
		}
	}
	if name == g.name {
		return origin.Asker{}, fmt.Errorf("another member asks as %q, which is this one: give each origin a name of its own (node): %w", name,
			errdefs.ErrPermissionDenied)
	}
	text := r.Header.Get(origin.HeaderIncarnation)
	incarnation, err := strconv.ParseUint(text, 10, 64)
	if err != nil || incarnation == 0 {
		return origin.Asker{}, fmt.Errorf("%s is %q: %w", origin.HeaderIncarnation, shorten(text), errdefs.ErrInvalidArgument)
	}
	address := r.Header.Get(origin.HeaderAddress)
	if len(address) > maxAddress {
		return origin.Asker{}, fmt.Errorf("%s has %d bytes: %w", origin.HeaderAddress, len(address), errdefs.ErrInvalidArgument)
	}
	return origin.Asker{Name: name, Incarnation: incarnation, Address: address}, nil
}

// ask answers another member.
func (g *ringAPI) ask(w http.ResponseWriter, r *http.Request) error {
	// Errors say who this is, too.
	w.Header().Set(origin.HeaderMember, g.name)
	w.Header().Set(origin.HeaderIncarnation, strconv.FormatUint(g.ring.incarnation(), 10))
	kind := ringstate.Kind(r.PathValue("kind"))
	if !kind.Known() {
		return fmt.Errorf("members are not asked for %q here: %w", shorten(string(kind)), errdefs.ErrNotImplemented)
	}
	if _, err := query(r); err != nil {
		return err
	}
	from, err := g.asker(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, ringstate.MaxAsk))
	if err != nil {
		return fmt.Errorf("reading what %s asks: %w: %w", from.Name, err, errdefs.ErrInvalidArgument)
	}
	q, err := ringstate.DecodeAsk(kind, body)
	if err != nil {
		return fmt.Errorf("from %s: %w", from.Name, err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), askWait)
	defer cancel()
	a, err := g.ring.asked(ctx, from, q)
	if err != nil {
		return err
	}
	b, err := ringstate.EncodeAnswer(a)
	if err != nil { // of this member's own making
		return fmt.Errorf("%s asks for %s: %s: %w", from.Name, kind, err.Error(), errdefs.ErrInternal)
	}
	answerJSON(w, b)
	return nil
}

// empty refuses a body and parameters.
func empty(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 1<<10)); err != nil || n > 0 {
		return fmt.Errorf("%s %s has no body: %w", r.Method, r.URL.Path, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (g *ringAPI) putDrain(w http.ResponseWriter, r *http.Request) error {
	if err := empty(w, r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), askWait)
	defer cancel()
	on := r.Method == http.MethodPut
	if err := g.ring.drain(ctx, on); err != nil {
		return err
	}
	log.G(r.Context()).WithField("drain", on).Info("an operator has this member leave the ring, or stay")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (g *ringAPI) putMember(w http.ResponseWriter, r *http.Request) error {
	if err := empty(w, r); err != nil {
		return err
	}
	name, what := r.PathValue("name"), origin.RingDo(r.PathValue("do"))
	if err := origin.CheckMember(name); err != nil {
		return err
	}
	var do ringstate.MemberDo
	switch what {
	case origin.RingRemove:
		do = ringstate.Remove
	case origin.RingForget:
		do = ringstate.Forget
	case origin.RingReadmit:
		do = ringstate.Readmit
	default:
		return fmt.Errorf("a member cannot be %q: %w", shorten(string(what)), errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(r.Context(), askWait)
	defer cancel()
	if err := g.ring.operate(ctx, name, do); err != nil {
		return err
	}
	log.G(r.Context()).WithField("member", name).WithField("is", what).Info("an operator said something of a member")
	w.WriteHeader(http.StatusNoContent)
	return nil
}
