package origind

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/swarm"
)

// metrics are what the origin counts.
type metrics struct {
	reg prometheus.Registerer

	requests   *prometheus.CounterVec // method, code
	pushes     prometheus.Counter
	pushBytes  prometheus.Counter
	inBytes    prometheus.Counter
	reads      prometheus.Counter
	readBytes  prometheus.Counter
	writes     prometheus.Counter
	writeBytes prometheus.Counter
	writeTime  prometheus.Histogram

	repairBytes prometheus.Counter
	scrubBytes  prometheus.Counter
	scrubBad    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "capelin_origin_" + name, Help: help})
	}
	m := &metrics{
		reg: reg,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "capelin_origin_http_requests_total", Help: "Requests answered, by method and status.",
		}, []string{"method", "code"}),
		pushes:     counter("pushes_total", "Uploads that became blobs."),
		pushBytes:  counter("push_bytes_total", "Bytes of uploads that became blobs."),
		inBytes:    counter("upload_bytes_total", "Bytes received in uploads."),
		reads:      counter("backend_reads_total", "Reads of blobs begun at backends."),
		readBytes:  counter("backend_read_bytes_total", "Bytes read from backends."),
		writes:     counter("backend_writes_total", "Blobs written to backends."),
		writeBytes: counter("backend_write_bytes_total", "Bytes written to backends."),
		writeTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "capelin_origin_backend_write_seconds", Help: "Time to write a blob to its backend.",
			Buckets: []float64{.01, .05, .1, .5, 1, 5, 10, 60, 300, 1800},
		}),
	}
	m.repairBytes = counter("ring_repair_bytes_total", "Bytes read from other members of the ring, to have copies or to heal pieces.")
	m.scrubBytes = counter("ring_scrub_bytes_total", "Bytes of what is kept that were read again and compared with their digests.")
	m.scrubBad = counter("ring_scrub_bad_total", "Pieces of what is kept that were found wrong, by scrubbing or by a reader.")
	m.reg.MustRegister(m.repairBytes, m.scrubBytes, m.scrubBad)
	m.reg.MustRegister(m.requests, m.pushes, m.pushBytes, m.inBytes, m.reads, m.readBytes, m.writes, m.writeBytes, m.writeTime)
	return m
}

var methods = map[string]bool{
	http.MethodGet: true, http.MethodHead: true, http.MethodPost: true, http.MethodPut: true, http.MethodPatch: true, http.MethodDelete: true,
}

// answered counts a request; what nobody knows is not made a label.
func (m *metrics) answered(method string, status int) {
	if !methods[method] {
		method = "other"
	}
	m.requests.WithLabelValues(method, strconv.Itoa(status)).Inc()
}

func (m *metrics) pushed(n int64) {
	m.pushes.Inc()
	m.pushBytes.Add(float64(n))
}

func (m *metrics) received(n int64) { m.inBytes.Add(float64(n)) }
func (m *metrics) opened()          { m.reads.Inc() }
func (m *metrics) read(n int)       { m.readBytes.Add(float64(n)) }

func (m *metrics) repaired(n int) { m.repairBytes.Add(float64(n)) }

func (m *metrics) wrote(n int64, took time.Duration) {
	m.writes.Inc()
	m.writeBytes.Add(float64(n))
	m.writeTime.Observe(took.Seconds())
}

// watch adds what is looked at when it is asked for.
func (m *metrics) watch(s *server, node *swarm.Node) {
	m.reg.MustRegister(&snapshot{s, node})
}

// snapshot collects what the server holds.
type snapshot struct {
	s    *server
	node *swarm.Node
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("capelin_origin_"+name, help, labels, nil)
}

var (
	descBlobs      = desc("blobs", "Whole blobs here: pinned (to be kept, or not in a backend yet) and cached.", "state")
	descPartial    = desc("partial_blobs", "Blobs that have arrived in part.")
	descCache      = desc("cache_bytes", "Bytes of blobs that may be evicted.")
	descUploads    = desc("uploads", "Uploads under way.")
	descUploadHeld = desc("upload_held_bytes", "Bytes of uploads under way.")
	descCold       = desc("cold_reads", "Blobs that are being read from backends.")
	descQueue      = desc("queue_length", "Blobs that are still to be written to a backend.")
	descAge        = desc("queue_age_seconds", "How long the oldest of them has waited.")
	descMembers    = desc("ring_members", "Members of the ring, as this one sees them.", "state")
	descUnder      = desc("ring_under_replicated", "Blobs kept here that are not known to have all their copies where they belong "+
		"(misplaced), and of those in sight that have fewer than min_replicas (urgent).", "class")
	descLost     = desc("ring_lost", "Disks that the ring misses: what was only there is nowhere else.")
	descBackend  = desc("backend_up", "1 if a backend could be used when it was last asked, 0 if not.", "backend")
	descDiffers  = desc("backend_differs", "Members of the ring that have another storage behind the backend of that name.", "backend")
	descWhole    = desc("ring_whole", "1 if each blob is proved to have its copies.")
	descMoving   = desc("ring_copying", "Blobs that are being copied to others (to) and from others (from).", "direction")
	descPeers    = desc("swarm_connections", "Nodes connected for the swarm.")
	descSent     = desc("swarm_sent_bytes_total", "Bytes of blobs sent to nodes.")
	descJoined   = desc("swarm_blobs", "Blobs open for the swarm.")
	descDisk     = desc("disk_up", "1 if a disk is used, 0 if it has failed or is not there.", "disk")
	descDiskFree = desc("disk_free_bytes", "What is free there.", "disk")
)

// Describe implements prometheus.Collector.
func (c *snapshot) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *snapshot) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	u := c.s.store.Usage()
	gauge(descBlobs, float64(u.Committed), "pinned")
	gauge(descBlobs, float64(u.Cached), "cached")
	gauge(descPartial, float64(u.Partial))
	gauge(descCache, float64(u.CacheBytes))
	n, bytes := c.s.uploads.count()
	gauge(descUploads, float64(n))
	gauge(descUploadHeld, float64(bytes))
	gauge(descCold, float64(c.s.cold.count()))
	c.s.member.collect(gauge)
	c.s.storages.collect(gauge)
	for _, d := range c.s.store.list() {
		up := 0.0
		if d.Up {
			up = 1
		}
		gauge(descDisk, up, d.Path)
		gauge(descDiskFree, float64(d.Free), d.Path)
	}
	st := c.node.Snapshot()
	gauge(descPeers, float64(len(st.Conns)))
	gauge(descJoined, float64(len(st.Blobs)))
	ch <- prometheus.MustNewConstMetric(descSent, prometheus.CounterValue, float64(st.Total.BytesOut))
}
