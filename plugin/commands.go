package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	maxPreheats   = 4  // carried out at once
	maxQueued     = 64 // commands not begun
	preheatAhead  = 6  // blobs of a Preheat that are fetched at once: all of them together leave room below fetch.Rules.MaxPrefetch
	preheatPoll   = 250 * time.Millisecond
	preheatReport = 2 * time.Second  // between two reports of how far a Preheat is
	preheatNobody = 10 * time.Second // for somebody to turn up who has a blob
	resultBlobs   = 400              // of one CommandResult
)

// commandDisk is the store, for commands.
type commandDisk interface {
	Whole(id piece.ID) bool
	Committed(id piece.ID) bool
	// Forget gives up a blob that containerd does not hold, whole or in part.
	Forget(ctx context.Context, id piece.ID) error
	// Here calls fn with every blob of which there is anything.
	Here(fn func(id piece.ID, whole bool))
}

// commands does what trackers ask for, a few things at once.
type commands struct {
	fetches *fetch.Fetches
	disk    commandDisk
	result  func(*trackerpb.CommandResult)
	slow    chan *trackerpb.Command // Preheats
	quick   chan *trackerpb.Command

	mu      sync.Mutex
	running map[uint64]bool // by ID; a command that comes again is not begun again
}

func newCommands(fs *fetch.Fetches, d commandDisk, result func(*trackerpb.CommandResult)) *commands {
	return &commands{
		fetches: fs, disk: d, result: result,
		slow: make(chan *trackerpb.Command, maxQueued), quick: make(chan *trackerpb.Command, maxQueued),
		running: map[uint64]bool{},
	}
}

// add takes in a command. It does not block.
func (c *commands) add(cmd *trackerpb.Command) {
	c.mu.Lock()
	again := c.running[cmd.GetId()]
	c.running[cmd.GetId()] = true
	c.mu.Unlock()
	if again {
		return // the result goes to whoever asked last
	}
	queue := c.quick
	if cmd.GetPreheat() != nil {
		queue = c.slow
	}
	select {
	case queue <- cmd:
	default:
		c.done(&trackerpb.CommandResult{Id: cmd.GetId(), Supported: true, Error: "too many commands are waiting on this node"})
	}
}

// done sends a command's last result.
func (c *commands) done(r *trackerpb.CommandResult) {
	c.mu.Lock()
	delete(c.running, r.Id)
	c.mu.Unlock()
	c.result(r)
}

// run carries commands out until ctx is done.
func (c *commands) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	work := func(queue chan *trackerpb.Command) {
		for {
			select {
			case cmd := <-queue:
				c.done(c.do(ctx, cmd))
			case <-ctx.Done():
				return
			}
		}
	}
	wg.Go(func() { work(c.quick) })
	for range maxPreheats {
		wg.Go(func() { work(c.slow) })
	}
}

// do carries a command out and returns its last result.
func (c *commands) do(ctx context.Context, cmd *trackerpb.Command) *trackerpb.CommandResult {
	r := &trackerpb.CommandResult{Id: cmd.GetId(), Supported: true}
	switch k := cmd.GetKind().(type) {
	case *trackerpb.Command_Preheat:
		c.preheat(ctx, r, blobIDs(k.Preheat.GetBlobs()))
	case *trackerpb.Command_Drop:
		c.drop(ctx, r, blobIDs(k.Drop.GetBlobs()))
	case *trackerpb.Command_Report:
		c.report(r, blobIDs(k.Report.GetBlobs()))
	default:
		r.Supported = false
	}
	return r
}

// blobIDs leaves out what is not valid, and what no tracker sends at once.
func blobIDs(blobs []*trackerpb.Blob) []piece.ID {
	var ids []piece.ID
	for _, b := range blobs[:min(len(blobs), trackerpb.MaxBatch)] {
		if id, err := b.ID(); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// preheated is a blob that a Preheat wants.
type preheated struct {
	id       piece.ID
	fetch    func() fetch.Status // of the fetch that was there at the last look; nil: none was
	since    time.Time           // of the last progress; zero: not begun
	verified int64
	whole    bool
	err      error
}

var errEvicted = errors.New("it was evicted again: the cache is too small, or the disk too full")

// preheat has the blobs fetched from the swarm into the cache, a few at a time and
// in their order. It ends when each is there or cannot be had.
func (c *commands) preheat(ctx context.Context, r *trackerpb.CommandResult, ids []piece.ID) {
	blobs := make([]*preheated, len(ids))
	for i, id := range ids {
		blobs[i] = &preheated{id: id}
	}
	tick := time.NewTicker(preheatPoll)
	defer tick.Stop()
	reported := time.Now()
	for c.fetchAhead(blobs, time.Now()) > 0 {
		if n := bytesOf(blobs); n != r.Bytes && time.Since(reported) >= preheatReport {
			reported, r.Bytes = time.Now(), n
			c.result(&trackerpb.CommandResult{Id: r.Id, Supported: true, Running: true, Bytes: n})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.Error = "the agent stops"
			return
		}
	}
	r.Bytes = bytesOf(blobs)
	failed := 0
	for _, b := range blobs {
		if b.err == nil && !c.disk.Whole(b.id) {
			b.err = errEvicted
		}
		if b.err == nil {
			continue
		}
		if failed++; failed == 1 {
			r.Error = fmt.Sprintf("%s: %v", b.id.Digest(), b.err)
		}
		r.Blobs = appendState(r.Blobs, b.id, stateOf(false, b.verified > 0))
	}
	if failed > 1 {
		r.Error = fmt.Sprintf("%d blobs, first %s", failed, r.Error)
	}
}

// fetchAhead looks after the first few blobs that are not there yet, and returns
// how many these are.
func (c *commands) fetchAhead(blobs []*preheated, now time.Time) (active int) {
	for i, b := range blobs {
		switch {
		case b.whole || b.err != nil:
		case c.disk.Whole(b.id):
			b.whole, b.verified, b.fetch = true, b.id.Size, nil
		case active < preheatAhead:
			if b.err = c.lookAfter(b, i, now); b.err == nil {
				active++
			} else {
				c.fetches.Abandon(b.id)
			}
		}
	}
	return active
}

// NobodyHasIt is why a blob cannot be preheated: nodes have it from each other, and never
// ask a registry by themselves, because they have no credentials.
const NobodyHasIt = "no node and no origin has it"

// lookAfter starts or prolongs the fetch of a blob, and returns why it cannot be
// had.
func (c *commands) lookAfter(b *preheated, priority int, now time.Time) error {
	if b.since.IsZero() {
		b.since = now
	}
	silent, longest := now.Sub(b.since), c.fetches.Config().Prefetch
	if b.fetch != nil {
		st := b.fetch()
		switch {
		case st.Failed != nil:
			return st.Failed
		case st.Verified > b.verified:
			b.verified, b.since = st.Verified, now
		case st.Verdict == tracker.Nobody && silent >= preheatNobody:
			return errors.New(NobodyHasIt)
		case silent >= longest:
			return fmt.Errorf("nothing of it came for %v", longest)
		}
	} else if silent >= longest {
		return errors.New("too many other blobs are fetched, or the agent is not connected")
	}
	c.fetches.Prefetch(b.id, priority)
	before := b.fetch
	b.fetch = c.fetches.Follow(b.id)
	if before != nil { // it may have failed since the look above, and this be another one
		return before().Failed
	}
	return nil
}

func bytesOf(blobs []*preheated) (n int64) {
	for _, b := range blobs {
		n += b.verified
	}
	return n
}

// drop forgets blobs, but for those that containerd holds or is pulling; these are
// in the result.
func (c *commands) drop(ctx context.Context, r *trackerpb.CommandResult, ids []piece.ID) {
	for _, id := range ids {
		if c.disk.Committed(id) || !c.fetches.Abandon(id) {
			r.Blobs = appendState(r.Blobs, id, stateOf(c.disk.Whole(id), true))
			continue
		}
		if err := c.disk.Forget(ctx, id); err != nil && r.Error == "" {
			r.Error = fmt.Sprintf("%s: %v", id.Digest(), err)
		}
	}
}

// report says what is here of the blobs, or of all if there are none.
func (c *commands) report(r *trackerpb.CommandResult, ids []piece.ID) {
	var all []*trackerpb.Announce
	here := map[piece.ID]bool{} // whole
	c.disk.Here(func(id piece.ID, whole bool) {
		here[id] = whole
		if len(ids) == 0 {
			all = append(all, &trackerpb.Announce{Blob: trackerpb.FromID(id), State: stateOf(whole, true)})
		}
	})
	for _, id := range ids {
		whole, some := here[id]
		all = append(all, &trackerpb.Announce{Blob: trackerpb.FromID(id), State: stateOf(whole, some)})
	}
	for len(all) > resultBlobs {
		c.result(&trackerpb.CommandResult{Id: r.Id, Supported: true, Running: true, Blobs: all[:resultBlobs:resultBlobs]})
		all = all[resultBlobs:]
	}
	r.Blobs = all
}

func stateOf(whole, some bool) trackerpb.State {
	switch {
	case whole:
		return trackerpb.State_STATE_COMPLETE
	case some:
		return trackerpb.State_STATE_PARTIAL
	}
	return trackerpb.State_STATE_GONE
}

// appendState appends as many as a result may have.
func appendState(to []*trackerpb.Announce, id piece.ID, st trackerpb.State) []*trackerpb.Announce {
	if len(to) >= resultBlobs {
		return to
	}
	return append(to, &trackerpb.Announce{Blob: trackerpb.FromID(id), State: st})
}

// Forget gives up a blob that containerd does not hold.
func (d *disk) Forget(ctx context.Context, id piece.ID) error {
	if d.Presence(id) != content.Partial {
		return d.DropCached(id)
	}
	b, err := d.Store.Blob(ctx, id, false)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(b.Drop(), b.Close())
}

// Here calls fn with every blob of which there is anything.
func (d *disk) Here(fn func(id piece.ID, whole bool)) {
	d.Blobs(func(id piece.ID, _ content.Presence) bool { fn(id, true); return true })
	for _, id := range d.Partials() {
		fn(id, false)
	}
}
