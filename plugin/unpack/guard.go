package unpack

import (
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
)

// A PanicError is a panic while a layer was applied: a bug, which the layer has
// brought to light. It costs the pull, not the process, which is every
// container's content store.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine, as runtime/debug prints it
}

// Error does not contain the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap makes it containerd's class of internal errors.
func (e *PanicError) Unwrap() error { return errdefs.ErrInternal }

// guard calls f and returns its error, or its panic as a [PanicError]. Each
// goroutine of an apply runs below one.
func guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	return f()
}
