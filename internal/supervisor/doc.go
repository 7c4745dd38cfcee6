// Package supervisor is the process "roost server": the root of the tree of
// processes, the only one that a person or systemd starts. It makes the router
// namespace, opens every public socket, starts and restarts edge, control and
// builder, is the parent of every machine, runs the OCI runtime, carries the
// machines' output to their logs and keeps the journal of intents and exits.
// Its socket takes the orders of package orders. It runs lxcfs where the
// host does not, so that machines see their own figures, and answers their
// swapon (runtime/swapon).
//
// It has no rules: which machine runs where, what an app is, who may do what,
// images and the store are other packages' and other processes' business.
//
// # An instance's life
//
// A slot is the supervisor's account of one instance:
//
//	           Prepare                 boot fails
//	(none) ─────────────> stopped <──────────────────┐
//	                       │  ^  └─── Start ───> starting
//	                 Remove│  │exit                  │
//	                       v  │                      v
//	                    (none)├──────────────── started <──── thaw ─────┐
//	                          │                  │   │                  │
//	                          │             Stop │   └─> suspending ─> suspended
//	                          └─── stopping <────┴────────── Stop ──────┘
//
// Every change of a slot is made by whoever holds the slot's flight, of which
// there is at most one; starts join the flight of another start, everybody
// else waits for its end. The flight's owner journals what it intends before
// it acts and what came of it afterwards.
//
// # Durability
//
// What is written survives the process at once, because the kernel has it.
// Exits and the intent to stop are on disk before anything follows from them;
// the intent to start is flushed while the runtime works; freezing and thawing
// are not flushed, since neither survives a power cut anyway.
//
// # Death and adoption
//
// Killed, the process leaves everything running: machines, whose streams are
// FIFOs that they hold open themselves, and edge and control, which hold the
// sockets. The next one reads the journal and the slots' files, asks the
// runtime what exists, watches the processes through pidfds, and takes the
// sockets out of the running edge. Exit codes of machines that are not its
// children come from the kernel as well (see foreign); of what ended while
// nobody watched the code is unknown, -1. The terminal of a machine with a
// TTY ends with the process that held it.
//
// SIGTERM, and so "systemctl stop", ends edge, control, builder and the server
// and leaves machines running to be adopted. The sockets are left with systemd
// (see manager), which gives them to the next process of a restart and closes
// them after a stop. The order Shutdown with Machines stops them and undoes
// everything on the host. SIGUSR2 replaces the program by the binary on disk,
// in the same process, keeping children and sockets.
//
// # Goroutines
//
// Run's own: one reaper, one watcher of each child, one of each running boot,
// one reader of its output, one reclaimer, one for first packets, one per
// request, and short ones that finish a request's work. All have ended when
// Run returns.
package supervisor
