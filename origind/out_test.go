package origind

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/control/origin"
)

// An operator takes a member out that has an upload. The client goes on at the mirror. Whoever begins one at a member that was taken out,
// or deletes there, hears so at once, and not after all that others could have had time for; it is shown as removed, also when it was
// drained.
func TestTakenOut(t *testing.T) {
	r := startRing(t, 4, 2, false)
	data, d := testBlob(2<<20, 17)
	id, err := r.client.StartUpload(t.Context(), "any/app", d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Append(t.Context(), id, 0, bytes.NewReader(data[:1<<20])); err != nil {
		t.Fatal(err)
	}
	var leader int
	eventually(t, "a mirror has what was appended", func() bool {
		var at map[int]origin.Stand
		at, leader = r.stands(id)
		n := 0
		for _, st := range at {
			if st.Offset == 1<<20 {
				n++
			}
		}
		return n == 2 && leader >= 0
	})
	name, other := r.names[leader], (leader+1)%4
	state := func(i int) (s origin.RingState) {
		_ = r.at(i, func(m *origin.Member) error {
			st, err := m.RingStatus(t.Context())
			if err == nil {
				s = st.Member(name).State
			}
			return err
		})
		return s
	}
	operate := func(do origin.RingDo) {
		t.Helper()
		if err := r.at(other, func(m *origin.Member) error { return m.Operate(t.Context(), name, do) }); err != nil {
			t.Fatal(err)
		}
	}
	operate(origin.RingRemove)
	eventually(t, "it has heard that it was taken out", func() bool { return state(leader) == origin.RingRemoved })

	r.goesOn(t, id, d, data, 1<<20)
	for _, ask := range []string{"POST " + origin.PathUploads + "?namespace=any/app", "DELETE " + origin.PathBlobs + "/" + string(d)} {
		method, path, _ := strings.Cut(ask, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addrs[leader]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		why := resp.Header.Get(origin.HeaderReason)
		if resp.StatusCode != http.StatusServiceUnavailable ||
			!strings.Contains(why, "taken out of the ring (`capelin origin ring readmit "+name+"`") {
			t.Errorf("%s: %s, %s", ask, resp.Status, why)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	operate(origin.RingReadmit)
	eventually(t, "it is a member again", func() bool { return state(leader) == origin.RingUp && state(other) == origin.RingUp })
	if err := r.at(leader, func(m *origin.Member) error { return m.Drain(t.Context(), true) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is drained", func() bool { return state(other) == origin.RingDrained })
	operate(origin.RingRemove)
	eventually(t, "that it was taken out is what is shown", func() bool {
		return state(other) == origin.RingRemoved && state(leader) == origin.RingRemoved
	})
}
