package daemon

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/log"
)

// The log has no fields that are empty, and not what containerd's store says at each start.
func TestLogIsTerse(t *testing.T) {
	var b bytes.Buffer
	out, formatter, level := log.L.Logger.Out, log.L.Logger.Formatter, log.L.Logger.GetLevel()
	log.L.Logger.SetOutput(&b)
	defer func() {
		log.L.Logger.SetOutput(out)
		log.L.Logger.SetFormatter(formatter)
		log.L.Logger.SetLevel(level)
	}()
	for _, tt := range []struct{ level, format, want string }{
		{"info", "text", `level=info msg=m none="[]" of=1` + "\n"},
		{"debug", "text", `level=info msg=m none="[]" of=1` + "\n" +
			`level=debug msg="failed check for fsverity support" error=no path=/x` + "\n"},
		{"info", "json", `{"level":"info","msg":"m","none":[],"of":1,` + "\n"},
	} {
		b.Reset()
		c := DefaultCommon("")
		c.LogLevel, c.LogFormat = tt.level, tt.format
		for range 2 { // the second time as when it is read again
			if err := c.setLog(); err != nil {
				t.Fatal(err)
			}
		}
		log.L.WithFields(log.Fields{"applied": "", "restart": nil, "of": 1, "none": []string{}}).Info("m")
		log.L.WithError(errors.New("no")).WithField("path", "/x").Warnf("failed check for fsverity support")
		var got strings.Builder
		for line := range strings.Lines(b.String()) {
			switch {
			case strings.HasPrefix(line, "time="):
				_, line, _ = strings.Cut(line, " ")
			default:
				line, _, _ = strings.Cut(line, `"time"`)
				line += "\n"
			}
			got.WriteString(line)
		}
		if got.String() != tt.want {
			t.Errorf("%s, %s: %s, want %s", tt.level, tt.format, got.String(), tt.want)
		}
	}
}
