package daemon

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
)

// Obstacle is what keeps a part of a role from running, while the rest of it runs.
type Obstacle struct {
	Key   string // of the configuration
	Text  string
	Since time.Time
}

// obstacles are those of a role, by key.
type obstacles struct {
	mu  sync.Mutex
	now map[string]Obstacle
}

func (o *obstacles) put(key string, err error) (isNew bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	is, was := o.now[key]
	if was && is.Text == err.Error() {
		return false
	}
	if !was {
		is.Since = time.Now()
	}
	if o.now == nil {
		o.now = map[string]Obstacle{}
	}
	o.now[key] = Obstacle{key, err.Error(), is.Since}
	return true
}

func (o *obstacles) remove(key string) (was bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, was = o.now[key]
	delete(o.now, key)
	return was
}

// Obstruct says that a part of the role does not run as long as the role does.
func (d *Daemon) Obstruct(key, why string) { d.obstacles.put(key, errors.New(why)) }

// Obstacles are what [Daemon.Overcome] tries again now, and what Obstruct said, by key.
func (d *Daemon) Obstacles() []Obstacle {
	d.obstacles.mu.Lock()
	defer d.obstacles.mu.Unlock()
	all := make([]Obstacle, 0, len(d.obstacles.now))
	for _, o := range d.obstacles.now {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b Obstacle) int { return cmp.Compare(a.Key, b.Key) })
	return all
}

// How often Overcome tries, and how often it says that it does.
const (
	obstacleMin   = time.Second
	obstacleMax   = 30 * time.Second
	obstacleAgain = time.Hour
)

// Overcome does what a part of the role needs before it can run, such as opening a port
// that somebody else has, and does it again until it succeeds or ctx is done; then its
// error is ctx's. Meanwhile it is an [Obstacle] for the key of the configuration, which the
// log, the metric capelin_obstacle and whoever asks for Obstacles tell. without says what
// the role lacks as long as that is so.
func (d *Daemon) Overcome(ctx context.Context, key, without string, do func() error) error {
	pauses := backoff.ExponentialBackOff{InitialInterval: obstacleMin, MaxInterval: obstacleMax, Multiplier: 2, RandomizationFactor: 0.1}
	l := log.G(ctx).WithField("key", key)
	var said time.Time
	for {
		err := inOneLine(do())
		if err == nil {
			if d.obstacles.remove(key) {
				l.Info(d.role + " has overcome what was in its way")
			}
			return nil
		}
		if isNew := d.obstacles.put(key, err); isNew || time.Since(said) >= obstacleAgain {
			said = time.Now()
			l.WithError(err).Error(d.role + " runs without " + without + ", and tries again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pauses.NextBackOff()):
		}
	}
}

// inOneLine is several errors that are joined, as they fit into a line of a log or a table.
func inOneLine(err error) error {
	if err == nil || !strings.Contains(err.Error(), "\n") {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// Patiently is [Daemon.Overcome] for a part that needs an address to listen on.
func (d *Daemon) Patiently(ctx context.Context, key, without, addr string) (ln net.Listener, err error) {
	err = d.Overcome(ctx, key, without, func() (err error) {
		ln, err = d.Listen(ctx, key, addr, nil)
		return err
	})
	return ln, err
}

// obstacleCollector shows the obstacles there are.
type obstacleCollector struct {
	d    *Daemon
	desc *prometheus.Desc
}

func newObstacleCollector(d *Daemon) *obstacleCollector {
	return &obstacleCollector{d, prometheus.NewDesc("capelin_obstacle",
		"1 for each key of the configuration that the role runs without, because it cannot be used now, such as a port that another "+
			"process has; the log and the status say why.", []string{"key"}, prometheus.Labels{"role": d.role})}
}

func (c *obstacleCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *obstacleCollector) Collect(ch chan<- prometheus.Metric) {
	for _, o := range c.d.Obstacles() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, o.Key)
	}
}
