// Package agent makes the machines of this host be what their specs say. It
// prepares their boots (root file system, network, bundle), orders the
// supervisor, follows its journal, and is the only writer of their status.
//
// It decides nothing about which machines there are or who may touch them:
// package control does, and calls it through an interface of its own. It runs
// no containers: the supervisor does. The composition root of the control
// process starts Run.
//
// One goroutine owns one machine. It takes commands and journal entries one
// at a time; a command that has to wait goes on taking entries, so that the
// status is never older than the command. One more goroutine follows the
// journal, and one per replaced version sees it off.
//
// Nothing is kept that can be found out again: at start, and whenever the
// supervisor comes back, the agent takes the supervisor's instances and the
// journal after the status it wrote last, and from both derives what is.
//
//	spec (control) --> machine's goroutine --> orders --> supervisor
//	                     ^          |                        |
//	                     |          v                        |
//	                     |       status (store)              |
//	                     +------------- journal -------------+
package agent
