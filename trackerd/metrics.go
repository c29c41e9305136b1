package trackerd

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector exports the machine's Stats.
type collector struct{ s *server }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("capelin_tracker_"+name, help, labels, nil)
}

var (
	descStreams   = desc("streams", "Agents connected.")
	descBlobs     = desc("blobs", "Blobs that some agent has or wants.")
	descEntries   = desc("announcements", "Pairs of agent and blob that are kept.")
	descWants     = desc("wants", "Pairs of agent and blob that it wants.")
	descHeld      = desc("leases_held", "Upstream leases held now.")
	descAnnounces = desc("announces_total", "Announcements received.")
	descWanted    = desc("wants_total", "Wants received.")
	descEnough    = desc("enough_total", "Announcements answered by \"enough\".")
	descFull      = desc("refused_total", "Announcements and wants refused because a limit was reached.")
	descRefused   = desc("streams_refused_total", "Streams refused or ended for what they sent, or because there were too many.")
	descReplaced  = desc("streams_replaced_total", "Streams replaced by a newer one of the same node.")
	descNamesakes = desc("namesakes_total", "Of those, by a node whose place the other had taken before: two machines have one name.")
	descPeers     = desc("peers_told_total", "Peers that agents were told of.")
	descConflicts = desc("sums_conflicts_total", "Claims of other sums than the pinned ones.")
	descDisproved = desc("sums_disproved_total", "Pinned sums that were disproved.")
	descLookups   = desc("lookups_total",
		"Blobs that origins were asked for, by answer: found, missed, or late if some did not answer in time.", "answer")
	descGranted  = desc("leases_granted_total", "Upstream leases granted, by reason: first, or beside a slow holder.", "reason")
	descEnded    = desc("leases_ended_total", "Upstream leases that ended, by outcome.", "outcome")
	descSelf     = desc("downloads_unleased_total", "Downloads from upstream by agents that held no lease.")
	descUpstream = desc("upstream_bytes_total", "Bytes that agents reported to have from upstream.")
	descVerdicts = desc("verdicts_total", "Answers to agents that want a blob.", "verdict")
	descAge      = desc("age_seconds", "Time since the start, at the last event.")
)

func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.s.mu.Lock()
	st, refused, age := c.s.machine.Stats(), c.s.refused, c.s.machine.Age()
	c.s.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descStreams, float64(st.Streams))
	gauge(descBlobs, float64(st.Swarms))
	gauge(descEntries, float64(st.Entries))
	gauge(descWants, float64(st.Wants))
	gauge(descHeld, float64(st.Leases))
	gauge(descAge, age.Seconds())
	count(descAnnounces, st.Announces)
	count(descWanted, st.WantsSeen)
	count(descEnough, st.EnoughSent)
	count(descFull, st.FullRefused)
	count(descRefused, refused)
	count(descReplaced, st.Replaced)
	count(descNamesakes, st.Namesakes)
	count(descPeers, st.PeersTold)
	count(descConflicts, st.HashConflicts)
	count(descDisproved, st.HashReplaced)
	count(descLookups, st.LookupsFound, "found")
	count(descLookups, st.LookupsMissed, "missed")
	count(descLookups, st.LookupsLate, "late")
	count(descGranted, st.LeasesGranted-st.LeasesAdded, "first")
	count(descGranted, st.LeasesAdded, "slow")
	count(descEnded, st.LeasesCompleted, "completed")
	count(descEnded, st.LeasesFailed, "failed")
	count(descEnded, st.LeasesCancelled, "cancelled")
	count(descEnded, st.LeasesUnstarted, "unstarted")
	count(descEnded, st.LeasesStalled, "stalled")
	count(descEnded, st.LeasesGone, "gone")
	count(descSelf, st.LeasesSelf)
	count(descUpstream, uint64(st.UpstreamReported))
	count(descVerdicts, st.VerdictsSources, "sources")
	count(descVerdicts, st.VerdictsLease, "lease")
	count(descVerdicts, st.VerdictsNobody, "nobody")
	count(descVerdicts, st.VerdictsWait, "wait")
}
