package storages

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

// full: large objects are as large as is promised, and the memory for them is measured from outside.
var full = flag.Bool("storages.full", false, "objects of 5 GB")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
