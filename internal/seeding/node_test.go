package seeding

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm"
)

// Another machine of this node's name is in the log once an hour, whichever tracker tells of it
// how often.
func TestNamesakeIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger, hook := logtest.NewNullLogger()
		ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
		told := Trackers(ctx, nil, swarm.NodeConfig{}, nil).OnStatus
		for range 40 * 90 { // an hour and a half
			for _, addr := range []string{"t1:1", "t2:1"} {
				told(tracker.TrackerStatus{Addr: addr, Connected: true, Namesake: "10.0.0.7"})
				told(tracker.TrackerStatus{Addr: addr, Err: errors.New("the node connected anew"), Namesake: "10.0.0.7"})
			}
			time.Sleep(1500 * time.Millisecond)
		}
		said := hook.AllEntries()
		if len(said) != 2 || said[0].Message != "another machine at 10.0.0.7 has this name" || said[0].Level != logrus.WarnLevel {
			t.Errorf("in an hour and a half the log says %d times %+v", len(said), said[0])
		}
	})
}

// A tracker that hangs is in the log once, and when it answers again.
func TestSilenceIsLogged(t *testing.T) {
	logger, hook := logtest.NewNullLogger()
	told := Trackers(log.WithLogger(t.Context(), logrus.NewEntry(logger)), nil, swarm.NodeConfig{}, nil).OnStatus
	up := tracker.TrackerStatus{Addr: "t1:1", Connected: true, Software: "capelin"}
	silent, away := up, tracker.TrackerStatus{Addr: "t1:1", Err: errors.New("no answer")}
	silent.Err = errors.New("connected, and no answer")
	for _, st := range []tracker.TrackerStatus{up, silent, up, silent, away, away, up} {
		told(st)
	}
	var said []string
	for _, e := range hook.AllEntries() {
		said = append(said, e.Message)
	}
	const hangs = "tracker is silent: nobody waits for it"
	want := []string{"tracker connected", hangs, "tracker answers again", hangs, "tracker is away", "tracker connected"}
	if !slices.Equal(said, want) {
		t.Errorf("the log says %q, want %q", said, want)
	}
}
