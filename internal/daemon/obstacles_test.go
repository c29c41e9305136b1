package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// What is in the way is tried again, ever less often, and told: when it comes, when it is
// another one, once an hour, and when it goes.
func TestOvercome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger, said := logtest.NewNullLogger()
		ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
		d := &Daemon{role: "test"}
		began := time.Now()
		var tries []time.Duration
		err := d.Overcome(ctx, "listen", "a port", func() error {
			now := time.Since(began)
			tries = append(tries, now)
			switch {
			case now < time.Minute:
				return errors.New("taken")
			case now < 2*time.Hour+10*time.Minute:
				if is := fmt.Sprint(d.Obstacles()); is == "[]" {
					t.Error("nobody sees it")
				}
				return errors.New("taken by another")
			}
			return nil
		})
		if err != nil || len(d.Obstacles()) != 0 {
			t.Errorf("%v, %v", err, d.Obstacles())
		}
		if tries[0] != 0 || tries[1] > 1200*time.Millisecond {
			t.Errorf("tried first after %v", tries[:2])
		}
		for i := 1; i < len(tries); i++ {
			if pause := tries[i] - tries[i-1]; pause > 34*time.Second {
				t.Errorf("a pause of %v", pause)
			}
		}
		if n := len(tries); n > 400 {
			t.Errorf("%d tries in two hours", n)
		}
		var lines []string
		for _, e := range said.AllEntries() {
			lines = append(lines, fmt.Sprint(e.Message, " ", e.Data["error"]))
		}
		want := []string{"test runs without a port, and tries again taken", "test runs without a port, and tries again taken by another",
			"test runs without a port, and tries again taken by another", "test runs without a port, and tries again taken by another",
			"test has overcome what was in its way <nil>"}
		if fmt.Sprint(lines) != fmt.Sprint(want) {
			t.Errorf("it says\n%q, want\n%q", lines, want)
		}
	})
}

func TestOvercomeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		d := &Daemon{role: "test"}
		if err := d.Overcome(ctx, "k", "it", func() error { return errors.New("never") }); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if o := d.Obstacles(); len(o) != 1 || o[0].Key != "k" || o[0].Text != "never" || time.Since(o[0].Since) < time.Hour {
			t.Errorf("%+v", o)
		}
	})
}
