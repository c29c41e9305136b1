package unpack

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// containerd's own decoder, whatever the machine has: igzip, for one, says nothing of
	// bytes behind a layer's end.
	for _, v := range []string{"CONTAINERD_DISABLE_IGZIP", "CONTAINERD_DISABLE_PIGZ"} {
		if err := os.Setenv(v, "1"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}
