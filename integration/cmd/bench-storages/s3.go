package main

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/capelin-io/capelin/fetcher/s3"
	"github.com/capelin-io/capelin/integration/storages"
)

// aws is Debian's: another one in the PATH may be of any version.
const aws = "/usr/bin/aws"

// startS3 compares with Debian's awscli as it comes.
func startS3(t *bench, dir string) (*kind, error) {
	v := storages.StartVersitygw(t, dir)
	v.Setenv(t)
	t.Setenv("AWS_DEFAULT_REGION", v.Region)
	b, err := s3.Open(v.Config(v.URL(), ""))
	if err != nil {
		return nil, err
	}
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, []byte("x"), 0o600); err != nil {
		return nil, err
	}
	cp := func(from, to string) *exec.Cmd {
		return exec.CommandContext(t.ctx, aws, "s3", "cp", "--only-show-errors", "--endpoint-url", v.URL(), from, to)
	}
	at := func(key string) string { return "s3://" + v.Bucket + "/" + key }
	return &kind{
		backend: b, tool: "aws",
		up:    func(file, key string) *exec.Cmd { return cp(file, at(key)) },
		down:  func(file, key string) *exec.Cmd { return cp(at(key), file) },
		start: func() *exec.Cmd { return cp(small, at("bench/small")) },
	}, nil
}
