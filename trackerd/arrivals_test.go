package trackerd

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener to which somebody always comes.
type pipes struct{}

func (pipes) Accept() (net.Conn, error) {
	c, _ := net.Pipe()
	return c, nil
}
func (pipes) Close() error   { return nil }
func (pipes) Addr() net.Addr { return nil }

// So many connections are let in at once; the next when one of them has arrived, has
// ended, or does not say why it came.
func TestArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArrivals(pipes{})
		accepted := make(chan net.Conn, 1000)
		go func() {
			for {
				c, err := a.Accept()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Accept: %v", err)
					}
					close(accepted)
					return
				}
				accepted <- c
			}
		}()
		synctest.Wait()
		expect := func(n int) {
			t.Helper()
			synctest.Wait()
			if len(accepted) != n {
				t.Fatalf("%d connections are in, want %d", len(accepted), n)
			}
		}
		expect(maxArriving)
		first, second, third := <-accepted, <-accepted, <-accepted
		first.Close()
		expect(maxArriving - 2)
		first.Close() // twice does no harm
		expect(maxArriving - 2)
		second.RemoteAddr().(placeAddr).place.arrived()
		expect(maxArriving - 1)
		// One that has said why it came has more time than the others.
		third.RemoteAddr().(placeAddr).place.patience.Reset(announceWithin)
		time.Sleep(streamWithin)
		expect(2*maxArriving - 2)
		a.Close()
		for c := range accepted {
			c.Close()
		}
		third.Close()
		second.Close()
	})
}
