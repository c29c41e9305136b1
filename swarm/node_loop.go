package swarm

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// messageBatch is how many messages the loop takes before it looks at its mail
// and the clock again.
const messageBatch = 32

// Run accepts and makes connections until ctx is done or the listener fails,
// then tells every peer that it stops (wire.CodeShutdown), and returns when all
// its goroutines are gone, which takes little more than a second at most, and
// the time of a Store call that is under way. It returns nil if ctx ended it.
// It can be called once.
func (n *Node) Run(ctx context.Context) error {
	if !n.mail.set(mailWaiting, mailRunning) {
		return fmt.Errorf("running node %s again: %w", n.cfg.Node, ErrStopped)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.ctx = ctx
	for range n.cfg.Workers {
		n.wg.Go(n.worker)
	}
	var failed error // written before n.wg is done
	if n.cfg.Listener != nil {
		n.wg.Go(func() {
			if failed = n.accept(ctx); failed != nil {
				cancel()
			}
		})
		stop := context.AfterFunc(ctx, func() { n.cfg.Listener.Close() })
		defer stop()
	}
	n.loop(ctx)
	n.stop()
	if failed != nil {
		return fmt.Errorf("node %s: %w", n.cfg.Node, failed)
	}
	return nil
}

// loop is the goroutine that owns the Peer.
func (n *Node) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var armed time.Time // what timer is set to
	var spare []note
	sweep := time.Now().Add(sweepEvery)
	for {
		msgs := n.msgs
		if n.storing >= n.cfg.StoreMemory {
			msgs = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-n.mail.wake:
		case in := <-msgs:
			n.message(in)
		case <-timer.C:
			armed = time.Time{}
		}
		spare = n.deliver(spare)
	batch:
		for range messageBatch {
			if n.storing >= n.cfg.StoreMemory {
				break
			}
			select {
			case in := <-n.msgs:
				n.message(in)
			default:
				break batch
			}
		}
		now := time.Now()
		if !now.Before(sweep) {
			n.sweep(now)
			sweep = now.Add(sweepEvery)
		}
		next := n.peer.Deadline()
		if !next.IsZero() && !now.Before(next) {
			n.step(EvTick{})
			next = n.peer.Deadline()
		}
		n.flush()
		if next.IsZero() || sweep.Before(next) {
			next = sweep
		}
		if !next.Equal(armed) {
			armed = next
			timer.Reset(next.Sub(now))
		}
	}
}

// deliver handles the mail. Its argument and result is memory for the next.
func (n *Node) deliver(spare []note) []note {
	notes := n.mail.take(spare)
	for _, x := range notes {
		switch {
		case x.conn != nil:
			n.sent(x.conn, x.sent)
		case x.job != nil:
			n.finished(x.job)
		case x.ev != nil:
			n.step(x.ev)
		default:
			x.f()
		}
	}
	return notes
}

// stop takes everything down after the loop and waits for it.
func (n *Node) stop() {
	n.stopping = true
	for _, c := range n.conns {
		c.close(wire.CodeShutdown, "shutting down")
	}
	close(n.work)
	for _, j := range n.ready {
		n.drop(j)
	}
	n.ready = nil
	done := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(done)
	}()
	var spare []note
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-n.msgs: // its sender must not wait for us
		case <-n.mail.wake:
		}
		if !waiting {
			n.mail.set(mailRunning, mailClosed)
		}
		spare = n.deliver(spare)
	}
	for _, b := range n.blobs {
		b.settle(ErrStopped)
		b.blob.Close()
	}
	clear(n.blobs)
}

// step feeds one event to the Peer and performs what it asks for.
func (n *Node) step(ev Event) {
	if n.stopping {
		return
	}
	n.perform(n.peer.Step(time.Now(), ev))
}

func (n *Node) perform(actions []Action) {
	var failed []ActFail // which step the Peer again, so after the rest
	for _, a := range actions {
		switch a := a.(type) {
		case ActSendBlock:
			n.sendBlock(a)
		case ActSend:
			if c := n.conns[a.Conn]; c != nil {
				c.send(a.Message)
			}
		case ActStore:
			n.submit(a.ID, &job{kind: jobStore, claim: piece.NewClaim(a.Sums, a.Piece, a.Data...)})
		case ActRecheck:
			n.submit(a.ID, &job{kind: jobRecheck, piece: a.Piece})
		case ActAdopt:
			n.submit(a.ID, &job{kind: jobAdopt, sums: a.Sums})
		case ActComputeSums:
			n.submit(a.ID, &job{kind: jobSums})
		case ActComplete:
			n.submit(a.ID, &job{kind: jobComplete})
		case ActDial:
			n.dial(a)
		case ActClose:
			if c := n.conns[a.Conn]; c != nil {
				c.close(a.Code, a.Text)
				n.hangUp(c)
				switch a.Code {
				case wire.CodeMalformed, wire.CodeUnexpected, wire.CodeLimit:
					n.fault(c.peer.Node, &wire.Fault{Code: a.Code, Reason: a.Text})
				}
			}
		case ActFail:
			failed = append(failed, a)
		case ActInvite:
			if n.cfg.OnWanted != nil {
				n.cfg.OnWanted(a.ID)
			}
		case ActListen:
			ago := time.Duration(math.MaxInt64)
			if c := n.conns[a.Conn]; c != nil {
				ago = lastReceived(c.nc)
			}
			n.send(EvHeard{a.Conn, ago})
		case ActNoSource:
			if n.cfg.OnNoSource != nil {
				n.cfg.OnNoSource(a.ID)
			}
		case ActDoubt:
			if n.cfg.OnDoubt != nil {
				n.cfg.OnDoubt(a.ID, a.On)
			}
		case ActReport:
			n.report(a.Report)
		default:
			panic(fmt.Sprintf("swarm: unknown action %T", a))
		}
	}
	for _, a := range failed {
		if b := n.blobs[a.ID]; b != nil {
			n.leave(b, a.Err)
		}
	}
}

// touch has c's writer told of what was queued, when the loop has nothing more
// to do at once: small messages then leave together.
func (n *Node) touch(c *nodeConn) {
	if !c.touched {
		c.touched = true
		n.touched = append(n.touched, c)
	}
}

// flush tells the writers.
func (n *Node) flush() {
	for i, c := range n.touched {
		c.touched = false
		c.nudge()
		n.touched[i] = nil
	}
	n.touched = n.touched[:0]
}

func (n *Node) report(r Report) {
	if n.cfg.OnReport != nil {
		n.cfg.OnReport(r)
	}
}

// message hands a message to the Peer.
func (n *Node) message(in inbound) {
	if in.conn.gone {
		return
	}
	if b, ok := in.msg.(*wire.Block); ok {
		n.total.BytesIn += int64(len(b.Data))
		in.conn.in += int64(len(b.Data))
		if n.far(in.conn) {
			n.total.FarIn += int64(len(b.Data))
		}
	}
	n.step(EvMessage{in.conn.id, in.msg})
	wire.Release(in.msg)
}

// far reports whether a connection's peer is in another zone.
func (n *Node) far(c *nodeConn) bool { return otherZone(n.cfg.Zone, c.peer.Zone) }

// sendBlock queues a block. It holds the blob until the block is sent.
func (n *Node) sendBlock(a ActSendBlock) {
	c, b := n.conns[a.Conn], n.blobs[a.ID]
	if c == nil || c.gone {
		return
	}
	head := wire.Block{Blob: a.Handle, Piece: uint32(a.Piece), Offset: uint32(a.Offset), Queue: a.Queue}
	if b == nil || a.Offset < 0 || a.Offset+a.Length > a.ID.PieceSize(a.Piece) || !c.sendBlock(b, &head, a.Length) {
		n.send(EvBlockSent{a.Conn, a.Length}) // not from here: the Peer's actions are still being performed
		return
	}
	b.refs++
	c.sending = append(c.sending, b)
}

// sent says that a connection has sent the oldest block in its hands.
func (n *Node) sent(c *nodeConn, bytes int) {
	c.outN += int64(bytes)
	n.total.BytesOut += int64(bytes)
	if n.far(c) {
		n.total.FarOut += int64(bytes)
	}
	n.release(c.pop())
	n.step(EvBlockSent{c.id, bytes})
}

// lost says that a connection could not read the oldest block in its hands.
func (n *Node) lost(c *nodeConn, piece, bytes int) {
	b := c.pop()
	if !b.left {
		n.step(EvLost{b.id, piece})
	}
	n.step(EvBlockSent{c.id, bytes})
	n.release(b)
}

// hangUp says once that a connection is gone.
func (n *Node) hangUp(c *nodeConn) {
	if !c.gone {
		c.gone = true
		// Not from here: the Peer's actions may still be being performed.
		n.send(EvDisconnected{c.id})
	}
}

// connected takes over a connection whose handshake is done.
func (n *Node) connected(c *nodeConn) {
	if n.stopping {
		n.refuse(c.nc, context.Canceled) // which says that we are shutting down
		n.admission.leave(c.guest)
		return
	}
	n.lastConn++
	c.id = n.lastConn
	c.since = time.Now()
	n.conns[c.id] = c
	if c.inbound {
		n.total.Accepted++
	} else {
		n.total.Dialed++
	}
	n.wg.Go(c.write)
	n.wg.Go(c.read)
	n.step(EvConnected{c.id, c.peer, c.inbound, roundTrip(c.nc)})
}

// disconnected takes leave of a connection whose goroutines have ended.
func (n *Node) disconnected(c *nodeConn) {
	delete(n.conns, c.id)
	n.admission.leave(c.guest)
	for _, b := range c.sending {
		n.release(b)
	}
	c.sending = nil
	if !c.gone {
		c.gone = true
		n.step(EvDisconnected{c.id})
	}
}

// fault reports a peer's violation of the protocol.
func (n *Node) fault(node string, err error) {
	n.total.Faults++
	n.report(Report{Kind: ReportFault, Node: node, Err: err})
}

// sweep closes connections that take nothing of what is sent. Those that are quiet or
// silent are the Peer's business (keepalive).
func (n *Node) sweep(now time.Time) {
	for _, c := range n.conns {
		if !c.gone && c.busy.Load() && now.UnixNano()-c.progress.Load() > int64(sendTimeout) {
			c.close(wire.CodeTimeout, "nothing taken for "+sendTimeout.String())
			n.hangUp(c)
		}
	}
}

// nodeBlob is a joined blob. All but blob belongs to the loop.
type nodeBlob struct {
	id     piece.ID
	blob   Blob
	opts   JoinOptions
	proven bool
	left   bool
	done   []chan error
	closed []chan struct{} // closed when blob is

	refs    int // blocks and jobs that need blob open; 1 more while joined
	running int // jobs
	alone   bool
	queue   []*job // behind one that runs or must run alone
}

// settle answers everybody who waits for the blob.
func (b *nodeBlob) settle(err error) {
	for _, d := range b.done {
		d <- err
	}
	b.done = nil
}

func (n *Node) join(id piece.ID, blob Blob, o JoinOptions) {
	b := n.blobs[id]
	switch {
	case n.stopping:
		n.closeBlob(blob)
		return
	case b != nil:
		n.closeBlob(blob)
		b.opts = o
	default:
		b = &nodeBlob{id: id, blob: blob, opts: o, refs: 1}
		n.blobs[id] = b
	}
	sums, proven := b.blob.Sums()
	have := b.blob.Have()
	if proven && have.Full() {
		b.proven = true
		b.settle(nil)
	}
	n.step(EvJoin{id, o.Want, o.Priority, have, sums, proven})
}

// leave ends a blob's part here: why answers those who wait.
func (n *Node) leave(b *nodeBlob, why error) {
	if b.left {
		return
	}
	b.left = true
	delete(n.blobs, b.id)
	n.step(EvLeave{b.id})
	b.settle(why)
	for _, j := range b.queue {
		n.drop(j)
	}
	b.queue = nil
	n.release(b)
}

// prove says that a blob is complete, durable and proven.
func (n *Node) prove(b *nodeBlob) {
	if !b.proven {
		b.proven = true
		b.settle(nil)
		n.step(EvProven{b.id})
	}
}

func (n *Node) release(b *nodeBlob) {
	if b.refs--; b.refs == 0 {
		n.closeBlob(b.blob, b.closed...)
	}
}

// closeBlob closes a blob, which may touch the disk, and then tells who waits for that.
func (n *Node) closeBlob(b Blob, closed ...chan struct{}) {
	done := func() {
		b.Close()
		for _, c := range closed {
			close(c)
		}
	}
	if n.stopping {
		done()
		return
	}
	n.wg.Go(done)
}
