// Package parts cuts the bytes of an object into parts that are sent at the same time, for storages that take large
// objects so: S3's multipart uploads, Azure's blocks. What is held in memory has a budget.
//
// [Send] is all: it reads, and calls a function for each part. [Budget] is shared by all objects that one backend
// writes.
package parts
