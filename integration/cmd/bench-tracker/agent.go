package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// As control/tracker has them.
const (
	connectTimeout = 5 * time.Second // from dialling to Welcome
	backoffMin     = 100 * time.Millisecond
	backoffMax     = 2 * time.Second
)

// agent keeps a stream up, as a node's agent does, until ctx is done.
func (c *cluster) agent(ctx context.Context, i int) {
	pause := backoffMin
	for ctx.Err() == nil {
		welcomed, err := c.session(ctx, i)
		if welcomed {
			pause = backoffMin
		}
		c.broke.Store(&err)
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
		}
		pause = min(2*pause, backoffMax)
	}
}

// session is one stream; it reports whether the tracker welcomed it, and why it ended.
func (c *cluster) session(ctx context.Context, i int) (welcomed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(connectTimeout, cancel)
	defer watchdog.Stop()
	s, err := dial(ctx, net.IPv4(127, 1+byte(i>>16), byte(i>>8), byte(i)))
	if err != nil {
		return false, err
	}
	defer s.conn.Close()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	hello, err := encode(&trackerpb.FromAgent{Hello: &trackerpb.Hello{
		Version: trackerpb.Version, Cluster: "default", Node: fmt.Sprintf("node-%05d", i), Zone: fmt.Sprintf("z%d", i%3),
		Addr: "10.0.0.1:7401", Role: trackerpb.Role_ROLE_AGENT, Software: "bench-tracker", Blobs: uint32(c.blobs),
	}})
	if err != nil {
		return false, err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer s.end()
	sending.Go(func() { _ = s.send(hello) })
	offers := c.offers[i%groups]
	err = s.receive(func(m *trackerpb.ToAgent) {
		if m.Welcome != nil {
			watchdog.Stop()
			welcomed = true
			c.live.Add(1)
			sending.Go(func() {
				for _, o := range c.offers[i%groups] {
					_ = s.send(o.encoded)
				}
				select {
				case <-c.want: // before this stream
					return
				default:
				}
				select {
				case <-ctx.Done():
				case <-c.want:
					_ = s.send(c.wanted)
				}
			})
		}
		for _, a := range m.Accepts {
			o := offers[0]
			offers = offers[1:]
			if a.Count() > 0 {
				sending.Go(func() {
					ms, _ := o.accepted(a)
					for _, m := range ms {
						_ = s.send(m)
					}
				})
			}
		}
		for range m.Verdicts {
			select {
			case c.answered <- time.Now():
			default: // news for one that was answered
			}
		}
	})
	if welcomed {
		c.live.Add(-1)
	}
	cancel()
	return welcomed, err
}

// stream is a call of Tracker.Connect on a connection of its own: what gRPC's client
// sends, by the least that HTTP/2 asks for. gRPC's client itself would take as much
// of the machine as the tracker does, which in a cluster has its machine for itself.
type stream struct {
	conn net.Conn
	in   *http2.Framer

	mu     sync.Mutex
	out    *http2.Framer
	buf    bytes.Buffer // what out has written and conn has not been given
	more   sync.Cond    // the windows grew, or ended
	ended  bool
	window [2]int // bytes that may be sent: on the connection, on the stream
}

const streamID = 1

var errEnded = errors.New("the tracker ended the stream")

// dial connects from an address of the agent's own, since 15,000 connections from one
// address would spend a tenth of the machine on the search for a free port.
func dial(ctx context.Context, from net.IP) (*stream, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	conn, err := d.DialContext(ctx, "tcp", listen)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, in: http2.NewFramer(io.Discard, bufio.NewReader(conn)), window: [2]int{65535, 65535}} // RFC 9113, 6.9.2
	s.in.ReadMetaHeaders = hpack.NewDecoder(4096, nil)                                                             // RFC 9113, 6.5.2
	s.more.L = &s.mu
	s.out = http2.NewFramer(&s.buf, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.WriteString(http2.ClientPreface)
	_ = s.out.WriteSettings() // to a buffer, as all frames
	var headers bytes.Buffer
	h := hpack.NewEncoder(&headers)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", trackerpb.Tracker_Connect_FullMethodName}, {":authority", listen},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		_ = h.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	_ = s.out.WriteHeaders(http2.HeadersFrameParam{StreamID: streamID, BlockFragment: headers.Bytes(), EndHeaders: true})
	return s, nil // sent with the first message
}

// encode returns a message with gRPC's prefix.
func encode(m proto.Message) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	p := make([]byte, 5, 5+len(b))
	binary.BigEndian.PutUint32(p[1:], uint32(len(b)))
	return append(p, b...), nil
}

// send sends an encoded message as the windows allow.
func (s *stream) send(m []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(m) > 0 {
		for !s.ended && min(s.window[0], s.window[1]) <= 0 {
			if err := s.flush(); err != nil {
				return err
			}
			s.more.Wait()
		}
		if s.ended {
			return net.ErrClosed
		}
		n := min(len(m), s.window[0], s.window[1], 16384) // RFC 9113, 4.2
		_ = s.out.WriteData(streamID, false, m[:n])
		s.window[0] -= n
		s.window[1] -= n
		m = m[n:]
	}
	return s.flush()
}

// flush gives the connection what is written. s.mu is held.
func (s *stream) flush() error {
	_, err := s.conn.Write(s.buf.Bytes())
	s.buf = bytes.Buffer{} // an idle agent keeps nothing
	return err
}

// end lets a waiting send return.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.more.Broadcast()
}

// receive passes the tracker's messages on until the stream ends.
func (s *stream) receive(got func(*trackerpb.ToAgent)) error {
	var data []byte
	unacknowledged := 0
	for {
		f, err := s.in.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = s.settings(f)
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = s.answer(func() error { return s.out.WritePing(true, f.Data) })
			}
		case *http2.WindowUpdateFrame:
			s.grow(f.StreamID, int(f.Increment))
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			return errEnded
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				return fmt.Errorf("%w: %v", errEnded, f.RegularFields())
			}
		case *http2.DataFrame:
			data = append(data, f.Data()...)
			for len(data) >= 5 {
				n := 5 + int(binary.BigEndian.Uint32(data[1:]))
				if len(data) < n {
					break
				}
				m := &trackerpb.ToAgent{}
				if err := proto.Unmarshal(data[5:n], m); err != nil {
					return err
				}
				got(m)
				data = data[n:]
			}
			if len(data) == 0 {
				data = nil
			}
			if unacknowledged += int(f.Length); unacknowledged > 65535/4 {
				n := uint32(unacknowledged)
				unacknowledged = 0
				err = s.answer(func() error {
					return errors.Join(s.out.WriteWindowUpdate(0, n), s.out.WriteWindowUpdate(streamID, n))
				})
			}
		}
		if err != nil {
			return err
		}
	}
}

// settings takes in the window that the tracker gives streams.
func (s *stream) settings(f *http2.SettingsFrame) error {
	if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
		s.grow(streamID, int(v)-65535) // there is this one, and it has sent less than that
	}
	return s.answer(s.out.WriteSettingsAck)
}

func (s *stream) grow(id uint32, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == 0 {
		s.window[0] += n
	} else {
		s.window[1] += n
	}
	s.more.Broadcast()
}

func (s *stream) answer(write func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := write(); err != nil {
		return err
	}
	return s.flush()
}
