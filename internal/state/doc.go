// Package state is the memory of the cluster: the only place that knows the
// keys of the embedded etcd and the records under them. It stores, reads and
// watches; it has no rules beyond what a transaction must hold together,
// reads no clock and makes no ids: times and ids come in as arguments.
//
// The key tree. Every value is a JSON record with its version ("v"); records
// are private to this package, see records.go. Each version that was ever
// released keeps a golden file in testdata.
//
//	orgs/<slug>                      an organisation
//	apps/<app>                       an app
//	networks/<org>/<name>            a private network
//	counters/network                 the last network id given out
//	hosts/<host>/record              a host
//	machines/<id>/spec               what should be, and the machine's fixed facts; written by control
//	machines/<id>/status             what is; written by the agent of its host
//	machines/<id>/lease              who holds it
//	names/<app>/<machine name>       the machine's id; keeps names unique in an app
//	addresses/<host>/<index>         the machine's id; keeps address indexes unique on a host
//	tombstones/<app>/<id>            a machine that was; goes after an hour, and beyond 100 in an app
//	secrets/<app>/<version>          all of an app's secrets, sealed; the app's record says which version holds
//	releases/<app>/<version>/record       what a release is; the version in eight digits
//	releases/<app>/<version>/progress     how far it has come
//	releases/<app>/<version>/events/<id>  what happened in its rollout, in order of the ids
//	rollouts/<app>/journal           the rollout under way: one an app
//	rollouts/<app>/owner             the host that carries it out; goes when that dies
//	rollouts/<app>/cancel            who asked for its end
//	rollouts/<app>/before/<machine>  what a machine was before the rollout changed it
//	webhooks/<app>/<version>         the host that has to tell the release's webhook of its end
//	hostnames/<hostname>             which app it leads to; keeps hostnames unique
//	certificates/<hostname>/upload   an uploaded certificate, its key sealed
//	certificates/<hostname>/attempt  how obtaining one went the last time
//	acme/<key>                       what the ACME client keeps: accounts, certificates, challenges; keys sealed
//	locks/<name>                     who does something that is done once in the cluster
//	tokens/<SHA-256, hex>            a token
//	meta/<key>                       small values of the cluster, raw bytes
//
// A machine is three keys so that its two writers never meet. Its spec record
// repeats app, organisation and host, so that one event is enough to build a
// root.Change.
//
// A record that cannot be read is reported to the log and skipped; it never
// keeps its neighbours from being read. Every write returns the store's
// revision after it: a read model that has reached it sees the write. Returned
// values are the caller's. Errors have kinds; a *Store is safe for concurrent
// use and starts no goroutine that outlives a call.
package state
