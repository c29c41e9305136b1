package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Who has a port is said with it.
func TestHolder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	six, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer six.Close()
	_, port, _ := net.SplitHostPort(six.Addr().String())

	other := exec.CommandContext(t.Context(), os.Args[0])
	other.Env = append(os.Environ(), "CAPELIN_TEST_LISTEN=1")
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	theirs, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	theirs = strings.TrimSpace(theirs)
	name := filepath.Base(os.Args[0])
	name = name[:min(len(name), 15)] // as the kernel cuts it
	for addr, want := range map[string]string{
		l.Addr().String():   "this process itself has it",
		"127.0.0.1:" + port: "this process itself has it",
		theirs:              fmt.Sprintf("another process, %s (pid %d), has it", name, other.Process.Pid),
	} {
		d := &Daemon{}
		_, err := d.Listen(t.Context(), "listen", addr, nil)
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "listen address "+addr+": "+want) {
			t.Errorf("%s: %v, want %s", addr, err, want)
		}
	}
	in.Close()
	if err := other.Wait(); err != nil {
		t.Error(err)
	}
	if got := holder(theirs); got != "" {
		t.Errorf("a port that is free is said to be held by %s", got)
	}
	for text, want := range map[string]string{
		"0100007F:1CE9": "127.0.0.1:7401", "00000000000000000000000001000000:0050": "[::1]:80", "": "", "xx:1": "", "010000:1": "",
	} {
		if got := endpoint(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
