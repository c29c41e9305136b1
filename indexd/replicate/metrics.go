package replicate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are by rule.
type metrics struct {
	holder, pending, lag, age  *prometheus.GaugeVec
	outcomes, bytes, different *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "capelin_index_replication_" + name, Help: help}, []string{"rule"})
		reg.MustRegister(g)
		return g
	}
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "capelin_index_replication_" + name, Help: help},
			append([]string{"rule"}, labels...))
		reg.MustRegister(c)
		return c
	}
	return &metrics{
		holder:  gauge("holder", "1 if this index works for the rule, 0 if another one does."),
		pending: gauge("pending", "Tags, and manifests with a subject, that are to be delivered, parked ones excepted."),
		lag:     gauge("lag_seconds", "For how long the oldest of them has been waiting."),
		age:     gauge("reconcile_age_seconds", "Since this index has last compared all tags with the remote's; -1: not yet."),
		outcomes: count("delivered_total", "Deliveries by result: done, later (tried again), refused (parked).",
			"result"),
		bytes:     count("bytes_total", "Bytes of blobs that were sent."),
		different: count("reconcile_differences_total", "Tags that were not at the remote as they are here, and had no intent."),
	}
}

func (m *metrics) state(rule string, s Status) {
	mine := 0.0
	if s.Mine {
		mine = 1
	}
	m.holder.WithLabelValues(rule).Set(mine)
	if !s.Mine {
		m.pending.DeleteLabelValues(rule)
		m.lag.DeleteLabelValues(rule)
		m.age.DeleteLabelValues(rule)
		return
	}
	m.pending.WithLabelValues(rule).Set(float64(s.Tasks))
	m.lag.WithLabelValues(rule).Set(s.Oldest.Seconds())
	age := -1.0
	if !s.Walked.IsZero() {
		age = time.Since(s.Walked).Seconds()
	}
	m.age.WithLabelValues(rule).Set(age)
}

func (m *metrics) delivered(rule string, o Outcome, bytes int64) {
	m.outcomes.WithLabelValues(rule, [...]string{"done", "later", "refused"}[o]).Inc()
	m.bytes.WithLabelValues(rule).Add(float64(bytes))
}

func (m *metrics) forget(rule string) {
	for _, g := range []*prometheus.GaugeVec{m.holder, m.pending, m.lag, m.age} {
		g.DeleteLabelValues(rule)
	}
}
