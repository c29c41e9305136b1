package file

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// crashDir names the variable that makes this test's binary a writer to kill.
const crashDir = "CAPELIN_TEST_CRASH_DIR"

// crashWriter writes objects that contain their own digest until it is killed, and
// prints a line for each that was acknowledged.
func crashWriter(dir string) {
	b, err := Open(Config{Path: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	ctx := context.Background()
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	say("ready")
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				data := make([]byte, 8+rand.IntN(300<<10))
				binary.LittleEndian.PutUint64(data, rand.Uint64())
				key := "blobs/" + digest.FromBytes(data).Encoded()
				if _, err := b.Write(ctx, key, int64(len(data)), bytes.NewReader(data)); err != nil {
					say("error %v", err)
				}
				say("blob %s", key)
			}
		})
		wg.Go(func() { // a counter that never goes back
			key := fmt.Sprintf("counters/%d", worker)
			for {
				n, version := 0, ""
				if r, info, err := b.Open(ctx, key, 0, -1); err == nil {
					data, _ := io.ReadAll(r)
					r.Close()
					n, _ = strconv.Atoi(string(data))
					version = info.Version
				}
				if _, err := b.WriteIf(ctx, key, []byte(strconv.Itoa(n+1)), version); err != nil {
					say("error %v", err)
				}
				say("%s %d", key, n+1)
			}
		})
	}
	wg.Wait()
}

// TestKill kills writers at random points: what was acknowledged is there, and
// whatever is there is whole.
func TestKill(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	counters := map[string]int{}
	versions := map[string]string{} // of a counter, with its value
	blobs := map[string]bool{}
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("writer says %q", lines.Text())
		}
		kill := time.AfterFunc(time.Duration(rand.IntN(30_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			what, n, _ := strings.Cut(lines.Text(), " ")
			switch {
			case what == "blob" && len(n) == len("blobs/")+64:
				blobs[n] = true
			case strings.HasPrefix(what, "counters/"):
				counters[what], _ = strconv.Atoi(n)
			case what == "error":
				t.Error(n)
			}
		}
		kill.Stop()
		_ = cmd.Wait()

		b := open(t, dir)
		page, more, err := b.List(t.Context(), "", "", 0)
		if err != nil || more {
			t.Fatalf("%v, more %v", err, more)
		}
		found := map[string]bool{}
		for _, info := range page {
			data, err := get(t, b, info.Key)
			if err != nil {
				t.Fatal(err)
			}
			found[info.Key] = true
			if name, ok := strings.CutPrefix(info.Key, "blobs/"); ok {
				if digest.FromString(data).Encoded() != name {
					t.Errorf("round %d: %s is not whole: %d bytes", round, info.Key, len(data))
				}
				delete(blobs, info.Key)
				if err := b.Delete(t.Context(), info.Key); err != nil {
					t.Fatal(err)
				}
				continue
			}
			n, err := strconv.Atoi(data)
			if err != nil || n < counters[info.Key] {
				t.Errorf("round %d: %s has %q, acknowledged was %d", round, info.Key, data, counters[info.Key])
			}
			id := info.Key + " " + info.Version
			if was, ok := versions[id]; ok && was != data {
				t.Errorf("round %d: version %s was %s, is %s", round, id, was, data)
			}
			versions[id] = data
			counters[info.Key] = n
		}
		for key := range blobs {
			t.Errorf("round %d: %s was acknowledged and is not there", round, key)
		}
		clear(blobs)
		for key := range counters {
			if !found[key] {
				t.Errorf("round %d: %s is not there", round, key)
			}
		}
		if names, err := os.ReadDir(filepath.Join(dir, tmpDir)); err != nil || len(names) != 1 {
			t.Errorf("round %d: temporary files left: %v, %v", round, names, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("counted to %v", counters)
}
