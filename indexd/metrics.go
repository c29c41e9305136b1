package indexd

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what an index counts.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, x *Index) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "capelin_index_requests_total",
			Help: "Requests, by operation and result: ok, or the class of the error.",
		}, []string{"operation", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "capelin_index_request_seconds",
			Help:    "Time from a request's head to its result.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 13), // 0.5 ms to 30 s
		}, []string{"operation"}),
	}
	reg.MustRegister(m.requests, m.seconds, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "capelin_index_tag_conflicts_total",
		Help: "Writes of tags that were tried again because another index was faster.",
	}, func() float64 { return float64(x.conflicts.Load()) }))
	return m
}

func (m *metrics) done(operation, result string, took time.Duration) {
	m.requests.WithLabelValues(operation, result).Inc()
	m.seconds.WithLabelValues(operation).Observe(took.Seconds())
}
