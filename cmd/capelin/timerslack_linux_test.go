package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestRelaxTimers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("other threads' timer slack needs CAP_SYS_NICE")
	}
	relaxTimers()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%s/timerslack_ns", th.Name()))
		if os.IsNotExist(err) {
			continue // it has ended
		}
		if got := strings.TrimSpace(string(b)); err != nil || got != fmt.Sprint(timerSlack) {
			t.Errorf("thread %s: %s ns, %v", th.Name(), got, err)
		}
	}
}
