package main

import (
	"context"

	"github.com/capelin-io/capelin/integration/harness"
)

// The big image: toolchains of Debian 12, as build images have them, in a layer
// that is most of it; fonts and an office below, browsers above. 1.3 GB as gzip,
// 4.6 GB of files.
var big = [][]string{
	{"fonts-noto-cjk", "fonts-noto-core", "libreoffice-common", "libreoffice-core"},
	{
		"golang-1.19-src", "golang-1.19-go", "ghc", "llvm-14-dev", "llvm-19-dev", "libclang-14-dev", "libclang-19-dev", "libllvm19", "gcc-12",
		"g++-12", "cpp-12", "rustc", "libstd-rust-dev", "openjdk-17-jre-headless", "openjdk-17-jdk-headless", "libboost1.74-dev", "texlive-base",
		"texlive-latex-extra", "python3-sympy", "python3-scipy", "python3-django", "python3-pandas", "python3-matplotlib", "python3-numpy",
	},
	{"firefox-esr", "chromium"},
}

// The small one: a system with Python and Perl, 20 MB in three layers.
var small = [][]string{
	{"bash", "libc6"},
	{"python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"},
	{"perl-base", "grep", "sed", "tar", "util-linux"},
}

// A testCase is an image that is pulled again and again.
type testCase struct {
	name   string
	rounds int
	make   func(ctx context.Context, dir string) (*harness.Image, error)
}

func debian(layers [][]string, c harness.Compression) func(context.Context, string) (*harness.Image, error) {
	return func(ctx context.Context, dir string) (*harness.Image, error) {
		return harness.MakeDebianImage(ctx, dir, layers, c)
	}
}

// cases returns all of them, with the rounds of the big images and of the small one.
func cases(rounds, smallRounds int) []testCase {
	return []testCase{
		{"gzip", rounds, debian(big, harness.Gzip)},
		{"zstd", rounds, debian(big, harness.Zstd)},
		{"small", smallRounds, debian(small, harness.Gzip)},
	}
}

// tiny is for the test of this program, and needs no network.
func tiny(rounds int) testCase {
	return testCase{"tiny", rounds, func(_ context.Context, dir string) (*harness.Image, error) {
		return harness.MakeImage(dir, harness.ImageOptions{Seed: 1, Layers: 2, LayerBytes: 2 << 20})
	}}
}
