package swarm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// TestTranscripts plays the conversations in testdata/*.txt. Each command says
// what happens next, and its expected output is what the Peers then say and do.
// Regenerate with -rewrite, then read the diff.
//
//	blob pieces=N [length=BYTES]          the blob, and the length of its last piece
//	peer name=x [origin] [zone=z] [conns=n] [queue=n]
//	stranger name=x                       a node that the script speaks for
//	is name=x [corrupt=mark] [liesums] [frozen] [slow] [silent] [stubborn] [badcopy] [blackhole] [trickles]
//	seed name=x, want name=x [have=(i,j)] joins
//	source name=x                         joins with nothing, to receive it in order
//	local name=x from=i to=j              it received these
//	leave name=x
//	named name=x peers=(a,b*)             the tracker names peers; * is a source
//	hash name=x                           and the proven list's hash
//	connect from=x to=y
//	hangup from=x to=y
//	say name=x to=y msg=…                 open want|complete|bits, have, request, block, busy, lost, bad, sums, cancel, close
//	limits name=x up=n down=n
//	release name=x                        what was slow or stubborn goes on
//	pass time=d                           time passes
//	status name=x
//
// After each command everything under way is delivered, without latency.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			l := newLab(t)
			datadriven.RunTest(t, f, func(t *testing.T, d *datadriven.TestData) string {
				l.t = t
				l.log.Reset()
				if err := l.command(d); err != nil {
					return err.Error() + "\n"
				}
				l.run()
				return l.log.String()
			})
		})
	}
	if _, err := os.Stat("testdata"); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) command(d *datadriven.TestData) error {
	str := func(key string) string {
		if !d.HasArg(key) {
			return ""
		}
		var s string
		d.ScanArgs(l.t.(*testing.T), key, &s)
		return s
	}
	num := func(key string) int {
		if !d.HasArg(key) {
			return 0
		}
		var n int
		d.ScanArgs(l.t.(*testing.T), key, &n)
		return n
	}
	list := func(key string) []string {
		for _, a := range d.CmdArgs {
			if a.Key == key {
				return a.Vals
			}
		}
		return nil
	}
	e := l.ends[str("name")]
	if e == nil && !slices.Contains([]string{"blob", "peer", "stranger", "connect", "hangup", "pass"}, d.Cmd) {
		return fmt.Errorf("nobody is called %q", str("name"))
	}
	var id piece.ID
	if len(l.blobs) > 0 {
		id = l.blobs[0]
	}
	switch d.Cmd {
	case "blob":
		last := piece.MinLength
		if n := num("length"); n > 0 {
			last = n
		}
		id = l.blob(int64(num("pieces")-1)*piece.MinLength + int64(last))
		l.note("%d pieces of %d bytes", id.Pieces(), id.Length())
	case "peer":
		cfg := PeerConfig{Zone: str("zone"), MaxConns: num("conns"), UpQueue: num("queue")}
		if d.HasArg("origin") {
			cfg.Role = wire.RoleOrigin
		}
		l.add(str("name"), cfg)
	case "stranger":
		l.stranger(str("name"))
	case "is":
		e.corrupt = byte(num("corrupt"))
		e.lieSums, e.frozen, e.slow, e.silent = d.HasArg("liesums"), d.HasArg("frozen"), d.HasArg("slow"), d.HasArg("silent")
		e.stubborn, e.recheck = d.HasArg("stubborn"), !d.HasArg("badcopy")
		e.blackhole, e.trickles = d.HasArg("blackhole"), d.HasArg("trickles")
	case "seed":
		e.seed(id)
	case "want":
		var have []int
		for _, v := range list("have") {
			i, err := strconv.Atoi(v)
			if err != nil {
				return err
			}
			have = append(have, i)
		}
		e.want(id, have...)
	case "source":
		e.join(id, false, piece.NewBits(id.Pieces()), piece.NewSums(id), false)
	case "local":
		from, to := num("from"), num("to")
		for i := from; i < to; i++ {
			e.have[id].Set(i)
		}
		e.step(EvLocal{ID: id, From: from, To: to, States: l.sums[id].Range(from, to-from)})
		if e.have[id].Full() {
			e.step(EvProven{id})
		}
	case "leave":
		e.step(EvLeave{id})
	case "named":
		e.named(id, list("peers")...)
	case "hash":
		e.step(EvSumsHash{id, l.sums[id].Hash()})
	case "connect":
		l.connect(str("from"), str("to"))
	case "hangup":
		for c, ends := range l.conns {
			if ends == [2]string{str("from"), str("to")} {
				delete(l.conns, c)
				for _, n := range ends {
					l.ends[n].inbox = append(l.ends[n].inbox, EvDisconnected{c})
				}
			}
		}
	case "say":
		return l.say(e, id, str("to"), list("msg"))
	case "limits":
		e.step(EvLimits{int64(num("up")), int64(num("down"))})
	case "release":
		e.slow, e.stubborn = false, false
		for _, o := range l.ends {
			if o == e || !o.stubborn {
				o.release()
			}
		}
	case "pass":
		d, err := time.ParseDuration(str("time"))
		if err != nil {
			return err
		}
		l.pass(d)
	case "status":
		s, ok := e.peer.Status(id)
		if !ok {
			return fmt.Errorf("not joined")
		}
		l.note("have %d, peers %d, useful %d, known %d, in flight %d, in %d, out %d, redundant %d",
			s.Have, s.Peers, s.Useful, s.Known, s.InFlight, s.BytesIn, s.BytesOut, s.Redundant)
		if s.DeadEnd {
			l.note("a dead end: lost %v", s.Lost)
		}
	default:
		return fmt.Errorf("unknown command %s", d.Cmd)
	}
	return nil
}

// say has a stranger say something; its handle is always 9.
func (l *lab) say(e *end, id piece.ID, to string, words []string) error {
	var conn ConnID
	for c, ends := range l.conns {
		if ends == [2]string{e.name, to} || ends == [2]string{to, e.name} {
			conn = c
		}
	}
	n := make([]int, 4)
	for k := 1; k < len(words) && k <= 4; k++ {
		n[k-1], _ = strconv.Atoi(words[k])
		if words[k] == "any" {
			n[k-1] = -1
		}
	}
	i := uint32(int32(n[0]))
	var m wire.Message
	switch words[0] {
	case "open":
		o := &wire.Open{Blob: 9, ID: id}
		for _, w := range words[1:] {
			switch w {
			case "want":
				o.Want = true
			case "complete":
				o.Complete = true
			default:
				b, err := strconv.ParseUint(w, 2, 8)
				if err != nil {
					return err
				}
				o.Bits = []byte{byte(b)}
			}
		}
		m = o
	case "close":
		m = &wire.Close{Blob: 9}
	case "have":
		m = &wire.Have{Blob: 9, Pieces: []uint32{i}}
	case "request":
		length := piece.MaxBlock
		if n[0] >= 0 {
			length = id.PieceSize(n[0])
		}
		if len(words) > 2 {
			length = n[1]
		}
		m = &wire.Request{Blob: 9, Piece: i, Length: uint32(length)}
	case "block":
		data := make([]byte, max(1, id.PieceSize(n[0])))
		data[0] = byte(n[1])
		m = &wire.Block{Blob: 9, Piece: i, Data: data}
	case "busy":
		m = &wire.Busy{Blob: 9, Piece: i, Retry: uint16(n[1])}
	case "lost":
		m = &wire.Lost{Blob: 9, Piece: i}
	case "cancel":
		m = &wire.Cancel{Blob: 9, Piece: i}
	case "bad":
		m = &wire.Bad{Blob: 9, Piece: i}
	case "sums":
		m = &wire.Sums{Blob: 9, From: i, Proven: slices.Contains(words, "proven"), States: l.sums[id].Range(n[0], n[1])}
	case "asksums":
		m = &wire.SumsRequest{Blob: 9, From: i, Count: uint32(n[1])}
	case "ping":
		m = &wire.Ping{}
	default:
		return fmt.Errorf("unknown message %v", words)
	}
	e.say(conn, m)
	return nil
}
