// Package roost holds the words of the product and what they mean: apps,
// machines and their versions, services, leases, events, the routable
// snapshot of a cluster, and the kinds an error can have.
//
// It says whether a value makes sense and which state follows which; it does
// no I/O, starts no goroutine, reads no clock and knows neither JSON nor
// storage. Everything else in the module may import it; it imports the
// standard library only. Elsewhere it is imported under the name root.
//
// A machine is one record with two writers: the control plane writes its Spec
// (what should be), the agent of the owning host writes its Status (what is).
//
//	creating -> created -> starting -> started -> stopping -> stopped -> destroying -> destroyed
//	                                     |  ^                   |
//	                                     v  |                   v
//	                              suspending -> suspended    starting
package roost
