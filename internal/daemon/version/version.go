package version

import "runtime/debug"

// version is set when linking (make does, to what git describe says).
var version string

// Version returns what make built, or else the module's version as the Go
// toolchain stamped it (a tag, or a pseudo-version of the commit, with "+dirty"
// if there were changes), or "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// Software returns "capelin/" and the version, at most 64 bytes, as it goes into
// Hello messages.
func Software() string {
	s := "capelin/" + Version()
	return s[:min(len(s), 64)]
}
