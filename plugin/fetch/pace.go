package fetch

import "time"

// pace is how fast a blob grows while somebody waits for it.
type pace struct {
	start mark      // when somebody began to wait
	marks []mark    // since then, oldest first, as far as they matter
	began time.Time // when it grew first since then; zero: it has not
}

type mark struct {
	at       time.Time
	verified int64
}

const (
	markEvery = 200 * time.Millisecond
	// The rate is that of the last few seconds: of a quarter of the time, between these. A
	// swarm may pause; but who was fast once, and is slow now, is slow.
	leastWindow, mostWindow = 2 * time.Second, 10 * time.Second
	// slowLasts is how long trackers are left with having heard that the sources are slow.
	slowLasts = time.Second
)

// note takes in how much there is of the blob.
func (p *pace) note(now time.Time, verified int64) {
	n := len(p.marks)
	switch {
	case n == 0:
		p.start = mark{now, verified}
		p.marks = append(p.marks, p.start)
		return
	case p.began.IsZero() && verified > p.start.verified:
		p.began = now
	}
	if now.Sub(p.marks[n-1].at) < markEvery {
		return
	}
	if n > 1 && now.Sub(p.marks[1].at) > mostWindow {
		p.marks = append(p.marks[:0], p.marks[1:]...)
	}
	p.marks = append(p.marks, mark{now, verified})
}

// rate returns how many bytes a second there were of late.
func (p *pace) rate(now time.Time, verified int64) float64 {
	if len(p.marks) == 0 {
		return 0
	}
	return p.over(now, verified, min(max(now.Sub(p.start.at)/4, leastWindow), mostWindow))
}

// over returns how many bytes a second there were for so long, or a little longer.
func (p *pace) over(now time.Time, verified int64, window time.Duration) float64 {
	if len(p.marks) == 0 {
		return 0
	}
	from := p.marks[0]
	for _, m := range p.marks[1:] {
		if now.Sub(m.at) < window {
			break
		}
		from = m
	}
	return from.rate(now, verified)
}

// mean returns how many bytes a second there were since somebody waits.
func (p *pace) mean(now time.Time, verified int64) float64 { return p.start.rate(now, verified) }

func (m mark) rate(now time.Time, verified int64) float64 {
	if took := now.Sub(m.at).Seconds(); took > 0 {
		return float64(verified-m.verified) / took
	}
	return 0
}

// measure takes in how fast the blob grows, and how time passes for who waits for it.
func (m *Machine) measure(f *fetch) {
	if f.count(waiting) == 0 {
		f.pace = pace{}
		return
	}
	f.pace.note(m.now, f.disk.have.Verified)
	for _, s := range f.sessions {
		if s.state == waiting && !s.graced && !m.now.Before(s.since.Add(grace)) {
			s.graced, s.shared = true, m.shared
		}
	}
}

// counts has the blob counted among those that sessions wait for or write, or no more.
func (m *Machine) counts(f *fetch, busy bool) {
	if f.busy = busy; busy {
		m.busy++
	} else {
		m.busy--
	}
}
