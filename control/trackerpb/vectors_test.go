package trackerpb

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

// TestVectors checks control/testdata/messages.txt: encoded FromAgents, each with
// what a tracker makes of it (PROTOCOL.md, "Vectors").
func TestVectors(t *testing.T) {
	data, err := os.ReadFile("../testdata/messages.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for block := range strings.SplitSeq(string(data), "\n\n") {
		var name, want string
		var enc strings.Builder
		for line := range strings.Lines(block) {
			line = strings.TrimSpace(line)
			key, value, _ := strings.Cut(line, ": ")
			switch {
			case line == "" || line[0] == '#':
			case key == "name":
				name = value
			case key == "expect":
				want = value
			default:
				enc.WriteString(line)
			}
		}
		if name == "" {
			continue
		}
		n++
		raw, err := hex.DecodeString(enc.String())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := "ok"
		m := &FromAgent{}
		if err := proto.Unmarshal(raw, m); err != nil {
			got = "not a message"
		} else if m.Hello != nil && CheckHello(m.Hello) != nil {
			got = CheckHello(m.Hello).Error()
		} else if err := CheckBatch(m); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if n < 8 {
		t.Errorf("only %d vectors", n)
	}
}
