package daemon

import (
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

func (c *Common) setLog() error {
	if err := log.SetFormat(log.OutputFormat(c.LogFormat)); err != nil {
		return err
	}
	log.L.Logger.SetFormatter(terse{log.L.Logger.Formatter})
	return log.SetLevel(c.LogLevel)
}

// terse leaves out what says nothing: fields that are empty, and what containerd's store finds out at
// each start about a file system, which nobody here makes use of.
type terse struct{ logrus.Formatter }

// noVerity is what containerd's content store says where it cannot seal blobs (fs-verity).
const noVerity = "failed check for fsverity support"

func (t terse) Format(e *logrus.Entry) ([]byte, error) {
	level := e.Level
	if e.Message == noVerity {
		if level = logrus.DebugLevel; !e.Logger.IsLevelEnabled(level) {
			return nil, nil
		}
	}
	said := *e // others have the entry, too
	said.Level, said.Data = level, make(logrus.Fields, len(e.Data))
	for k, v := range e.Data {
		if v != "" && v != nil {
			said.Data[k] = v
		}
	}
	return t.Formatter.Format(&said)
}
