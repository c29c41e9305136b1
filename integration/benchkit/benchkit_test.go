package benchkit

import (
	"encoding/json"
	"math"
	"testing"
)

func TestPercentile(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{0: 1, 1: 1, 20: 1, 21: 2, 50: 3, 99: 5, 100: 5} {
		if got := Percentile(v, p); got != want {
			t.Errorf("p%v of %v is %v, want %v", p, v, got, want)
		}
	}
	if v[0] != 5 {
		t.Error("the values were sorted in place")
	}
	if !math.IsNaN(Median(nil)) || Median([]float64{7}) != 7 {
		t.Error("medians of none and one")
	}
}

func TestFigures(t *testing.T) {
	var f Figures
	f.Add("b", 1.23456)
	f.Add("a", 2)
	f.Add("b", 3e9)
	f.Add("none", math.NaN())
	if got := f.String(); got != "b=3e+09 a=2 none=NaN" {
		t.Error(got)
	}
	b, err := json.Marshal(&f)
	if err != nil || string(b) != `{"a":2,"b":3000000000,"none":null}` {
		t.Errorf("%s, %v", b, err)
	}
	if f.Get("a") != 2 || !math.IsNaN(f.Get("c")) {
		t.Error("Get")
	}
}

func TestBusy(t *testing.T) {
	a, err := Now()
	if err != nil || a.total <= a.busy || a.busy <= 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if got := (Machine{busy: 30, total: 100}).Busy(Machine{busy: 10, total: 50}); got != 0.4 {
		t.Errorf("%v", got)
	}
	if a.Busy(a) != 0 {
		t.Error("in no time")
	}
}
