//go:build !linux

package daemon

func holder(string) string { return "" }
