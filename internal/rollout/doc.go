// Package rollout brings the machines of an app to a release: a planner that
// says what has to be done (pure: release, machines and journal in, steps out)
// and an executor that does it over small interfaces, step by step, with a
// journal.
//
// The executor may die at any moment. The next one plans again from what the
// machines are and what the journal says, and so goes on, or back:
//
//	begin -> commands -> canaries -> create, update | greens -> verify -> shift -> clean up -> complete
//	           |            |               |           |         |
//	           +------------+---------------+-----------+---------+--> return -> failed
//
// Until the shift every machine can go back to what it was: it is remembered
// before it is first touched. What the app no longer needs goes after the
// shift, so that at every instant machines of the old or of the new release
// serve.
//
// It knows no store, no HTTP and no process of the platform; package control
// calls it and implements its interfaces. Goroutines: those of Run's lanes,
// which have ended when it returns.
package rollout
