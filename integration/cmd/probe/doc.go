// Command probe is what runs in the tests' containers: a static program and
// nothing else.
//
//	probe pause       waits for SIGTERM
//	probe check       compares all files with /checksums, prints "ok: N files"
//	probe hello WORD  prints WORD
package main
