// Package image keeps container images on one host: it resolves references,
// pulls from registries, loads archives, checks and unpacks layers, mounts
// root file systems for machines, and collects what nobody needs within a
// disk budget. It is built from containerd's libraries, in this process: a
// content store for blobs, overlayfs snapshots for unpacked layers, and a bolt
// database for names, labels, leases and the references between them.
//
// It knows nothing of machines: the agent hands it keys (one per container)
// and owners (whoever must not lose an image). The control process owns the
// one Store of a host; the builder reaches it through the gRPC services of
// Serve. All methods are safe for concurrent use.
//
// What is on disk below Options.Root:
//
//	meta.db                names, labels, leases (containerd's metadata schema, namespace "roost")
//	content/               blobs by digest, and half-made ones
//	overlay/               unpacked layers, one directory a snapshot
//	mounts/<key>/image     JSON record of a mount: image digest, target
//	mounts/<key>/fs, work  the writable part of its root file system
//	mounts/<key>/beside    what its user keeps with it
//
// The writable part is not a snapshot of the database: a machine starts often
// and its files are thrown away at every stop, so a start must not wait for
// the disk. Nothing below mounts/ outlives the use it was made for.
//
// What may be collected is decided by references alone. Roots are names,
// leases of work in flight, leases of Protect (one per owner), and a lease
// that Collect makes of what is mounted at that moment. Blobs and snapshots
// that no root reaches go.
package image
