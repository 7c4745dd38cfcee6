package etcd

import (
	"testing"
	"time"
)

func TestResyncIsEtcds(t *testing.T) {
	// Etcd's own value, or what a member of an earlier test has set: a variable
	// of ours alone would be zero.
	if got := watchResyncPeriod; got != 100*time.Millisecond && got != resync {
		t.Errorf("etcd's watchResyncPeriod: got %s, want 100ms or %s: is it still etcd's variable?", got, resync)
	}
}
