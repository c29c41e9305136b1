package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
)

const (
	swarmNodes = 8
	swarmRate  = 10e6     // bytes per second of each link, each way
	swarmBlob  = 32 << 20 // bytes; alone on a link it takes 3.5 s
)

// fanout is a download by several nodes that something happens to.
type fanout struct {
	*testing.T
	*env                   // without a registry
	origin *harness.Origin // the only one; its link is four times as fast
	nodes  []*harness.Node
	digest string
	data   string // the file with the right bytes

	begin time.Time
	got   []int64 // received by each node before the download
	took  []time.Duration
	wait  []func() error
	lost  map[*harness.Node]bool // are not expected to end
}

// newFanout makes the cluster; node k is in the k-th of zones, counted round, if there
// are any. The origin is in none, which is another zone for all.
func newFanout(t *testing.T, seed uint64, zones ...string) *fanout {
	ctx, c := newCluster(t)
	e := &env{ctx: ctx, c: c, tracker: get(c.NewTracker(ctx, "tracker", nil))(t)}
	f := &fanout{T: t, env: e, lost: map[*harness.Node]bool{}}
	f.origin = get(c.NewOrigin(ctx, "origin", f.tracker.Listen, 4*swarmRate))(t)
	img, path, err := benchkit.RandomImage(c.Dir, swarmBlob, seed)
	must(t, err)
	f.digest, f.data = img.Layers[0], path
	for i := range swarmNodes {
		agent := map[string]string{"unpack": "false", "wait.stall": `"20s"`, "log_level": `"debug"`} // nobody else has it
		if len(zones) > 0 {
			agent["zone"] = fmt.Sprintf("%q", zones[i%len(zones)])
		}
		n := get(c.NewNode(fmt.Sprintf("n%d", i), harness.NodeOptions{
			Trackers: []string{f.tracker.Listen}, Agent: agent, Env: []string{"GOMAXPROCS=1"},
		}))(t)
		must(t, c.Shape(n.Host, swarmRate))
		must(t, errors.Join(n.StartAgent(ctx), n.AwaitTrackers(ctx)))
		f.nodes = append(f.nodes, n)
	}
	return f
}

// start gives the origin the blob and has all nodes download it.
func (f *fanout) start() {
	must(f.T, f.origin.Put(f.ctx, f.data, f.digest))
	f.took = make([]time.Duration, len(f.nodes))
	f.begin = time.Now()
	for i, n := range f.nodes {
		received, _, err := n.LinkBytes()
		must(f.T, err)
		f.got = append(f.got, received)
		f.wait = append(f.wait, do(func() error {
			err := n.FetchBlob(f.ctx, f.digest, swarmBlob)
			for errors.Is(err, harness.ErrRegistry) && f.ctx.Err() == nil { // there is none: as kubelet does, again
				f.Log(err)
				time.Sleep(100 * time.Millisecond) // a client that pauses less would only be told the same
				err = n.FetchBlob(f.ctx, f.digest, swarmBlob)
			}
			f.took[i] = time.Since(f.begin)
			return err
		}))
	}
}

// until waits until that share of the blob has come in the middle.
func (f *fanout) until(share float64) {
	f.Helper()
	f.poll(f.T, fmt.Sprintf("%.0f %% of the download", 100*share), func() bool {
		var got []int64
		for i, n := range f.nodes {
			received, _, err := n.LinkBytes()
			must(f.T, err)
			got = append(got, received-f.got[i])
		}
		slices.Sort(got)
		return float64(got[len(got)/2]) > share*swarmBlob
	})
}

var convicted = regexp.MustCompile(`peer convicted.* peer=(\S+)`)

// finish waits for those who are not lost, and checks that all of them have the
// right bytes and have cut off nobody but liars.
func (f *fanout) finish(without float64, liars ...string) {
	f.Helper()
	var worst time.Duration
	for i, n := range f.nodes {
		err := f.wait[i]()
		if f.lost[n] {
			continue
		}
		if err != nil {
			f.Errorf("%s: %v", n.Name, err)
			continue
		}
		worst = max(worst, f.took[i])
		_, want, _ := strings.Cut(f.digest, ":")
		if got := fileSum(f.T, filepath.Join(n.ContentDir(), "blobs", "sha256", want)); got != want {
			f.Errorf("%s has other bytes: sha256 %s", n.Name, got)
		}
		log, err := os.ReadFile(n.Agent().Log)
		must(f.T, err)
		for _, m := range convicted.FindAllStringSubmatch(string(log), -1) {
			if !slices.Contains(liars, m[1]) {
				f.Errorf("%s cut off the honest %s", n.Name, m[1])
			}
		}
	}
	// Not judged: the machine may be busy.
	f.Logf("%.2f s until the last, %+.2f s beyond a download of which nothing was lost", worst.Seconds(), worst.Seconds()-without)
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	r := get(os.Open(path))(t)
	defer r.Close()
	h := sha256.New()
	_, err := io.Copy(h, r)
	must(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

// Something happens to a download by eight nodes: the others end it, with the
// right bytes, and cut off nobody who is honest.
func TestSwarmFaults(t *testing.T) {
	var without float64 // seconds until the last, when nothing happens
	for i, tt := range []struct {
		name string
		do   func(f *fanout)
	}{
		{"nothing", func(f *fanout) {}},
		{"the tracker is killed", func(f *fanout) {
			f.until(.3)
			f.tracker.Kill()
		}},
		{"the only origin is killed after a copy is out", func(f *fanout) {
			f.poll(f.T, "a copy from the origin", func() bool {
				_, sent, err := f.origin.LinkBytes()
				must(f.T, err)
				return sent > swarmBlob*115/100
			})
			f.origin.Kill()
		}},
		{"half of the nodes are killed", func(f *fanout) {
			f.until(.3)
			for _, n := range f.nodes[:swarmNodes/2] {
				f.lost[n] = true
				n.KillAgent()
			}
		}},
		{"two nodes freeze", func(f *fanout) {
			f.until(.3)
			for _, n := range f.nodes[:2] {
				f.lost[n] = true
				must(f.T, n.SignalAgent(syscall.SIGSTOP))
			}
			f.survivors()
			for _, n := range f.nodes[:2] {
				n.KillAgent()
			}
		}},
		{"a link is cut for 5 s", func(f *fanout) {
			f.until(.3)
			must(f.T, f.c.SetLink(f.nodes[0].Host, false))
			time.Sleep(5 * time.Second) // this is what is tested
			must(f.T, f.c.SetLink(f.nodes[0].Host, true))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFanout(t, uint64(i))
			f.start()
			tt.do(f)
			f.finish(without)
			if i == 0 {
				without = slices.Max(f.took).Seconds()
			}
		})
	}
	for i, l := range []struct {
		name string
		lie  harness.Lie
		seen string
	}{
		{"a peer corrupts every tenth piece", harness.Corrupts, "bad piece.* peer=liar"},
		{"a peer lies in its sums", harness.WrongSums, "an origin claims other sums"},
		{"a peer announces what it does not have", harness.HasNothing, "peer stalled.* peer=liar"},
	} {
		t.Run(l.name, func(t *testing.T) {
			f := newFanout(t, uint64(100+i))
			f.liar(l.lie)
			f.start()
			f.finish(without, "liar")
			if n := f.count(l.seen); n == 0 {
				t.Errorf("nobody has met the liar: no log has %q", l.seen)
			}
		})
	}
}

// Nodes in two zones, and an origin outside: each zone takes the blob in about once,
// and everybody ends; also when those who bring half of it into a zone freeze. A node
// that does not get to run looks like one that hangs: how much came in is judged only
// if nobody took an honest node for that.
func TestSwarmZones(t *testing.T) {
	for i, tt := range []struct {
		name   string
		freeze int // nodes of the first zone
		most   float64
	}{
		{"all are well", 0, 1.5}, // 1.05 to 1.2
		{"two bringers freeze", 2, 2.5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			zones := []string{"east", "west"}
			f := newFanout(t, uint64(200+i), zones...)
			f.start()
			if tt.freeze > 0 {
				f.until(.3)
			}
			for k := range tt.freeze {
				n := f.nodes[k*len(zones)]
				f.lost[n] = true
				must(t, n.SignalAgent(syscall.SIGSTOP))
			}
			f.survivors()
			took := map[string]int64{}
			for _, n := range f.nodes {
				if f.lost[n] {
					n.KillAgent()
					continue
				}
				st := get(n.Status(f.ctx))(t)
				took[st.Zone] += st.Bytes.FromOtherZones
			}
			f.finish(0)
			busy := f.stalled()
			for _, zone := range zones {
				share := float64(took[zone]) / swarmBlob
				t.Logf("%.2f times the blob came into %s", share, zone)
				if share > tt.most && !busy {
					t.Errorf("%.2f times the blob came into %s, more than %.2f", share, zone, tt.most)
				}
			}
		})
	}
}

// count returns how often the nodes and the tracker have logged what matches.
func (f *fanout) count(re string) (n int) {
	logs, err := filepath.Glob(filepath.Join(f.c.Dir, "*", "*.log"))
	must(f.T, err)
	for _, path := range logs {
		n += len(regexp.MustCompile(re).FindAll(get(os.ReadFile(path))(f.T), -1))
	}
	return n
}

// stalled reports whether a node took one that was not lost for one that hangs.
func (f *fanout) stalled() bool {
	for _, n := range f.nodes {
		if !f.lost[n] && f.count("peer stalled.* peer="+n.Name+`\b`) > 0 {
			return true
		}
	}
	return f.count(`peer stalled.* peer=origin\b`) > 0
}

// survivors waits for those who are not lost.
func (f *fanout) survivors() {
	for i, n := range f.nodes {
		if !f.lost[n] {
			err := f.wait[i]()
			f.wait[i] = func() error { return err }
		}
	}
}

// liar is a node that says that it has the whole blob.
func (f *fanout) liar(l harness.Lie) {
	f.Helper()
	n := get(f.c.NewLiar(f.ctx, "liar", f.tracker.Listen, swarmRate, l))(f.T)
	must(f.T, n.Claim(f.ctx, f.digest, get(os.ReadFile(f.data))(f.T)))
}
