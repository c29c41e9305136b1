package moving

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	parallel = 16
	// saveEach is after how many objects it is remembered how far the copy is.
	saveEach = 1000
	// few is how many objects of the journal may be left when writes begin to wait, and rounds how often that is waited for.
	few    = 200
	rounds = 20
	// maxIndexObject is more than an object of an index has, in bytes, and maxSwap what is written by compare-and-swap at most.
	maxIndexObject = 16 << 20
	maxSwap        = 1 << 20
	settleTries    = 10
)

// Mover moves the index of a storage to another one.
type Mover struct {
	From, To fetcher.Backend
	// Again opens To once more, so that it can be proved to compare and swap through two clients; nil: it is not proved.
	Again func() (fetcher.Backend, error)
	// Gone are names of members that do not run any more, although they are registered.
	Gone []string
	// Say, if not nil, is called now and then, from one goroutine.
	Say func(Progress)

	state  *state
	target *target
	done   Progress
}

// Progress is how far a move is.
type Progress struct {
	Phase    string `json:"phase"` // copying, verifying, following, closed, moved
	Objects  int64  `json:"objects"`
	Copied   int64  `json:"copied"`   // objects that the new storage did not have
	Bytes    int64  `json:"bytes"`    // that were copied
	Verified int64  `json:"verified"` // objects that were read from both and are the same
	Mended   int64  `json:"mended"`   // objects that verifying found to differ, because they were changed meanwhile or before a restart
	Followed int64  `json:"followed"` // objects that indexes changed meanwhile
	Waited   int64  `json:"waited"`   // objects that were copied while writes waited
}

// UntoldError is that indexes use the storage that are not told the next one.
type UntoldError struct {
	Storage string
	Members []Member
}

func (e *UntoldError) Error() string {
	names := make([]string, len(e.Members))
	for i, m := range e.Members {
		names[i] = fmt.Sprintf("%s (since %s)", m.Name, m.Started.Format("2006-01-02 15:04:05"))
	}
	return fmt.Sprintf("indexes use %s that are not told the next storage: %s; configure it and restart them, or say that they are gone",
		e.Storage, strings.Join(names, ", "))
}

// Unwrap makes it an errdefs.ErrFailedPrecondition.
func (e *UntoldError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// Run moves the index, or goes on with a move that was begun. It returns when the indexes use the new storage. An error that is
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
	for _, b := range []fetcher.Backend{m.From, m.To} {
		if c := b.Capabilities(); !c.Write || !c.List || !c.Delete || !c.CompareAndSwap {
			return fmt.Errorf("%s cannot keep an index: it must write, list, delete, compare and swap: %w", b.Name(), errdefs.ErrFailedPrecondition)
		}
		if err := b.Check(ctx); err != nil {
			return err
		}
	}
	if err := m.free(ctx); err != nil {
		return err
	}
	if m.state, err = readState(ctx, m.From); err != nil {
		return err
	}
	var version string
	if m.target, version, err = get[target](ctx, m.To, targetKey); err != nil {
		return err
	}
	if m.target != nil {
		m.target.version = version
	}
	if m.state.Phase != none {
		if m.target == nil || m.target.ID != m.state.ID {
			return fmt.Errorf("the index in %s moves to %s already, and that is not %s: %w",
				m.From.Name(), m.state.To, m.To.Name(), errdefs.ErrFailedPrecondition)
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
	t, _, err := get[target](ctx, m.From, targetKey)
	if err == nil && t != nil && !t.Done {
		err = fmt.Errorf("the index in %s has not yet moved there from %s: %w", m.From.Name(), t.From, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	to, err := readState(ctx, m.To)
	if err == nil && to.Phase != none {
		err = fmt.Errorf("the index that was in %s has moved to %s: choose another storage, or remove all that is there below index/ and "+
			"capelin-move/: %w", m.To.Name(), to.To, errdefs.ErrFailedPrecondition)
	}
	return err
}

// told is an error if an index uses the old storage that is not told a next one.
func (m *Mover) told(ctx context.Context) error {
	untold := &UntoldError{Storage: m.From.Name()}
	for info, err := range walk.All(ctx, m.From, memberPrefix, "") {
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
		return untold
	}
	return nil
}

// prepare makes the new storage the target of a move that begins.
func (m *Mover) prepare(ctx context.Context) error {
	left := m.target != nil && !m.target.Done // of a move that was given up: no index has ever used it
	page, _, err := m.To.List(ctx, Prefix, "", 1)
	if err != nil {
		return err
	}
	if len(page) > 0 && !left {
		return fmt.Errorf("%s has an index already (%s): choose an empty storage: %w", m.To.Name(), page[0].Key, errdefs.ErrFailedPrecondition)
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

func (m *Mover) saveTarget(ctx context.Context) error {
	version, err := swap(ctx, m.To, targetKey, m.target, m.target.version)
	if err != nil {
		return m.crossed(err)
	}
	m.target.version = version
	return nil
}

// advance changes the state, if nobody else has.
func (m *Mover) advance(ctx context.Context, to state) error {
	version, err := swap(ctx, m.From, stateKey, &to, m.state.version)
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
		return fmt.Errorf("somebody else moves the index in %s, or has given it up: %w", m.From.Name(), err)
	}
	return err
}

// mine is an error if somebody else goes on with the move, or it was given up.
func (m *Mover) mine(ctx context.Context) error {
	now, err := readState(ctx, m.From)
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
	for {
		page, more, err := m.From.List(ctx, Prefix, m.target.After, saveEach)
		if err != nil {
			return err
		}
		if err := m.mine(ctx); err != nil {
			return err
		}
		keys := make([]string, len(page))
		for i, info := range page {
			keys[i] = info.Key
		}
		out, err := m.settleAll(ctx, keys)
		m.done.Objects += int64(len(keys))
		m.done.Copied += out.changed
		m.done.Bytes += out.bytes
		if err != nil {
			return err
		}
		m.say(copying)
		if len(keys) > 0 {
			m.target.After = keys[len(keys)-1]
			if err := m.saveTarget(ctx); err != nil {
				return err
			}
		}
		if !more || len(page) == 0 {
			return nil
		}
	}
}

// verify reads all objects of both storages, until they are the same.
func (m *Mover) verify(ctx context.Context) error {
	batch := make([]string, 0, saveEach)
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
	for p, err := range walk.Both(ctx, m.From, m.To, Prefix, "") {
		if err != nil {
			return err
		}
		if batch = append(batch, p.Key); len(batch) == saveEach {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// follow copies what indexes have changed, until little is left.
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
		if n <= few {
			return nil
		}
	}
	return nil
}

// finish has writes wait, copies what is left, and has the indexes use the new storage.
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
	next = *m.state
	next.Phase = moved
	return m.advance(ctx, next)
}

// journal copies what is in the journal of all epochs before the present one, and empties it. It returns how many objects that were.
func (m *Mover) journal(ctx context.Context) (n int64, err error) {
	all := journalPrefix + "/" + m.state.ID + "/"
	end := m.state.journal(m.state.Epoch)
	var entries, keys []string
	flush := func() error {
		if _, err := m.settleAll(ctx, keys); err != nil {
			return err
		}
		n += int64(len(keys))
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(parallel)
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
		if !ok || !strings.HasPrefix(key, Prefix) {
			return n, fmt.Errorf("%s: unknown object %q: %w", m.From.Name(), info.Key, errdefs.ErrDataLoss)
		}
		entries, keys = append(entries, info.Key), append(keys, key)
		if len(keys) == saveEach {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	return n, flush()
}

// settled is what was changed in the new storage.
type settled struct{ changed, bytes int64 }

// settleAll makes objects of the new storage those of the old one.
func (m *Mover) settleAll(ctx context.Context, keys []string) (sum settled, err error) {
	each := make([]int64, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, key := range keys {
		g.Go(func() (err error) {
			each[i], err = m.settle(ctx, key)
			return err
		})
	}
	err = g.Wait()
	for _, n := range each {
		if n >= 0 {
			sum.changed++
			sum.bytes += n
		}
	}
	return sum, err
}

// settle makes an object of the new storage what the old one has, and returns how many bytes it wrote; -1: it was so already. What
// the new one has is read first: so if another Mover writes it in between, this one does not put an older state in its place.
func (m *Mover) settle(ctx context.Context, key string) (int64, error) {
	for range settleTries {
		has, info, err := read(ctx, m.To, key)
		if err != nil {
			return -1, err
		}
		want, _, err := read(ctx, m.From, key)
		if err != nil {
			return -1, err
		}
		switch {
		case (has == nil) == (want == nil) && bytes.Equal(has, want):
			return -1, nil
		case want == nil:
			return 0, m.To.Delete(ctx, key)
		case len(want) > maxSwap: // no tag has as much, and the bytes of all others follow from their keys
			_, err = m.To.Write(ctx, key, int64(len(want)), bytes.NewReader(want))
		default:
			_, err = m.To.WriteIf(ctx, key, want, info.Version)
		}
		if !errdefs.IsConflict(err) {
			return int64(len(want)), err
		}
	}
	return -1, fmt.Errorf("%s: %s was written %d times by others meanwhile: %w", m.To.Name(), key, settleTries, errdefs.ErrConflict)
}

// read returns nil if there is no object.
func read(ctx context.Context, b fetcher.Backend, key string) ([]byte, fetcher.Info, error) {
	data, info, err := walk.Read(ctx, b, key, maxIndexObject)
	if errdefs.IsNotFound(err) {
		return nil, fetcher.Info{}, nil
	}
	if err == nil && data == nil {
		data = []byte{}
	}
	return data, info, err
}

// GiveUp ends a move: the indexes stay where they are. errdefs.ErrFailedPrecondition if they have moved.
func GiveUp(ctx context.Context, from fetcher.Backend) error {
	st, err := readState(ctx, from)
	if err != nil {
		return err
	}
	switch st.Phase {
	case none:
		return fmt.Errorf("the index in %s does not move: %w", from.Name(), errdefs.ErrFailedPrecondition)
	case moved:
		return fmt.Errorf("the index in %s has moved to %s: move it back from there to an empty storage: %w",
			from.Name(), st.To, errdefs.ErrFailedPrecondition)
	}
	next := *st
	next.Phase = none
	if _, err := swap(ctx, from, stateKey, &next, st.version); err != nil {
		return err
	}
	for info, err := range walk.All(ctx, from, journalPrefix+"/"+st.ID+"/", "") {
		if err != nil {
			return err
		}
		if err := from.Delete(ctx, info.Key); err != nil {
			return err
		}
	}
	return nil
}

// String is for people.
func (p Progress) String() string {
	return fmt.Sprintf("%s: %d objects, %d copied (%d bytes), %d compared, of which %d were copied again; %d changed meanwhile, "+
		"%d of them while writes waited", p.Phase, p.Objects, p.Copied, p.Bytes, p.Verified, p.Mended, p.Followed+p.Waited, p.Waited)
}
