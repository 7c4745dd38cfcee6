// Package wire converts between the Machines API's JSON (package machines)
// and the words of the product (package root), in both directions, and is the
// only place that does. It fills in defaults, names the members that are kept
// without being acted upon, and refuses those whose loss would cost data or
// meaning. It has no other behaviour and no state.
package wire
