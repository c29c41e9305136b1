package seeding

import (
	"errors"
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
