package daemon

import (
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("CAPELIN_TEST_LISTEN") != "" {
		listenForTests()
	}
	goleak.VerifyTestMain(m)
}

// listenForTests is another process: it listens, says where, and waits until its input ends.
func listenForTests() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	_, _ = io.ReadAll(os.Stdin)
	os.Exit(0)
}
