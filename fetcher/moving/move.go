package moving

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/owned"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	// rounds is how often is waited until few objects of the journal are left.
	rounds = 20
	// batchBytes is after how many bytes it is remembered how far the copy is, however few objects that were.
	batchBytes = 1 << 30
	// maxSmall is more than an object has that is not named after its bytes, and maxSwap what is written by compare-and-swap at most.
	maxSmall    = 16 << 20
	maxSwap     = 1 << 20
	settleTries = 10
)

// Mover moves what is in a storage to another one.
type Mover struct {
	Kind     *Kind
	From, To fetcher.Backend
	// Again opens To once more, so that it can be proved to compare and swap through two clients; nil: it is not proved.
	Again func() (fetcher.Backend, error)
	// Gone are names of members that do not run any more, although they are registered.
	Gone []string
	// LeaveDamaged moves although there are blobs whose bytes are wrong in the old storage. These are not copied in any case.
	LeaveDamaged bool
	// Say, if not nil, is called now and then, from one goroutine.
	Say func(Progress)

	state  *state
	target *target
	done   Progress

	mu      sync.Mutex
	damaged map[string]bool // keys
}

// UntoldError is that some use the storage who are not told the next one.
type UntoldError struct {
	Kind    *Kind
	Storage string
	Members []Member
}

func (e *UntoldError) Error() string {
	names := make([]string, len(e.Members))
	for i, m := range e.Members {
		names[i] = fmt.Sprintf("%s (since %s)", m.Name, m.Started.Format("2006-01-02 15:04:05"))
	}
	return fmt.Sprintf("%s use %s that are not told the next storage: %s; configure it and restart them, or say that they are gone",
		e.Kind.users, e.Storage, strings.Join(names, ", "))
}

// Unwrap makes it an errdefs.ErrFailedPrecondition.
func (e *UntoldError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// Run moves all, or goes on with a move that was begun. It returns when the new storage is used. An error that is
// errdefs.ErrFailedPrecondition says what is to be done first; after any other one Run may be called again.
func (m *Mover) Run(ctx context.Context) (Progress, error) {
	if err := m.begin(ctx); err != nil {
		return m.done, err
	}
	steps := []func(context.Context) error{m.copy, m.verify, m.follow, m.finish}
	switch m.state.Phase {
	case closed: // all others are done, and writes wait
		steps = steps[3:]
	case moved:
		steps = nil
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return m.done, err
		}
	}
	if !m.target.Done {
		m.target.Done, m.target.After = true, ""
		if err := m.saveTarget(ctx); err != nil {
			return m.done, err
		}
	}
	m.say(moved)
	return m.done, nil
}

func (m *Mover) say(phase string) {
	m.done.Phase = phase
	if m.Say != nil {
		m.Say(m.done)
	}
}

// begin finds the move that is under way, or begins one.
func (m *Mover) begin(ctx context.Context) (err error) {
	m.damaged = map[string]bool{}
	for _, b := range []fetcher.Backend{m.From, m.To} {
		if !m.Kind.able(b.Capabilities()) {
			return fmt.Errorf("%s %w: %w", b.Name(), m.Kind.unable(), errdefs.ErrFailedPrecondition)
		}
		if err := b.Check(ctx); err != nil {
			return err
		}
	}
	if err := m.free(ctx); err != nil {
		return err
	}
	if m.state, err = m.Kind.readState(ctx, m.From); err != nil {
		return err
	}
	var version string
	if m.target, version, err = get[target](ctx, m.To, m.Kind.targetKey()); err != nil {
		return err
	}
	if m.target != nil {
		m.target.version = version
	}
	if m.state.Phase != none {
		if m.target == nil || m.target.ID != m.state.ID {
			return fmt.Errorf("the %s in %s moves to %s already, and that is not %s: %w",
				m.Kind.noun, m.From.Name(), m.state.To, m.To.Name(), errdefs.ErrFailedPrecondition)
		}
		if m.state.Phase == moved {
			return nil
		}
		return m.told(ctx)
	}
	if err := m.told(ctx); err != nil {
		return err
	}
	if err := m.prepare(ctx); err != nil {
		return err
	}
	next := state{Format: format, ID: m.target.ID, Phase: copying, Epoch: 1, To: m.To.Name()}
	if err := m.advance(ctx, next); err != nil {
		return err
	}
	if err := m.told(ctx); err != nil { // one that was started meanwhile
		next.Phase = none
		if back := m.advance(ctx, next); back != nil {
			err = fmt.Errorf("%w; %w", err, back)
		}
		return err
	}
	return nil
}

// free is an error if one of the storages has a part in another move.
func (m *Mover) free(ctx context.Context) error {
	t, _, err := get[target](ctx, m.From, m.Kind.targetKey())
	if err == nil && t != nil && !t.Done {
		err = fmt.Errorf("the %s in %s has not yet moved there from %s: %w", m.Kind.noun, m.From.Name(), t.From, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	to, err := m.Kind.readState(ctx, m.To)
	if err == nil && to.Phase != none {
		err = fmt.Errorf("the %s that was in %s has moved to %s: choose another storage, or remove all that is there below %s and %s/: %w",
			m.Kind.noun, m.To.Name(), to.To, strings.Join(m.Kind.prefixes, ", "), m.Kind.dir, errdefs.ErrFailedPrecondition)
	}
	return err
}

// told is an error if somebody uses the old storage who is not told a next one.
func (m *Mover) told(ctx context.Context) error {
	untold := &UntoldError{Kind: m.Kind, Storage: m.From.Name()}
	for info, err := range walk.All(ctx, m.From, m.Kind.memberPrefix(), "") {
		if err != nil {
			return err
		}
		member, _, err := get[Member](ctx, m.From, info.Key)
		switch {
		case err != nil:
			return err
		case member == nil || member.Next != "":
		case slices.Contains(m.Gone, member.Name):
			if err := m.From.Delete(ctx, info.Key); err != nil {
				return err
			}
		default:
			untold.Members = append(untold.Members, *member)
		}
	}
	if len(untold.Members) > 0 {
		slices.SortFunc(untold.Members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
		return untold
	}
	return nil
}

// prepare makes the new storage the target of a move that begins.
func (m *Mover) prepare(ctx context.Context) error {
	left := m.target != nil && !m.target.Done // of a move that was given up: nobody has ever used it
	for _, prefix := range m.Kind.prefixes {
		page, _, err := m.To.List(ctx, prefix, "", 1)
		if err != nil {
			return err
		}
		if len(page) > 0 && !left {
			return fmt.Errorf("%s has %s already (%s): choose an empty storage: %w",
				m.To.Name(), m.Kind.a(), page[0].Key, errdefs.ErrFailedPrecondition)
		}
	}
	if err := m.claim(ctx); err != nil {
		return err
	}
	if m.Again != nil {
		other, err := m.Again()
		if err != nil {
			return err
		}
		defer other.Close()
		if err := fetcher.Prove(ctx, m.To, other); err != nil {
			return err
		}
	}
	t := &target{Format: format, ID: rand.Text(), From: m.From.Name()}
	if m.target != nil {
		t.version = m.target.version
	}
	m.target = t
	return m.saveTarget(ctx)
}

// claim has the new storage belong to the cluster that has the old one. It has an id of its own.
func (m *Mover) claim(ctx context.Context) error {
	id, err := owned.Read(ctx, m.From)
	if err != nil || id == nil {
		return err
	}
	_, err = owned.Claim(ctx, m.To, id.Cluster)
	return err
}

func (m *Mover) saveTarget(ctx context.Context) error {
	version, err := swap(ctx, m.To, m.Kind.targetKey(), m.target, m.target.version)
	if err != nil {
		return m.crossed(err)
	}
	m.target.version = version
	return nil
}

// advance changes the state, if nobody else has.
func (m *Mover) advance(ctx context.Context, to state) error {
	version, err := swap(ctx, m.From, m.Kind.stateKey(), &to, m.state.version)
	if err != nil {
		return m.crossed(err)
	}
	to.version = version
	m.state = &to
	return nil
}

// crossed says what it means that something was written by another one.
func (m *Mover) crossed(err error) error {
	if errdefs.IsConflict(err) {
		return fmt.Errorf("somebody else moves the %s in %s, or has given it up: %w", m.Kind.noun, m.From.Name(), err)
	}
	return err
}

// mine is an error if somebody else goes on with the move, or it was given up.
func (m *Mover) mine(ctx context.Context) error {
	now, err := m.Kind.readState(ctx, m.From)
	if err != nil {
		return err
	}
	if !now.same(m.state) {
		return m.crossed(fmt.Errorf("the move is %q, epoch %d: %w", now.Phase, now.Epoch, errdefs.ErrConflict))
	}
	return nil
}

// copy copies what the new storage lacks. It goes on where it was.
func (m *Mover) copy(ctx context.Context) error {
	for _, prefix := range m.Kind.prefixes {
		if err := m.copyPrefix(ctx, prefix); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mover) copyPrefix(ctx context.Context, prefix string) error {
	for {
		page, more, err := m.From.List(ctx, prefix, m.target.After, m.Kind.batch)
		if err != nil {
			return err
		}
		if err := m.mine(ctx); err != nil {
			return err
		}
		var keys []string
		for sum := int64(0); len(keys) < len(page) && sum < batchBytes; {
			info := page[len(keys)]
			keys, sum = append(keys, info.Key), sum+info.Size
		}
		out, err := m.settleAll(ctx, keys)
		m.done.Objects += int64(len(keys))
		m.done.Copied += out.changed
		m.done.Bytes += out.bytes
		m.done.Verified += out.verified
		if len(keys) > 0 {
			m.done.At = keys[len(keys)-1]
		}
		m.say(copying)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			m.target.After = m.done.At
			if err := m.saveTarget(ctx); err != nil {
				return err
			}
		}
		if !more && len(keys) == len(page) || len(page) == 0 {
			return nil
		}
	}
}

// verify compares both storages, until they are the same. What is named after its bytes was read from the new one
// when it was copied; all else is read from both.
func (m *Mover) verify(ctx context.Context) error {
	batch := make([]string, 0, m.Kind.batch)
	m.done.At = ""
	flush := func() error {
		out, err := m.settleAll(ctx, batch)
		m.done.Verified += int64(len(batch))
		m.done.Mended += out.changed
		m.say("verifying")
		batch = batch[:0]
		if err != nil {
			return err
		}
		return m.mine(ctx)
	}
	for _, prefix := range m.Kind.prefixes {
		for p, err := range walk.Both(ctx, m.From, m.To, prefix, "") {
			if err != nil {
				return err
			}
			if m.Kind.named(p.Key) != "" && p.A != nil && p.B != nil && p.A.Size == p.B.Size {
				continue
			}
			if batch = append(batch, p.Key); len(batch) == m.Kind.batch {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return m.sound()
}

// sound is an error if blobs are damaged, and that is not accepted.
func (m *Mover) sound() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done.Damaged = slices.Sorted(maps.Keys(m.damaged))
	if len(m.damaged) == 0 || m.LeaveDamaged {
		return nil
	}
	return &DamagedError{m.From.Name(), m.done.Damaged}
}

// follow copies what was changed meanwhile, until little is left.
func (m *Mover) follow(ctx context.Context) error {
	// An epoch of which a run before this one has copied only a part is among them.
	for range rounds {
		next := *m.state
		next.Epoch++
		if err := m.advance(ctx, next); err != nil {
			return err
		}
		n, err := m.journal(ctx)
		if err != nil {
			return err
		}
		m.done.Followed += n
		m.say("following")
		if n <= int64(m.Kind.few) {
			return nil
		}
	}
	return nil
}

// finish has writes wait, copies what is left, and has the new storage be used.
func (m *Mover) finish(ctx context.Context) error {
	next := *m.state
	next.Phase = closed
	next.Epoch++
	if m.state.Phase != closed {
		if err := m.advance(ctx, next); err != nil {
			return err
		}
	}
	n, err := m.journal(ctx)
	if err != nil {
		return err
	}
	m.done.Waited += n
	m.say(closed)
	if err := m.sound(); err != nil { // what was pushed meanwhile
		next.Phase = copying
		next.Epoch++
		return errors.Join(err, m.advance(ctx, next))
	}
	next = *m.state
	next.Phase = moved
	return m.advance(ctx, next)
}

// journal copies what is in the journal of all epochs before the present one, and empties it. It returns how many objects that were.
func (m *Mover) journal(ctx context.Context) (n int64, err error) {
	all := m.Kind.journalPrefix() + "/" + m.state.ID + "/"
	end := m.Kind.journal(m.state, m.state.Epoch)
	var entries, keys []string
	flush := func() error {
		if _, err := m.settleAll(ctx, keys); err != nil {
			return err
		}
		n += int64(len(keys))
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(m.Kind.parallel)
		for _, e := range entries {
			g.Go(func() error { return m.From.Delete(ctx, e) })
		}
		entries, keys = entries[:0], keys[:0]
		return g.Wait()
	}
	for info, err := range walk.All(ctx, m.From, all, "") {
		if err != nil {
			return n, err
		}
		if info.Key >= end {
			break
		}
		_, key, ok := strings.Cut(strings.TrimPrefix(info.Key, all), "/")
		if !ok || !m.Kind.moves(key) {
			return n, fmt.Errorf("%s: unknown object %q: %w", m.From.Name(), info.Key, errdefs.ErrDataLoss)
		}
		entries, keys = append(entries, info.Key), append(keys, key)
		if len(keys) == m.Kind.batch {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	return n, flush()
}

// GiveUp ends a move: all stays where it is. errdefs.ErrFailedPrecondition if it has moved.
func (k *Kind) GiveUp(ctx context.Context, from fetcher.Backend) error {
	st, err := k.readState(ctx, from)
	if err != nil {
		return err
	}
	switch st.Phase {
	case none:
		return fmt.Errorf("the %s in %s does not move: %w", k.noun, from.Name(), errdefs.ErrFailedPrecondition)
	case moved:
		return fmt.Errorf("the %s in %s has moved to %s: move it back from there to an empty storage: %w",
			k.noun, from.Name(), st.To, errdefs.ErrFailedPrecondition)
	}
	next := *st
	next.Phase = none
	if _, err := swap(ctx, from, k.stateKey(), &next, st.version); err != nil {
		return err
	}
	for info, err := range walk.All(ctx, from, k.journalPrefix()+"/"+st.ID+"/", "") {
		if err != nil {
			return err
		}
		if err := from.Delete(ctx, info.Key); err != nil {
			return err
		}
	}
	return nil
}
