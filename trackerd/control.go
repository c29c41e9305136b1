package trackerd

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/trackerd/state"
)

const (
	maxOperations = 16                     // Preheats and Drops at once
	commandBlobs  = 100                    // of one command
	commandBurst  = 200                    // commands given to the machine while its lock is held
	maxResults    = 500                    // in one Progress
	maxLeft       = 16                     // blobs of one NodeResult: the rest is left out
	progressEvery = 500 * time.Millisecond // between two of them, and looks for nodes that are silent
	listChunk     = 500                    // nodes or members in one message

	patience     = 2 * time.Minute  // for a node that says nothing, unless asked otherwise
	awayPatience = 30 * time.Second // for one whose stream broke
)

// control serves what operators ask for.
type control struct {
	trackerpb.UnimplementedControlServer
	s *server

	mu  sync.Mutex // taken with server.mu held, never the other way round
	ops map[uint64]*operation
}

// operation is a Preheat or a Drop under way. Its fields are guarded by control.mu,
// but for those that do not change.
//
// Each node works on one command after the other. All nodes are given the same
// messages, whose ids are the operation's and the position in commands, so that a
// result is known by its id and its sender.
type operation struct {
	id       uint64 // of the first command; the last byte is 0
	commands []*trackerpb.Command
	sizes    []int64 // bytes of each command's blobs that nodes report on
	size     int64   // sum of sizes
	patience time.Duration
	wake     chan struct{} // 1-buffered: ready is not empty, or something has changed

	tasks   map[string]*task
	waiting []*task // not begun
	ready   []*task // to be sent the command at which they are
	working int     // begun and not finished
	atOnce  int

	progress *trackerpb.Progress // since the last one was sent
	changed  bool
}

// task is one node's part of an operation.
type task struct {
	node   string
	stream state.Stream // 0: it is not connected
	at     int          // the command that it works on
	begun  bool
	ended  bool
	heard  time.Time // of it, or since its stream broke
	bytes  int64     // of the commands before at, and of that one as far as it told
	blobs  []*trackerpb.Announce
}

func newControl(s *server) *control { return &control{s: s, ops: map[uint64]*operation{}} }

// caller returns who calls, for logs, or an error if that one may not.
func caller(ctx context.Context) (string, error) {
	id, ok, err := peerID(ctx)
	if err != nil {
		return "", err
	}
	if !ok {
		p, _ := peer.FromContext(ctx)
		return p.Addr.String(), nil
	}
	if !id.Has(mayControl...) {
		return "", status.Errorf(codes.PermissionDenied, "%s may not do this; it takes the role admin, gateway or tracker", id)
	}
	return id.String(), nil
}

// mayControl are the roles that Control is for.
var mayControl = []identity.Role{identity.RoleAdmin, identity.RoleGateway, identity.RoleTracker}

// ListNodes implements trackerpb.ControlServer, like the next ones.
func (c *control) ListNodes(_ *trackerpb.ListNodesRequest, g trackerpb.Control_ListNodesServer) error {
	if _, err := caller(g.Context()); err != nil {
		return err
	}
	nodes := c.nodes()
	for part := range slices.Chunk(nodes, listChunk) {
		m := &trackerpb.ListNodesResponse{}
		for _, n := range part {
			m.Nodes = append(m.Nodes, &trackerpb.Node{
				Node: n.Hello.Node, Zone: n.Hello.Zone, Role: n.Hello.Role, Addr: n.Hello.Addr, Software: n.Hello.Software,
				SinceUnixMs: n.Since.UnixMilli(), Blobs: uint32(n.Blobs), Wants: uint32(n.Wants),
			})
		}
		if err := g.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// nodes returns the connected nodes, ordered by name.
func (c *control) nodes() []state.Node {
	c.s.mu.Lock()
	nodes := c.s.machine.Nodes()
	c.s.mu.Unlock()
	slices.SortFunc(nodes, func(a, b state.Node) int { return strings.Compare(a.Hello.Node, b.Hello.Node) })
	return nodes
}

func (c *control) Members(r *trackerpb.MembersRequest, g trackerpb.Control_MembersServer) error {
	if _, err := caller(g.Context()); err != nil {
		return err
	}
	id, err := r.GetBlob().ID()
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	c.s.mu.Lock()
	members := c.s.machine.Members(id)
	c.s.mu.Unlock()
	slices.SortFunc(members, func(a, b state.Member) int { return strings.Compare(a.Node, b.Node) })
	for part := range slices.Chunk(members, listChunk) {
		m := &trackerpb.MembersResponse{}
		for _, x := range part {
			m.Members = append(m.Members, &trackerpb.Member{Node: x.Node, Complete: x.Complete, Partial: x.Partial, Want: x.Want, Lease: x.Lease})
		}
		if err := g.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (c *control) Preheat(r *trackerpb.PreheatRequest, g trackerpb.Control_PreheatServer) error {
	if r.PatienceMs > uint32((24 * time.Hour).Milliseconds()) {
		return status.Error(codes.InvalidArgument, "patience of more than a day")
	}
	op := newOperation(int(r.AtOnce), time.Duration(r.PatienceMs)*time.Millisecond)
	for part := range slices.Chunk(r.Blobs, commandBlobs) {
		op.add(&trackerpb.Command{Kind: &trackerpb.Command_Preheat{Preheat: &trackerpb.Preheat{Blobs: part}}}, part)
	}
	return c.operate(g, "preheat", op, r.Blobs, r.Nodes)
}

func (c *control) Drop(r *trackerpb.DropRequest, g trackerpb.Control_DropServer) error {
	op := newOperation(0, 0)
	for part := range slices.Chunk(r.Blobs, commandBlobs) {
		op.add(&trackerpb.Command{Kind: &trackerpb.Command_Drop{Drop: &trackerpb.Drop{Blobs: part}}}, nil)
	}
	return c.operate(g, "drop", op, r.Blobs, r.Nodes)
}

func newOperation(atOnce int, p time.Duration) *operation {
	if p == 0 {
		p = patience
	}
	return &operation{
		id:       rand.Uint64() &^ 0xff,
		patience: p,
		wake:     make(chan struct{}, 1),
		tasks:    map[string]*task{},
		atOnce:   atOnce,
		progress: &trackerpb.Progress{},
	}
}

// add appends a command. measured are its blobs whose bytes nodes report.
func (op *operation) add(cmd *trackerpb.Command, measured []*trackerpb.Blob) {
	cmd.Id = op.id + uint64(len(op.commands))
	size := int64(0)
	for _, b := range measured {
		size += b.GetSize()
	}
	op.commands = append(op.commands, cmd)
	op.sizes = append(op.sizes, size)
	op.size += size
}

// sender is the server's side of both streams.
type sender interface {
	Context() context.Context
	Send(*trackerpb.Progress) error
}

// operate carries an operation out. When the caller goes away, nodes finish the
// command that they work on.
func (c *control) operate(g sender, what string, op *operation, blobs []*trackerpb.Blob, sel *trackerpb.Selection) error {
	ctx := g.Context()
	who, err := caller(ctx)
	if err != nil {
		return err
	}
	if err := trackerpb.CheckBlobs(blobs); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := trackerpb.CheckSelection(sel); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := c.warm(ctx); err != nil {
		return err
	}
	if err := c.begin(op, sel); err != nil {
		return err
	}
	defer c.end(op)
	l := log.G(c.s.ctx).WithFields(log.Fields{"by": who, "blobs": len(blobs), "nodes": len(op.tasks)})
	l.Info(what)
	err = c.drive(ctx, g, op)
	c.mu.Lock()
	l = l.WithFields(log.Fields{"done": op.progress.Done, "failed": op.progress.Failed})
	c.mu.Unlock()
	if err != nil {
		l.WithError(err).Info(what + " was given up")
		return err
	}
	l.Info(what + " is done")
	return nil
}

// warm waits until nodes have had time to connect.
func (c *control) warm(ctx context.Context) error {
	for {
		c.s.mu.Lock()
		wait := time.Until(c.s.machine.Warm())
		c.s.mu.Unlock()
		if wait <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(wait):
		}
	}
}

// begin chooses the nodes of an operation and makes their results be heard.
func (c *control) begin(op *operation, sel *trackerpb.Selection) error {
	c.s.mu.Lock() // nodes come and go with it held
	defer c.s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ops) >= maxOperations {
		return status.Errorf(codes.ResourceExhausted, "%d operations are under way, try again later", maxOperations)
	}
	now := time.Now()
	names, zones, roles := set(sel.Nodes), set(sel.Zones), set(sel.Roles)
	if len(names) == 0 && len(roles) == 0 {
		roles[trackerpb.Role_ROLE_AGENT] = struct{}{}
	}
	for _, n := range c.s.machine.Nodes() {
		if h := n.Hello; within(names, h.Node) && within(zones, h.Zone) && within(roles, h.Role) {
			op.tasks[h.Node] = &task{node: h.Node, stream: n.Stream, heard: now}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(op.tasks)) {
		op.waiting = append(op.waiting, op.tasks[name])
	}
	op.progress.Nodes = uint32(len(op.tasks))
	for name := range names {
		if op.tasks[name] == nil && len(zones)+len(roles) == 0 {
			t := &task{node: name}
			op.tasks[name] = t
			op.progress.Nodes++
			op.finish(t, "it is not connected to this tracker", nil)
		}
	}
	if op.progress.Nodes == 0 {
		return status.Error(codes.NotFound, "no connected node is among those selected")
	}
	op.progress.Total = op.size * int64(op.progress.Nodes)
	op.changed = true
	c.ops[op.id] = op
	return nil
}

func (c *control) end(op *operation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ops, op.id)
}

// drive gives nodes their commands and tells the caller how it goes, until every
// node has finished.
func (c *control) drive(ctx context.Context, g sender, op *operation) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		c.mu.Lock()
		send, finished := op.next(time.Now())
		c.mu.Unlock()
		for burst := range slices.Chunk(send, commandBurst) {
			c.s.mu.Lock()
			for _, ev := range burst {
				c.s.step(ev)
			}
			c.s.mu.Unlock()
		}
		due := finished
		if !finished {
			select {
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			case <-op.wake:
			case now := <-tick.C:
				due = true
				c.mu.Lock()
				op.giveUp(now)
				c.mu.Unlock()
			}
		}
		for due {
			c.mu.Lock()
			m := op.report()
			c.mu.Unlock()
			if m == nil {
				break
			}
			if err := g.Send(m); err != nil {
				return err
			}
		}
		if finished {
			return nil
		}
	}
}

// next returns the commands that are to be sent now, and reports whether there is
// nothing to be done any more.
func (op *operation) next(now time.Time) (send []state.Event, finished bool) {
	for len(op.waiting) > 0 && (op.atOnce == 0 || op.working < op.atOnce) {
		t := op.waiting[0]
		op.waiting = op.waiting[1:]
		if t.ended {
			continue
		}
		t.begun = true
		op.working++
		op.ready = append(op.ready, t)
	}
	for _, t := range op.ready {
		if !t.ended && t.stream != 0 {
			t.heard = now
			send = append(send, state.EvCommand{Node: t.node, Command: op.commands[t.at]})
		}
	}
	clear(op.ready)
	op.ready = op.ready[:0]
	return send, op.working == 0 && len(op.waiting) == 0
}

// report returns what the caller has not been told, or nil.
func (op *operation) report() *trackerpb.Progress {
	if !op.changed {
		return nil
	}
	p := op.progress
	all := p.Results
	m := &trackerpb.Progress{Nodes: p.Nodes, Done: p.Done, Failed: p.Failed, Bytes: p.Bytes, Total: p.Total}
	n := min(len(all), maxResults)
	m.Results, p.Results = all[:n:n], all[n:]
	op.changed = len(p.Results) > 0
	return m
}

// giveUp ends the parts of nodes that were silent, or away, for too long.
func (op *operation) giveUp(now time.Time) {
	for _, t := range op.tasks {
		switch silent := now.Sub(t.heard); {
		case t.ended:
		case t.stream == 0 && silent >= awayPatience:
			op.finish(t, "its stream to the tracker broke", nil)
		case t.begun && silent >= op.patience:
			op.finish(t, fmt.Sprintf("nothing was heard of it for %v", op.patience), nil)
		}
	}
}

// finish ends a node's part; text is empty if all went well.
func (op *operation) finish(t *task, text string, blobs []*trackerpb.Announce) {
	if t.ended {
		return
	}
	t.ended = true
	if t.begun {
		op.working--
	}
	if text == "" {
		op.progress.Done++
	} else {
		op.progress.Failed++
	}
	op.progress.Results = append(op.progress.Results, &trackerpb.NodeResult{Node: t.node, Error: text, Blobs: blobs})
	op.notify()
}

func (op *operation) notify() {
	op.changed = true
	select {
	case op.wake <- struct{}{}:
	default:
	}
}

// result takes in what a node says of a command, and reports whether anybody waits
// for that.
func (c *control) result(node string, r *trackerpb.CommandResult) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	op := c.ops[r.Id&^0xff]
	if op == nil {
		return false
	}
	t := op.tasks[node]
	if t == nil || t.ended || !t.begun || t.at != int(r.Id&0xff) {
		return false
	}
	t.heard = time.Now()
	before := int64(0)
	for _, n := range op.sizes[:t.at] {
		before += n
	}
	last := !r.Running && r.Supported && r.Error == ""
	at := before + min(r.Bytes, op.sizes[t.at])
	if last {
		at = before + op.sizes[t.at]
	}
	op.progress.Bytes += at - t.bytes
	op.changed = op.changed || at != t.bytes
	t.bytes = at
	switch {
	case r.Running:
	case !r.Supported:
		op.finish(t, "its agent does not know this command", nil)
	case r.Error != "":
		op.finish(t, r.Error, t.kept(r))
	case t.at+1 == len(op.commands):
		op.finish(t, "", t.kept(r))
	default:
		t.kept(r)
		t.at++
		op.ready = append(op.ready, t)
		op.notify()
	}
	return true
}

// kept collects what a node's commands left undone.
func (t *task) kept(r *trackerpb.CommandResult) []*trackerpb.Announce {
	t.blobs = append(t.blobs, r.Blobs[:min(len(r.Blobs), maxLeft-len(t.blobs))]...)
	return t.blobs
}

// connected tells that a node connected: what it was told before may be lost. server.mu
// is held.
func (c *control) connected(node string, st state.Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range c.ops {
		if t := op.tasks[node]; t != nil && !t.ended {
			t.stream, t.heard = st, time.Now()
			if t.begun {
				op.ready = append(op.ready, t)
				op.notify()
			}
		}
	}
}

// disconnected tells that a stream ended. server.mu is held.
func (c *control) disconnected(node string, st state.Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range c.ops {
		if t := op.tasks[node]; t != nil && !t.ended && t.stream == st {
			t.stream, t.heard = 0, time.Now()
		}
	}
}

// set and within are for lists that allow everything when they are empty.
func set[T comparable](list []T) map[T]struct{} {
	m := make(map[T]struct{}, len(list))
	for _, v := range list {
		m[v] = struct{}{}
	}
	return m
}

func within[T comparable](m map[T]struct{}, v T) bool {
	_, ok := m[v]
	return ok || len(m) == 0
}
