package harness

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// initEnv makes a copy of the running program the init process of a Host.
const initEnv = "CAPELIN_HARNESS_INIT"

func init() {
	if name := os.Getenv(initEnv); name != "" {
		hostInit(name)
	}
	if machine := os.Getenv(keeperEnv); machine != "" {
		keepMachine(machine)
	}
	if machine := os.Getenv(bootEnv); machine != "" {
		bootMachine(machine)
	}
}

// hostInit is PID 1 of a host: it sets up the mount namespace, reaps orphans,
// and ends, and everything with it, when its standard input does: when the
// harness closes it or dies.
func hostInit(name string) {
	fail := func(doing string, err error) {
		fmt.Fprintf(os.Stderr, "init of host %s: %s: %v\n", name, doing, err)
		os.Exit(1)
	}
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs) // everything: init must not die of a stray SIGTERM
	if err := unix.Sethostname([]byte(name)); err != nil {
		fail("setting the host name", err)
	}
	// Private: what is mounted here is seen and kept nowhere else.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fail("making mounts private", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		fail("mounting /proc", err)
	}
	// Shims put their sockets below /run/containerd, wherever containerd's state is.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		fail("mounting /run", err)
	}
	fmt.Println("ready")
	os.Stdout.Close()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for s := range sigs {
		if s != syscall.SIGCHLD {
			continue
		}
		for {
			var ws syscall.WaitStatus
			if pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
