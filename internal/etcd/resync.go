package etcd

import (
	"time"
	_ "unsafe" // for linkname
)

// resync is how often the member looks for watches that are behind, having
// begun in the past or read too slowly; the others get news at once. Etcd's own
// 100 ms are half of what an idle control process does.
const resync = 500 * time.Millisecond

// watchResyncPeriod is etcd's, which has no option for it. A test sees to it
// that it still is the variable that etcd reads.
//
//go:linkname watchResyncPeriod go.etcd.io/etcd/server/v3/storage/mvcc.watchResyncPeriod
var watchResyncPeriod time.Duration
