package plugin

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/unpack"
	"github.com/capelin-io/capelin/swarm"
)

// metrics are what the agent counts. Names begin with capelin_agent_.
type metrics struct {
	reg      prometheus.Registerer
	calls    *prometheus.HistogramVec // by method and code
	sessions *prometheus.CounterVec   // by outcome
	waits    *prometheus.HistogramVec // by outcome
	reports  *prometheus.CounterVec   // by kind
	failed   *prometheus.CounterVec   // by reason
	layers   *prometheus.CounterVec   // by format, by
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "call_seconds",
			Help: "Time to answer a call of containerd's. Write streams count by message: Write/open, Write/wait, Write/stat, " +
				"Write/write, Write/commit; of those only Write/wait waits for the swarm. Apply is the unpacking of a layer.",
			// Around the 5 ms that a call under containerd's locks may take.
			Buckets: []float64{.0001, .00025, .0005, .001, .002, .003, .004, .005, .0075, .01, .025, .05, .1, .25, 1, 5, 30, 120},
		}, []string{"method", "code"}),
		sessions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "sessions_total",
			Help: "How waiting for the swarm ended: complete; lease (this node downloads for the cluster); " +
				"nobody, stalled, slow, alone, stopping (containerd downloads the rest); small; gone (the client left); failed.",
		}, []string{"outcome"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "wait_seconds",
			Help:    "How long containerd waited for the swarm, by outcome.",
			Buckets: []float64{.001, .005, .02, .1, .2, .3, .5, 1, 2, 5, 10, 30, 60, 120, 300, 900},
		}, []string{"outcome"}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "swarm_reports_total",
			Help: "Incidents in the swarm, by kind.",
		}, []string{"kind"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "peers_failed_total",
			Help: "How often a peer that was named as a source could not be reached (refused, no route, timeout, closed, handshake, " +
				"other), or was connected and brought nothing (silent), by reason.",
		}, []string{"reason"}),
		layers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "unpacked_layers_total",
			Help: "Layers that the agent unpacked, by compression (tar is none) and by whose code: capelin; " +
				"containerd, whose applier takes what capelin's does not. Failures are in call_seconds, method Apply.",
		}, []string{"format", "by"}),
	}
	m.reg.MustRegister(
		m.calls, m.sessions, m.waits, m.reports, m.failed, m.layers,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "info", Help: "Always 1.",
			ConstLabels: prometheus.Labels{"version": version.Version()},
		}, func() float64 { return 1 }),
	)
	for _, o := range []fetch.Outcome{
		fetch.OutcomeComplete, fetch.OutcomeLease, fetch.OutcomeNobody, fetch.OutcomeStalled, fetch.OutcomeSlow, fetch.OutcomeAlone,
		fetch.OutcomeStopping,
		fetch.OutcomeSmall, fetch.OutcomeGone, fetch.OutcomeFailed,
	} {
		m.sessions.WithLabelValues(string(o))
	}
	for _, r := range swarm.Reasons {
		m.failed.WithLabelValues(string(r))
	}
	return m
}

func (m *metrics) answered(o fetch.Outcome, d time.Duration) {
	m.sessions.WithLabelValues(string(o)).Inc()
	m.waits.WithLabelValues(string(o)).Observe(d.Seconds())
}

func (m *metrics) unpacked(format string, by unpack.By) {
	m.layers.WithLabelValues(format, string(by)).Inc()
}

// called observes one call, or one message of a Write stream.
func (m *metrics) called(method string, start time.Time, err error) {
	m.calls.WithLabelValues(method, status.Code(err).String()).Observe(time.Since(start).Seconds())
}

func (m *metrics) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := h(ctx, req)
	m.called(method(info.FullMethod), start, err)
	return resp, err
}

func (m *metrics) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	name := method(info.FullMethod)
	if name == "Write" || name == "Watch" {
		return h(srv, ss) // Write counts its messages itself
	}
	start := time.Now()
	err := h(srv, ss)
	m.called(name, start, err)
	return err
}

func method(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// watch adds what a running agent can tell.
func (m *metrics) watch(a *agent) {
	gauge := func(name, help string, f func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "capelin", Subsystem: "agent", Name: name, Help: help}, f))
	}
	gauge("fetches", "Blobs that containerd waits for or writes, or that are fetched ahead of it.",
		func() float64 { return float64(a.fetches.Len()) })
	m.reg.MustRegister(&swarmCollector{a})
}

// swarmCollector takes one snapshot for each scrape.
type swarmCollector struct{ a *agent }

var (
	bytesDesc = agentDesc("bytes_total",
		"Bytes of blobs that came to this node's disk, by source: peer (verified pieces), registry (what containerd downloaded "+
			"itself, manifests included, and what the shim took from registries, whether kept or relayed).", "source")
	peerBytesDesc = agentDesc("peer_bytes_total",
		"Traffic with peers, in bytes of blobs; what was received twice or did not verify counts, too; "+
			"by the peer's zone: own (always, without zones) or other.", "direction", "zone")
	connsDesc   = agentDesc("connections", "Connections to peers.")
	joinedDesc  = agentDesc("swarms", "Blobs whose swarms this node takes part in now.")
	badDesc     = agentDesc("mismatched_pieces_total", "Pieces that did not match their sums.")
	blobsDesc   = agentDesc("blobs", "Complete blobs on disk.", "place")
	cacheDesc   = agentDesc("cache_bytes", "Bytes kept beyond what containerd holds.")
	trackerDesc = agentDesc("tracker_connected", "Whether the tracker's stream is up.", "tracker")
	sharedDesc  = agentDesc("name_shared", "1 while another machine has this node's name: the log and the status say where it is.")
)

func agentDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("capelin_agent_"+name, help, labels, nil)
}

func (c *swarmCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		bytesDesc, peerBytesDesc, connsDesc, joinedDesc, badDesc, blobsDesc, cacheDesc, trackerDesc, sharedDesc,
	} {
		ch <- d
	}
}

func (c *swarmCollector) Collect(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	var n swarm.NodeStatus
	if net := c.a.network.Load(); net != nil {
		n = net.node.Snapshot()
	}
	put(bytesDesc, prometheus.CounterValue, float64(n.Total.Stored), "peer")
	put(bytesDesc, prometheus.CounterValue, float64(c.a.registryBytes.Load()), "registry")
	put(peerBytesDesc, prometheus.CounterValue, float64(n.Total.BytesIn-n.Total.FarIn), "in", "own")
	put(peerBytesDesc, prometheus.CounterValue, float64(n.Total.FarIn), "in", "other")
	put(peerBytesDesc, prometheus.CounterValue, float64(n.Total.BytesOut-n.Total.FarOut), "out", "own")
	put(peerBytesDesc, prometheus.CounterValue, float64(n.Total.FarOut), "out", "other")
	put(connsDesc, prometheus.GaugeValue, float64(len(n.Conns)))
	put(joinedDesc, prometheus.GaugeValue, float64(len(n.Blobs)))
	put(badDesc, prometheus.CounterValue, float64(n.Total.Mismatched))
	u := c.a.disk.Usage()
	put(blobsDesc, prometheus.GaugeValue, float64(u.Committed), "containerd")
	put(blobsDesc, prometheus.GaugeValue, float64(u.Cached), "cache")
	put(cacheDesc, prometheus.GaugeValue, float64(u.CacheBytes))
	trackers, namesake := c.a.trackerStatus()
	for _, t := range trackers {
		put(trackerDesc, prometheus.GaugeValue, truth(t.Connected), t.Address)
	}
	put(sharedDesc, prometheus.GaugeValue, truth(namesake != ""))
}

// truth is a claim as a metric.
func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
