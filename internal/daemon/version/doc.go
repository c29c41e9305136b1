// Package version says which build of Capelin this is: [Version] to people,
// [Software] to other programs. Both are functions of the binary, and may be called
// by anybody at any time.
package version
