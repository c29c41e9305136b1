package errclass

import (
	"errors"
	"fmt"
	"testing"
)

func TestTable(t *testing.T) {
	vague, certain := errors.New("vague"), errors.New("certain")
	table := Table{{"vague", 503, vague}, {"certain", 404, certain}}
	for _, tt := range []struct {
		err    error
		name   string
		status int
	}{
		{nil, "ok", 200}, {fmt.Errorf("x: %w", certain), "certain", 404}, {errors.New("x"), "internal", 500},
		{fmt.Errorf("%w: %w", certain, vague), "vague", 503}, // the first in the table
	} {
		if name, status := table.Class(tt.err); name != tt.name || status != tt.status {
			t.Errorf("%v: %s %d", tt.err, name, status)
		}
	}
	if table.Of("certain") != certain || table.Of("x") != nil {
		t.Error("the reverse")
	}
}
