package mirror

import (
	"errors"
	"fmt"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// client pushes one blob: it appends, resumes where the upload stands, asks the other
// members when one fails, and commits until it is told that it is done.
type client struct {
	w        *world
	content  []byte
	d        digest.Digest
	hint     bool
	chunk    int           // bytes of an append
	pause    time.Duration // between appends
	id       string
	at       *node
	high     int // bytes that were sent
	resent   int // of them, again
	anew     int // uploads begun
	done     bool
	end      time.Time // of all appends
	answered time.Time // that it is done
	giveUp   bool      // it deletes the upload instead of committing it
	fickle   float64   // it goes to another member for no reason
	twin     *client   // that does the same to the same upload
}

func (w *world) push(size int, at *node) *client {
	i := len(w.clients)
	c := &client{w: w, content: make([]byte, size), d: digest.Digest(fmt.Sprintf("sha256:%064x", i)), at: at, chunk: size}
	for j := range c.content {
		c.content[j] = byte(1 + w.rng.IntN(255))
	}
	w.want[c.d] = c.content
	w.clients = append(w.clients, c)
	w.after(0, c.start)
	return c
}

// send makes a request; who does not move for 30 s is given up.
func (c *client) send(k *call, then func(reply)) {
	k.to, k.upload = c.at, c.id
	k.reply = func(r reply) {
		c.w.note("client %s <- %s: %+v", c.d[len(c.d)-2:], k.to.Name, r)
		then(r)
	}
	var watch func(acked int)
	watch = func(acked int) {
		c.w.after(patient, func() {
			switch {
			case k.over:
			case k.acked != acked:
				watch(k.acked)
			default:
				k.cancel()
				k.reply(reply{Answer: Answer{Code: Unavailable, Err: errors.New("timeout")}})
			}
		})
	}
	c.w.send(k)
	c.w.note("client %s -> %s: %+v", c.d[len(c.d)-2:], k.to.Name, k.req)
	watch(0)
}

func (c *client) next() {
	for i, n := range c.w.nodes {
		if n == c.at {
			c.at = c.w.nodes[(i+1)%len(c.w.nodes)]
			return
		}
	}
}

func (c *client) again(f func()) { c.w.after(c.w.between(100, 300), f) }

func (c *client) start() {
	c.anew++
	c.id, c.high = "", 0
	k := &call{req: Request{Kind: Start}, whole: c.content}
	if c.hint {
		k.key = string(c.d)
	}
	c.send(k, func(r reply) {
		if r.Code != Done {
			c.next()
			c.again(c.start)
			return
		}
		c.id = r.upload
		if t := c.twin; t != nil && t.id == "" {
			t.id, t.at = c.id, c.at
			c.w.after(c.w.between(0, 200), t.resume)
		}
		c.append(0)
	})
}

// append sends the next bytes, from off on.
func (c *client) append(off int) {
	if off < c.high {
		c.resent += c.high - off
		c.high = off
	}
	if c.w.rng.Float64() < c.fickle {
		c.next()
		c.resume()
		return
	}
	if off == len(c.content) {
		c.end = c.w.now
		c.put()
		return
	}
	k := &call{req: Request{Kind: Append, Off: int64(off) << mib}, body: c.content[off:min(len(c.content), off+c.chunk)]}
	c.send(k, func(r reply) {
		c.high = off + k.sent
		if r.redirect != "" {
			c.at = c.w.node(r.redirect)
			c.resume()
			return
		}
		if r.Code != Done {
			c.again(c.resume)
			return
		}
		c.w.after(c.pause, func() { c.append(int(r.Offset >> mib)) })
	})
}

// resume finds out where the upload stands.
func (c *client) resume() {
	c.send(&call{ask: true}, func(r reply) {
		switch {
		case r.redirect != "":
			c.at = c.w.node(r.redirect)
			c.resume()
		case r.Code == Done:
			c.append(int(r.Offset >> mib))
		case r.Code == Unknown:
			c.start()
		default:
			c.next()
			c.again(c.resume)
		}
	})
}

func (c *client) put() {
	if c.giveUp {
		c.send(&call{req: Request{Kind: Delete}}, func(reply) { c.done = true })
		return
	}
	c.send(&call{req: Request{Kind: Put, Off: int64(len(c.content)) << mib, Digest: c.d}}, func(r reply) {
		switch {
		case r.redirect != "":
			c.at = c.w.node(r.redirect)
			c.put()
		case r.Code == Done:
			c.done, c.answered = true, c.w.now
		case r.Code == Later:
			c.again(c.put)
		case r.Code == WrongDigest:
			c.w.fail("%s says that the client's bytes are wrong: %v", c.at.Name, r.Err)
		case r.Code == Unknown:
			c.start()
		default:
			c.again(c.resume)
		}
	})
}
