package errclass

import (
	"errors"
	"net/http"
)

// Class is a row of a Table.
type Class struct {
	Name   string
	Status int
	Err    error
}

// Table has the classes of an API in the order in which an error is compared with
// them. A class that says less comes before one that says more, so that an error that
// wraps both is not taken for certain. Whatever is none of them is "internal".
type Table []Class

// Class returns the name of the first class that an error is, and its HTTP status;
// "ok" and 200 of nil.
func (t Table) Class(err error) (name string, status int) {
	if err == nil {
		return "ok", http.StatusOK
	}
	for _, c := range t {
		if errors.Is(err, c.Err) {
			return c.Name, c.Status
		}
	}
	return "internal", http.StatusInternalServerError
}

// Of is the reverse of Class: the error that stands for a class, or nil if there
// is no such class.
func (t Table) Of(name string) error {
	for _, c := range t {
		if c.Name == name {
			return c.Err
		}
	}
	return nil
}
