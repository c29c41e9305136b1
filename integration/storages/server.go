package storages

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TB is what a server needs of a test, or of whoever measures.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
	Cleanup(f func())
}

var _ TB = testing.TB(nil)

// startLimit ends a start that does not end by itself. It is far more than a start takes, on however busy a machine.
const startLimit = 5 * time.Minute

// Process is a storage's server. It ends with the test, which shows the end of its log if it failed.
type Process struct {
	t    TB
	name string
	log  string
	host string
	cmd  func(port int) *exec.Cmd
	port int

	running *exec.Cmd
	done    chan struct{} // closed when it has ended
}

// Command says how a server is started.
type Command struct {
	Name string // of its log, in Dir
	Dir  string
	Env  []string // beside this process's
	Host string   // its address on loopback; empty: 127.0.0.1
	// Args returns the program and its arguments for a port there.
	Args func(port int) []string
}

// Start starts a server, and waits until it takes connections.
func Start(t TB, c Command) *Process {
	t.Helper()
	p := &Process{t: t, name: c.Name, log: filepath.Join(c.Dir, c.Name+".log"), host: cmp.Or(c.Host, "127.0.0.1")}
	p.cmd = func(port int) *exec.Cmd {
		args := c.Args(port)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		return cmd
	}
	t.Cleanup(p.end)
	var err error
	for range 5 { // another process may have taken the port meanwhile
		if p.port, err = freePort(); err != nil {
			break
		}
		if err = p.start(); err == nil {
			return p
		}
		p.Kill()
	}
	t.Fatalf("%v", err)
	return nil
}

// URL is where it is reached.
func (p *Process) URL() string { return "http://" + p.addr() }

// PID is its process's.
func (p *Process) PID() int { return p.running.Process.Pid }

func (p *Process) addr() string { return net.JoinHostPort(p.host, strconv.Itoa(p.port)) }

// freePort returns a port that the kernel has just given.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (p *Process) start() error {
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, done := p.cmd(p.port), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w (make tools builds what is needed)", p.name, err)
	}
	p.running, p.done = cmd, done
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	for end := time.Now().Add(startLimit); time.Now().Before(end); {
		conn, err := net.Dial("tcp", p.addr())
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("%s has ended: %s\n%s", p.name, cmd.ProcessState, p.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s takes no connections\n%s", p.name, p.tail())
}

// Kill ends it as a crash does, with its children, and waits for its end.
func (p *Process) Kill() {
	if p.running == nil {
		return
	}
	_ = syscall.Kill(-p.running.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Restart starts it again after Kill, at the same address.
func (p *Process) Restart() {
	p.t.Helper()
	if err := p.start(); err != nil {
		p.t.Fatalf("starting again: %v", err)
	}
}

func (p *Process) end() {
	p.Kill()
	if p.t.Failed() {
		p.t.Logf("the end of %s:\n%s", p.log, p.tail())
	}
}

// tail returns the end of the log.
func (p *Process) tail() string {
	data, _ := os.ReadFile(p.log)
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-40):], []byte("\n")))
}

// Tool returns the path of a program that make tools builds, from a directory of this module.
func Tool(t TB, name string) string {
	t.Helper()
	for dir, err := os.Getwd(); err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if path := filepath.Join(dir, "bin", name); executable(path) {
			return path
		}
		if path := filepath.Join(dir, "integration", "bin", name); executable(path) {
			return path
		}
	}
	t.Fatalf("there is no integration/bin/%s: make tools builds it", name)
	return ""
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}
