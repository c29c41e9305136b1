package hdfs

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// tmpDir is where files are written, below the path; no object's key begins with it.
const tmpDir = "_tmp"

// pathOf returns the path below the root of objects that a key has, and what is wrong with the key.
func pathOf(key string) (string, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return "", err
	}
	elements := strings.Split(key, "/")
	for i, e := range elements {
		if e == ".snapshot" {
			return "", fmt.Errorf("key %q has an element that HDFS keeps for itself: %w", key, errdefs.ErrInvalidArgument)
		}
		elements[i] = encode(e)
	}
	return strings.Join(elements, "/"), nil
}

// A file's name is the element of the key, but for bytes that some version of HDFS, of its
// servers of HTTP or of their redirects does not keep: they refuse ":", decode "%" and "+" once too often, take a
// ";" for the beginning of something else, make one character of all bytes that are no UTF-8, and sort bytes as signed.
// Those are written as one of four characters and a letter, or two hexadecimal digits, so that
// names sort as the elements do:
//
//	! to ,     !a to !l
//	: to @     =a to =g
//	[ to `     _a to _f    so "_" itself is "_e"
//	{ to 0xff  ~7b to ~ff
const (
	lead1, from1, to1 = '!', '!', ','
	lead2, from2, to2 = '=', ':', '@'
	lead3, from3, to3 = '_', '[', '`'
	lead4, from4      = '~', '{'
)

const hexDigits = "0123456789abcdef"

func encode(element string) string {
	var s strings.Builder
	for i := range len(element) {
		switch c := element[i]; {
		case c >= from1 && c <= to1:
			s.Write([]byte{lead1, 'a' + c - from1})
		case c >= from2 && c <= to2:
			s.Write([]byte{lead2, 'a' + c - from2})
		case c >= from3 && c <= to3:
			s.Write([]byte{lead3, 'a' + c - from3})
		case c >= from4:
			s.Write([]byte{lead4, hexDigits[c>>4], hexDigits[c&15]})
		default:
			s.WriteByte(c)
		}
	}
	return s.String()
}

// decode is the reverse of encode. ok is false for what encode does not make.
func decode(name string) (element string, ok bool) {
	var s strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		base, count := byte(0), byte(0)
		switch {
		case c == lead1:
			base, count = from1, to1-from1+1
		case c == lead2:
			base, count = from2, to2-from2+1
		case c == lead3:
			base, count = from3, to3-from3+1
		case c == lead4:
			if i+2 >= len(name) {
				return "", false
			}
			hi, lo := strings.IndexByte(hexDigits, name[i+1]), strings.IndexByte(hexDigits, name[i+2])
			if c = byte(hi<<4 | lo); hi < 0 || lo < 0 || c < from4 {
				return "", false
			}
			i += 2
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '-', c == '.':
		default:
			return "", false
		}
		if count > 0 {
			if i++; i == len(name) || name[i] < 'a' || name[i]-'a' >= count {
				return "", false
			}
			c = base + name[i] - 'a'
		}
		s.WriteByte(c)
	}
	return s.String(), true
}
