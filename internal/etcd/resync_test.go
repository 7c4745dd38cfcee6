package etcd

import (
	"testing"
	"time"
)

// resyncBefore is watchResyncPeriod before any test, and so any member, has set
// it: afterwards a variable of ours alone would look the same.
var resyncBefore time.Duration

func TestResyncIsEtcds(t *testing.T) {
	if want := 100 * time.Millisecond; resyncBefore != want {
		t.Errorf("etcd's watchResyncPeriod: got %s, want %s: is it still etcd's variable?", resyncBefore, want)
	}
}
