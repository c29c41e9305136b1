package config

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration, in text as "1m30s", "150ms" or "0s".
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalText takes what time.ParseDuration takes.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration, such as \"150ms\", \"5s\" or \"1h30m\"", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText returns what String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Bytes is a number of bytes, in text as "10GiB", "64MB" or "4096": decimal
// (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB) units, upper or lower case, but not Mb, which means
// bits to many; with a fraction if need be. Negative values are written with a leading "-".
type Bytes int64

var units = []struct {
	name string
	n    int64
}{
	{"tib", 1 << 40}, {"gib", 1 << 30}, {"mib", 1 << 20}, {"kib", 1 << 10},
	{"tb", 1e12}, {"gb", 1e9}, {"mb", 1e6}, {"kb", 1e3}, {"b", 1},
}

func (n Bytes) String() string {
	if n == 0 {
		return "0B"
	}
	for _, u := range []struct {
		name string
		n    int64
	}{{"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}} {
		if int64(n)%u.n == 0 {
			return strconv.FormatInt(int64(n)/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(n), 10) + "B"
}

// UnmarshalText takes a number with an optional unit.
func (n *Bytes) UnmarshalText(b []byte) error {
	if err := refuseBits(string(b)); err != nil {
		return err
	}
	v, ok := parseBytes(string(b))
	if !ok {
		return fmt.Errorf("%q is not a number of bytes, such as \"10GiB\", \"500MB\" or \"4096\"", b)
	}
	*n = Bytes(v)
	return nil
}

// bits is how people write numbers of bits, and few numbers of bytes.
var bits = regexp.MustCompile(`^\s*(-?[0-9.]+)\s*(?:([KMGT]i?)b|(?i:([kmgt]i?)(?:bits?|bps)))(/s|ps)?\s*$`)

// refuseBits refuses a number that may be meant in bits, and says what to write for either.
func refuseBits(text string) error {
	m := bits.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	unit := cmp.Or(m[2], m[3])
	unit = strings.ToUpper(unit[:1]) + strings.ToLower(unit[1:]) + "B"
	if unit == "KB" {
		unit = "kB"
	}
	per := ""
	if m[4] != "" || strings.HasSuffix(strings.ToLower(strings.TrimSpace(text)), "bps") {
		per = "/s"
	}
	v, ok := parseBytes(m[1] + unit)
	if !ok {
		return nil // the number is what is wrong
	}
	return fmt.Errorf("%q may be in bits: did you mean \"%s%s%s\", or \"%v%s\" for so many bits?",
		strings.TrimSpace(text), m[1], unit, per, Bytes(v/8), per)
}

func parseBytes(text string) (int64, bool) {
	s := strings.ToLower(strings.TrimSpace(text))
	factor := int64(1)
	for _, u := range units {
		if head, ok := strings.CutSuffix(s, u.name); ok {
			s, factor = strings.TrimSpace(head), u.n
			break
		}
	}
	if v, err := strconv.ParseInt(s, 10, 64); err == nil {
		if v > math.MaxInt64/factor || v < math.MinInt64/factor {
			return 0, false
		}
		return v * factor, true
	}
	if strings.ContainsAny(s, "xpeni_") { // hexadecimal, exponents, inf, nan
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.Abs(f*float64(factor)) >= math.MaxInt64 {
		return 0, false
	}
	return int64(f * float64(factor)), true
}

// MarshalText returns what String does.
func (n Bytes) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// Rate is a number of bytes per second, in text as "300MB/s" or "1GiB/s"; the
// "/s" may be left out.
type Rate int64

func (r Rate) String() string { return Bytes(r).String() + "/s" }

// UnmarshalText takes what Bytes takes, with or without "/s".
func (r *Rate) UnmarshalText(b []byte) error {
	if err := refuseBits(string(b)); err != nil {
		return err
	}
	v, ok := parseBytes(strings.TrimSuffix(strings.TrimSpace(string(b)), "/s"))
	if !ok {
		return fmt.Errorf("%q is not a number of bytes per second, such as \"300MB/s\"", b)
	}
	*r = Rate(v)
	return nil
}

// MarshalText returns what String does.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
