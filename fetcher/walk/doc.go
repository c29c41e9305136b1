// Package walk goes over the objects of storages, however many there are, with the memory of a page of names.
//
// [All] is each object below a prefix, [Both] each that one of two storages has, side by side, [Read] a small
// object's bytes. What is written or deleted meanwhile is seen or not; what is there all the time is.
package walk
