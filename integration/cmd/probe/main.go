package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"pause"}
	}
	switch args[0] {
	case "pause":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		<-c
		return nil
	case "hello":
		fmt.Println(strings.Join(args[1:], " "))
		return nil
	case "check":
		return check()
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func check() error {
	f, err := os.Open("/checksums")
	if err != nil {
		return err
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); n++ {
		want, path, _ := strings.Cut(s.Text(), "  ")
		b, err := os.Open(path)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, b)
		b.Close()
		if err != nil {
			return err
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
			return fmt.Errorf("%s has checksum %s, not %s", path, got, want)
		}
	}
	fmt.Printf("ok: %d files\n", n)
	return nil
}
