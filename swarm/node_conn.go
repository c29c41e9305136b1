package swarm

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// nodeConn is an established connection.
//
// It ends in one of three ways. close: we say why, then end (the writer sends
// the Error and shuts its direction down, the reader waits for the other side
// to do the same, for closeTimeout at most, so that no unread byte turns the
// Error into a reset). The peer ends it: the reader sees the end or an Error.
// It breaks: the reader or the writer sees an I/O error. In the last two, cut
// closes the socket, which ends the other goroutine.
type nodeConn struct {
	n       *Node
	nc      net.Conn
	out     sender
	r       *wire.Reader
	peer    wire.Hello
	guest   *guest // nil: this node dialed
	inbound bool

	id      ConnID // set before the goroutines start
	since   time.Time
	written chan struct{} // closed when the writer has ended

	// Shared. Whether something is being sent, and when, in Unix nanoseconds, it
	// last got on.
	busy     atomic.Bool
	progress atomic.Int64

	// Owned by the loop.
	gone     bool        // the Peer has been told
	touched  bool        // is in n.touched
	sending  []*nodeBlob // of the blocks queued and not sent, oldest first
	in, outN int64       // bytes of blocks

	wake chan struct{} // tells the writer that there is something to do
	dead chan struct{} // closed when nothing is read any more

	mu       sync.Mutex
	queue    output
	flushing int  // bytes that the writer has taken from queue last
	counted  int  // bytes of both that are in n.queued
	closing  bool // by close: queue ends with an Error, and nothing is added
	isDead   bool
}

// output is what a writer is to send: bytes, in which blocks' data is missing.
type output struct {
	bytes  []byte
	blocks []outBlock
}

// outBlock is a block's data; its header is in the bytes.
type outBlock struct {
	at    int // the end of the header in the bytes
	blob  Blob
	piece int
	off   int64 // in the blob
	n     int
}

func newConn(n *Node, nc net.Conn, r *wire.Reader, peer wire.Hello, guest *guest) *nodeConn {
	return &nodeConn{
		n: n, nc: nc, out: newSender(nc), r: r, peer: peer, guest: guest, inbound: guest != nil,
		written: make(chan struct{}), wake: make(chan struct{}, 1), dead: make(chan struct{}),
	}
}

func (c *nodeConn) status() ConnStatus {
	return ConnStatus{c.peer, c.nc.RemoteAddr().String(), c.inbound, c.since, c.in, c.outN}
}

func (c *nodeConn) pop() *nodeBlob {
	b := c.sending[0]
	c.sending[0] = nil
	c.sending = c.sending[1:]
	return b
}

// send queues a message. Only the loop calls it, and sendBlock.
func (c *nodeConn) send(m wire.Message) {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return
	}
	var err error
	c.queue.bytes, err = wire.Append(c.queue.bytes, m)
	here, all := c.count()
	c.mu.Unlock()
	switch {
	case err != nil: // our own mistake, but not one to stop for
		c.close(wire.CodeShutdown, err.Error())
		c.n.hangUp(c)
	case here > maxQueued, all > c.n.queues && int64(here) > c.n.queues/int64(max(1, len(c.n.conns))):
		c.close(wire.CodeLimit, "takes nothing of what is sent")
		c.n.hangUp(c)
	default:
		c.n.touch(c)
	}
}

// count counts what is queued, here and over all connections. c.mu is held.
func (c *nodeConn) count() (here int, all int64) {
	here = len(c.queue.bytes) + c.flushing
	all = c.n.queued.Add(int64(here - c.counted))
	c.counted = here
	return here, all
}

// sendBlock queues a block of n bytes, and reports whether it did.
func (c *nodeConn) sendBlock(b *nodeBlob, head *wire.Block, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	var err error
	if c.queue.bytes, err = wire.AppendBlockHeader(c.queue.bytes, head, n); err != nil {
		return false
	}
	off := b.id.Offset(int(head.Piece)) + int64(head.Offset)
	c.queue.blocks = append(c.queue.blocks, outBlock{len(c.queue.bytes), b.blob, int(head.Piece), off, n})
	c.n.touch(c)
	return true
}

func (c *nodeConn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// close drops what is queued, and has an Error sent and the connection ended.
// It may be called by anybody, more than once.
func (c *nodeConn) close(code wire.Code, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.closing = true
	c.queue.blocks = nil
	c.queue.bytes, _ = wire.Append(c.queue.bytes[:0], &wire.Error{Code: code, Text: wire.Text(text)})
	c.count()
	c.nc.SetDeadline(time.Now().Add(closeTimeout))
	c.n.admission.become(c.guest, guestLeaves)
	c.stopReading()
	c.nudge()
}

// cut ends the connection at once.
func (c *nodeConn) cut() {
	c.mu.Lock()
	c.closing = true
	c.queue, c.flushing = output{}, 0
	c.count()
	c.stopReading()
	c.mu.Unlock()
	closeNow(c.nc)
	c.nudge()
}

// closeNow closes nc without a word. A tls.Conn's own Close would say one, and
// wait for the socket to take it.
func closeNow(nc net.Conn) { transport(nc).Close() }

// stopReading has nothing more handed to the loop. c.mu is held.
func (c *nodeConn) stopReading() {
	if !c.isDead {
		c.isDead = true
		close(c.dead)
	}
}

// take returns what is queued; spare becomes the memory for the next. end says
// that nothing will follow.
func (c *nodeConn) take(spare output) (o output, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o = c.queue
	clear(spare.blocks)
	c.queue = output{spare.bytes[:0], spare.blocks[:0]}
	c.flushing = len(o.bytes)
	c.count()
	return o, c.closing
}

// maxSpare is how much memory a writer keeps for later.
const maxSpare = 64 << 10

// write is the writer.
func (c *nodeConn) write() {
	defer close(c.written)
	var o output
	for range c.wake {
		for {
			if cap(o.bytes) > maxSpare {
				o.bytes = nil
			}
			var end bool
			if o, end = c.take(o); len(o.bytes) > 0 {
				if err := c.flush(o); err != nil {
					c.cut()
					return
				}
			}
			if end {
				c.closeWrite()
				return
			}
			if len(o.bytes) == 0 {
				break
			}
		}
	}
}

// flush sends o.
func (c *nodeConn) flush(o output) error {
	c.progress.Store(time.Now().UnixNano())
	c.busy.Store(true)
	defer c.busy.Store(false)
	from := 0
	for _, b := range o.blocks {
		err := c.out.block(o.bytes[from:b.at], wire.BlockHeaderLen, b)
		from = b.at
		if lost := (*errLost)(nil); errors.As(err, &lost) {
			c.n.do(func() { c.n.lost(c, b.piece, b.n) })
			if !lost.whole {
				return err
			}
		} else if err != nil {
			return err
		} else {
			c.n.mail.put(note{conn: c, sent: b.n})
		}
		c.progress.Store(time.Now().UnixNano())
	}
	if from < len(o.bytes) {
		_, err := c.nc.Write(o.bytes[from:])
		return err
	}
	return nil
}

// closeWrite says that nothing follows, where the transport can.
func (c *nodeConn) closeWrite() {
	if w, ok := c.nc.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
}

// read is the reader. It ends the connection.
func (c *nodeConn) read() {
	fault := c.receive()
	if fault != nil {
		c.close(fault.Code, fault.Reason)
		c.n.do(func() {
			c.n.hangUp(c)
			c.n.fault(c.peer.Node, fault)
		})
	}
	c.mu.Lock()
	closing := c.closing
	c.mu.Unlock()
	if closing {
		// Under close's deadline. What still comes is of no interest.
		_, _ = io.CopyN(io.Discard, c.nc, maxQueued)
	} else {
		c.cut()
	}
	<-c.written
	c.cut()
	c.n.do(func() { c.n.disconnected(c) })
}

// receive hands on messages until the connection ends. Its result is the peer's
// fault, if it is one.
func (c *nodeConn) receive() *wire.Fault {
	for {
		m, err := c.r.Next()
		if err != nil {
			var f *wire.Fault
			errors.As(err, &f)
			return f
		}
		switch m := m.(type) {
		case *wire.Hello:
			return &wire.Fault{Code: wire.CodeUnexpected, Type: wire.TypeHello, Reason: "a second Hello"}
		case *wire.Error:
			c.cut() // without an answer
			c.n.do(func() { c.n.message(inbound{c, m}) })
			return nil
		}
		select {
		case c.n.msgs <- inbound{c, m}:
		case <-c.dead:
			return nil
		}
	}
}
