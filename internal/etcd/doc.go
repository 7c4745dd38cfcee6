// Package etcd runs the embedded etcd member that holds the control state: it
// starts and stops the member, keeps its size in bounds, and says how healthy it
// is. It knows no key: that is package state's, which gets the client from here.
//
// A single host is a cluster of one voter on a unix socket. Each Member has
// one goroutine of its own, for compaction, defragmentation and recovery from
// a full quota; etcd's own goroutines end with Close.
package etcd
