package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/ops"
)

// testConfig is a role's configuration.
type testConfig struct {
	Common
	Size int    `toml:"size" live:"true" comment:"Size."`
	Name string `toml:"name" comment:"Name."`
}

func (c *testConfig) Validate() error { return errors.Join(c.Common.Check()...) }

func newConfig() *testConfig { return &testConfig{Common: DefaultCommon("")} }

// story is what happened, in order.
type story struct {
	mu    sync.Mutex
	lines []string
}

func (s *story) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *story) want(t *testing.T, want ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !reflect.DeepEqual(s.lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(s.lines, "\n"), strings.Join(want, "\n"))
	}
}

var errBroken = errors.New("broken")

// The order of a role's life, in each of its ends.
func TestServeOrder(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail string // the part that fails; "": the context ends
		want error
	}{{"told to stop", "", nil}, {"a server fails", "server", errBroken}, {"work fails", "work", errBroken}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var s story
				page := ops.NewPage()
				cfg := newConfig()
				cfg.Shown = page.Role("test")
				ready := func() string {
					return map[bool]string{true: "ready", false: "not ready"}[shownReady(page)]
				}
				fail := make(chan error, 1)
				part := func(name string, patience time.Duration) Part {
					return Part{name, func(ctx context.Context) error {
						broken := make(chan error)
						if name == tt.fail {
							broken = fail
						}
						select {
						case err := <-broken:
							s.add("%s fails, %s", name, ready())
							return err
						case <-ctx.Done():
						}
						s.add("%s is told, %s", name, ready())
						time.Sleep(patience)
						s.add("%s ends", name)
						return nil
					}}
				}
				go func() {
					time.Sleep(time.Minute)
					s.add("a minute, %s", ready())
					if tt.fail == "" {
						cancel()
					} else {
						fail <- errBroken
					}
				}()
				err := Run(ctx, "test", cfg, func(ctx context.Context, d *Daemon) error {
					defer s.add("closed")
					s.add("made, %s", ready())
					return d.Serve(ctx, Parts{
						Servers:  []Part{part("server", time.Second), part("slow server", 3*time.Second)},
						Work:     []Part{part("work", time.Second)},
						Up:       func(net.Addr) { s.add("up, %s", ready()) },
						Stopping: func() { s.add("stopping, %s", ready()) },
					})
				})
				if !errors.Is(err, tt.want) || tt.want != nil && err.Error() != "test: "+tt.fail+": broken" {
					t.Errorf("Run: %v, want %v", err, tt.want)
				}
				want := []string{"made, not ready", "up, ready", "a minute, ready"}
				switch tt.fail {
				case "":
					sort2(&s, "server is told, not ready", "slow server is told, not ready")
					want = append(want, "stopping, not ready", "server is told, not ready", "slow server is told, not ready",
						"server ends", "slow server ends", "work is told, not ready", "work ends")
				case "server":
					want = append(want, "server fails, ready", "stopping, not ready", "slow server is told, not ready", "slow server ends",
						"work is told, not ready", "work ends")
				case "work":
					sort2(&s, "server is told, not ready", "slow server is told, not ready")
					want = append(want, "work fails, ready", "stopping, not ready", "server is told, not ready", "slow server is told, not ready",
						"server ends", "slow server ends")
				}
				s.want(t, append(want, "closed")...)
			})
		})
	}
}

// A role that waits for others is up when they are; until then it starts, which it says before they say anything.
func TestServeStarting(t *testing.T) {
	hook := &messages{}
	old := log.L.Logger.ReplaceHooks(logrus.LevelHooks{})
	t.Cleanup(func() { log.L.Logger.ReplaceHooks(old) })
	log.L.Logger.AddHook(hook)
	for _, comes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			hook.story = story{}
			ctx, cancel := context.WithCancel(t.Context())
			up, done := make(chan struct{}), make(chan error)
			go func() {
				done <- Run(ctx, "test", newConfig(), func(ctx context.Context, d *Daemon) error {
					return d.Serve(ctx, Parts{Ready: up, Servers: []Part{{Run: func(ctx context.Context) error {
						log.G(ctx).Info("server is up")
						<-ctx.Done()
						return nil
					}}}})
				})
			}()
			synctest.Wait()
			want := []string{"test is starting", "server is up"}
			time.Sleep(time.Second)
			hook.want(t, want...)
			if comes {
				close(up)
				want = append(want, "test is up")
			}
			time.Sleep(time.Second)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			hook.want(t, append(want, "test is stopping")...)
		})
	}
}

// messages are what the log says.
type messages struct{ story }

func (*messages) Levels() []log.Level { return []log.Level{log.InfoLevel} }

func (m *messages) Fire(e *log.Entry) error {
	time.Sleep(time.Millisecond) // what runs beside this has its say first
	m.add("%s", e.Message)
	return nil
}

// sort2 puts two lines that come at once into their order.
func sort2(s *story, first, second string) {
	for i := range len(s.lines) - 1 {
		if s.lines[i] == second && s.lines[i+1] == first {
			s.lines[i], s.lines[i+1] = first, second
		}
	}
}

func shownReady(p *ops.Page) bool {
	w := &status{code: http.StatusOK}
	r, _ := http.NewRequest(http.MethodGet, "/readyz", http.NoBody)
	p.Handler(false).ServeHTTP(w, r)
	return w.code == http.StatusOK
}

// status is an http.ResponseWriter that keeps the status.
type status struct{ code int }

func (*status) Header() http.Header         { return http.Header{} }
func (*status) Write(b []byte) (int, error) { return len(b), nil }
func (s *status) WriteHeader(code int)      { s.code = code }

// What keeps a role from running is told with its name, and leaves nothing behind.
func TestRunRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	listen := func(ctx context.Context, d *Daemon) error {
		if _, err := d.Listen(ctx, "listen", "127.0.0.1:0", nil); err != nil {
			return err
		}
		_, err := d.Listen(ctx, "swarm.listen", taken.Addr().String(), nil)
		return err
	}
	serve := func(ctx context.Context, d *Daemon) error {
		return d.Serve(ctx, Parts{Servers: []Part{{"server", func(context.Context) error { panic("it runs") }}}})
	}
	for _, tt := range []struct {
		name string
		set  func(*testConfig)
		run  func(context.Context, *Daemon) error
		is   error
		want string
	}{
		{"configuration", func(c *testConfig) { c.Cluster = "" }, nil, nil, `test: configuration: cluster: "" has 0 bytes, not 1 to 64`},
		{"identity", func(c *testConfig) { c.Identity.CA, c.Identity.Cert, c.Identity.Key = "/no/ca", "/no/c", "/no/k" }, nil, nil,
			"test: identity.ca: /no/ca: no such file or directory"},
		{"an address", func(*testConfig) {}, listen, ErrInUse, "test: swarm.listen address " + taken.Addr().String() +
			": this process itself has it"},
		{"no address", func(*testConfig) {}, func(ctx context.Context, d *Daemon) error {
			_, err := d.Listen(ctx, "listen", "127.0.0.1:999999", nil)
			return err
		}, nil, "test: listen address 127.0.0.1:999999: "},
		{"the metrics' address", func(c *testConfig) { c.Metrics = taken.Addr().String() }, serve, ErrInUse,
			"test: metrics address " + taken.Addr().String()},
	} {
		cfg := newConfig()
		tt.set(cfg)
		var d *Daemon
		err := Run(t.Context(), "test", cfg, func(ctx context.Context, daemon *Daemon) error {
			d = daemon
			return tt.run(ctx, d)
		})
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
		if d == nil {
			continue
		}
		if d.Work.Err() == nil {
			t.Errorf("%s: work goes on", tt.name)
		}
		for _, l := range d.listeners {
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
				c.Close()
				t.Errorf("%s: %s still listens", tt.name, l.Addr())
			}
		}
	}
}

// A role on the page of its process leaves its metrics there only if it has no address
// of its own for them.
func TestShown(t *testing.T) {
	for _, own := range []bool{false, true} {
		cfg, page := newConfig(), ops.NewPage()
		cfg.Shown = page.Role("test")
		if own {
			cfg.Metrics = "127.0.0.1:0"
		}
		ctx, cancel := context.WithCancel(t.Context())
		err := Run(ctx, "test", cfg, func(ctx context.Context, d *Daemon) error {
			return d.Serve(ctx, Parts{Up: func(metrics net.Addr) {
				if (metrics != nil) != own {
					t.Errorf("own address %t: %v", own, metrics)
				}
				if !shownReady(page) {
					t.Errorf("own address %t: not shown as ready", own)
				}
				w := &body{status: status{code: http.StatusOK}}
				r, _ := http.NewRequest(http.MethodGet, "/metrics", http.NoBody)
				page.Handler(false).ServeHTTP(w, r)
				if shown := strings.Contains(w.text.String(), `capelin_info{role="test"`); shown == own {
					t.Errorf("own address %t: its metrics are on the process's page: %t", own, shown)
				}
				cancel()
			}})
		})
		if err != nil {
			t.Error(err)
		}
	}
}

type body struct {
	status
	text strings.Builder
}

func (b *body) Write(p []byte) (int, error) { return b.text.Write(p) }

// Calls have the server's patience to end, from when it was drained.
func TestGRPC(t *testing.T) {
	for _, tt := range []struct {
		name     string
		patience time.Duration
		whole    bool // whether the call that runs is answered
	}{{"enough time", time.Minute, true}, {"too little", time.Millisecond, false}, {"none", 0, false}} {
		t.Run(tt.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			h := &slowHealth{begun: make(chan struct{}), drained: make(chan struct{}), wait: tt.whole}
			s := grpc.NewServer(grpc.WaitForHandlers(true))
			grpc_health_v1.RegisterHealthServer(s, h)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			part := GRPC("calls", ln, s, tt.patience, func() { close(h.drained) })
			go func() { ended <- part.Run(ctx) }()
			conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			answered := make(chan error, 1)
			go func() {
				_, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
				answered <- err
			}()
			<-h.begun
			cancel()
			if err := <-answered; (err == nil) != tt.whole {
				t.Errorf("the call: %v", err)
			}
			if err := <-ended; err != nil {
				t.Errorf("the server: %v", err)
			}
		})
	}
}

// slowHealth answers when the server is drained, or if it is not to wait for that, never.
type slowHealth struct {
	grpc_health_v1.UnimplementedHealthServer
	begun, drained chan struct{}
	wait           bool
}

func (h *slowHealth) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	close(h.begun)
	if !h.wait {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	<-h.drained
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// A server that is told to stop before it has begun ends all the same.
func TestGRPCNotBegun(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := GRPC("calls", ln, grpc.NewServer(), 0, func() {}).Run(ctx); err != nil {
		t.Error(err)
	}
	if err := GRPC("calls", ln, grpc.NewServer(), 0, func() {}).Run(t.Context()); err == nil {
		t.Error("a closed listener is served")
	}
}

// Print and Load know what a role has by embedding Common.
func TestCommonIsEmbedded(t *testing.T) {
	var b strings.Builder
	if err := config.Print(&b, *newConfig()); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"cluster = \"default\"", "log_level = \"info\"", "log_format = \"text\"", "[identity]"} {
		if strings.Count(b.String(), "\n"+line+"\n") != 1 {
			t.Errorf("%q is not there once:\n%s", line, b.String())
		}
	}
	got := new(testConfig)
	if err := config.Parse("F", []byte(b.String()), got); err != nil || !reflect.DeepEqual(got, newConfig()) {
		t.Errorf("read back: %+v, %v", got, err)
	}
}
